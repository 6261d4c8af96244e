"""From a model's one-line name to a connected model; `parse` decides, `connect` builds.

In: a spec such as `openai:gpt-4o-mini` or `http://127.0.0.1:8000/v1#NAME`, and the environment.
Out: a transport. A key goes to one host: its base-URL variable's, else the one the spec names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, Protocol
from urllib.parse import urldefrag, urlsplit

from agentloop.errors import UsageError
from agentloop.records import Completion, Endpoint, Request, record

Kind = Literal["scripted", "openai", "litellm", "openai_compatible", "embedded", "vllm"]
FORMS = (
    "scripted | embedded[:DIR] | vllm[:DIR] | endpoint | auto | openai:NAME | "
    "litellm:PROVIDER/NAME | http(s)://HOST/v1#NAME"
)
_OPENAI = "https://api.openai.com/v1"
_URLS = ("AGENTLOOP_BASE_URL", "OPENAI_BASE_URL")
_NAMES = ("AGENTLOOP_MODEL", "OPENAI_MODEL")


class Connected(Protocol):
    """A `ports.Model` that holds connections."""

    async def complete(self, request: Request) -> Completion:
        """One reply."""
        ...

    async def close(self) -> None:
        """Close the connections; idempotent."""
        ...


@record
class ModelSpec:
    """What a spec means. Holds the name of the key's variable, never the key."""

    kind: Kind
    base_url: str = ""
    model: str = ""
    """Empty: the endpoint's first (`openai_compatible`) or the default (`served`)."""
    path: str = ""
    """Directory of a `served` model; empty for the default one."""
    key_variable: str = ""

    @property
    def local(self) -> bool:
        """Whether calls cost nothing."""
        return self.kind == "scripted" or self.served

    @property
    def served(self) -> bool:
        """Whether a server of ours must be started for it."""
        return self.kind in ("embedded", "vllm")


def parse(spec: str, environ: Mapping[str, str] = os.environ) -> ModelSpec:
    """The meaning of `spec`; reads nothing but `environ`. Raises `UsageError`."""
    head, _, rest = spec.partition(":")
    if spec == "auto":
        given = any(environ.get(name) for name in (*_URLS, "OPENAI_API_KEY"))
        return parse("endpoint" if given else "embedded", environ)
    if spec == "scripted":
        return ModelSpec(kind="scripted", model="scripted")
    if spec == "endpoint":
        return _endpoint(environ)
    if head in ("http", "https"):
        return _url(spec, environ)
    if head in ("embedded", "vllm") and bool(rest) == (":" in spec):
        return ModelSpec(kind="vllm" if head == "vllm" else "embedded", path=rest)
    if head == "openai" and rest:
        base_url = (environ.get("OPENAI_BASE_URL") or _OPENAI).rstrip("/")
        _plain(base_url)
        if not environ.get("OPENAI_API_KEY"):
            raise UsageError(f"`{spec}` needs a key; set OPENAI_API_KEY")
        return ModelSpec(
            kind="openai", base_url=base_url, model=rest, key_variable="OPENAI_API_KEY"
        )
    if head == "litellm" and rest:
        return ModelSpec(kind="litellm", model=rest)
    raise UsageError(f"`{spec}` is not a model; write one of: {FORMS}")


def connect(
    spec: str | ModelSpec,
    *,
    environ: Mapping[str, str] = os.environ,
    scripted: Connected | None = None,
    endpoint: Endpoint | None = None,
    timeout: float = 120.0,
) -> Connected:
    """The transport for `spec`; nothing is contacted yet. `scripted` is the workflow's script and
    `endpoint` a started server's, needed for `scripted` and `served` ones. Raises `UsageError`."""
    if isinstance(spec, str):
        spec = parse(spec, environ)
    key = environ.get(spec.key_variable, "")
    if spec.kind == "scripted":
        if scripted is None:
            raise UsageError("this workflow has no script; choose another --model than `scripted`")
        return scripted
    if spec.kind == "litellm":
        from agentloop.models.litellm import LiteLLM

        return LiteLLM(spec.model, timeout=timeout)
    if spec.kind == "openai":
        from agentloop.models.openai import OpenAIProvider

        return OpenAIProvider(spec.model, api_key=key, base_url=spec.base_url, timeout=timeout)
    from agentloop.models.openai_compatible import OpenAICompatible

    if spec.served:
        if endpoint is None:
            raise UsageError(f"the {spec.kind} model is not started; start its server first")
        return OpenAICompatible(
            endpoint.base_url, endpoint.token, model=endpoint.model,
            extensions=True, native_tools=False, timeout=timeout,
        )  # fmt: skip
    return OpenAICompatible(spec.base_url, key, model=spec.model, timeout=timeout)


def describe(spec: str | ModelSpec, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """`kind`, `host` and `model`, for a person."""
    if isinstance(spec, str):
        spec = parse(spec, environ)
    host = "here" if spec.local else {"litellm": "the provider"}.get(spec.kind)
    unnamed = "first of the endpoint" if spec.kind == "openai_compatible" else "default"
    return {
        "kind": spec.kind,
        "host": host or urlsplit(spec.base_url).netloc,
        "model": spec.model or spec.path or unnamed,
    }


def _endpoint(environ: Mapping[str, str]) -> ModelSpec:
    base_url = next((environ[name] for name in _URLS if environ.get(name)), "")
    if not base_url and not environ.get("OPENAI_API_KEY"):
        raise UsageError("`endpoint` needs an address; set OPENAI_BASE_URL and OPENAI_API_KEY")
    model = next((environ[name] for name in _NAMES if environ.get(name)), "")
    base_url = base_url or _OPENAI
    if not model and _host(base_url) == _host(_OPENAI):
        raise UsageError(
            "which of OpenAI's models? set OPENAI_MODEL (or AGENTLOOP_MODEL), or write openai:NAME"
        )
    return _compatible(base_url, model, environ)


def _url(spec: str, environ: Mapping[str, str]) -> ModelSpec:
    base_url, model = urldefrag(spec)
    return _compatible(base_url, model, environ)


def _compatible(base_url: str, model: str, environ: Mapping[str, str]) -> ModelSpec:
    if not _host(base_url):
        raise UsageError(f"`{base_url}` has no host; write http(s)://HOST/v1#NAME")
    _plain(base_url)
    return ModelSpec(
        kind="openai_compatible",
        base_url=base_url.rstrip("/"),
        model=model,
        key_variable=_key_variable(base_url, environ),
    )


def _plain(base_url: str) -> None:
    """Raises `UsageError` for an address that may hold a secret, which would be shown and hashed
    with it, or that ends in a query, which no path can follow."""
    parts = urlsplit(base_url)
    if "@" in parts.netloc:
        raise UsageError(f"the address of `{_host(base_url)}` holds a secret; set OPENAI_API_KEY")
    if "?" in base_url:
        raise UsageError(
            f"the address of `{_host(base_url)}` has a query (`?...`), which a base URL cannot "
            "have; write http(s)://HOST/v1#NAME and put a key in OPENAI_API_KEY, or use "
            "litellm:PROVIDER/NAME"
        )


def _key_variable(base_url: str, environ: Mapping[str, str]) -> str:
    """The variable whose key may go to `base_url`: one bound to another host by its base-URL
    variable does not."""
    for product in ("AGENTLOOP", "OPENAI"):
        bound = environ.get(f"{product}_BASE_URL", "")
        if environ.get(f"{product}_API_KEY") and (not bound or _host(bound) == _host(base_url)):
            return f"{product}_API_KEY"
    return ""


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""
