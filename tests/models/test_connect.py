"""What a model's one-line name means, and whose key goes where."""

from __future__ import annotations

import asyncio
import importlib.util
import subprocess
import sys

import pytest
from fake_endpoint import FakeEndpoint

from agentloop.errors import MissingDependency, UsageError
from agentloop.models import litellm as litellm_home
from agentloop.models.connect import ModelSpec, connect, describe, parse
from agentloop.models.litellm import LiteLLM
from agentloop.models.meter import Meter, Metered
from agentloop.models.openai import OpenAIProvider
from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.models.retry import Retrying
from agentloop.models.scripted import Scripted
from agentloop.records import Completion, Endpoint, Message, Request

KEY = {"OPENAI_API_KEY": "k"}


def compatible(base_url: str, model: str = "", key_variable: str = "") -> ModelSpec:
    return ModelSpec(
        kind="openai_compatible", base_url=base_url, model=model, key_variable=key_variable
    )


@pytest.mark.parametrize(
    ("spec", "environ", "meant"),
    [
        ("scripted", {}, ModelSpec(kind="scripted", model="scripted")),
        ("embedded", {}, ModelSpec(kind="embedded")),
        ("embedded:/a/b", {}, ModelSpec(kind="embedded", path="/a/b")),
        ("litellm:x/y", {}, ModelSpec(kind="litellm", model="x/y")),
        (
            "openai:m", KEY,
            ModelSpec(kind="openai", base_url="https://api.openai.com/v1", model="m",
                      key_variable="OPENAI_API_KEY"),
        ),
        ("http://h:1/v1/#m", {}, compatible("http://h:1/v1", "m")),
        ("https://h/v1#a/b", KEY, compatible("https://h/v1", "a/b", "OPENAI_API_KEY")),
        (
            "endpoint", {"OPENAI_BASE_URL": "http://h/v1", **KEY},
            compatible("http://h/v1", "", "OPENAI_API_KEY"),
        ),
        (
            "endpoint",
            {"OPENAI_BASE_URL": "http://o/v1", "AGENTLOOP_BASE_URL": "http://a/v1",
             "OPENAI_MODEL": "o", "AGENTLOOP_MODEL": "a", **KEY},
            compatible("http://a/v1", "a"),  # the key is bound to the other host
        ),
        ("auto", {}, ModelSpec(kind="embedded")),
        ("auto", {"AGENTLOOP_BASE_URL": "http://a/v1"}, compatible("http://a/v1")),
        (
            "auto", {"OPENAI_MODEL": "m", **KEY},
            compatible("https://api.openai.com/v1", "m", "OPENAI_API_KEY"),
        ),
    ],
)  # fmt: skip
def test_forms(spec: str, environ: dict[str, str], meant: ModelSpec) -> None:
    assert parse(spec, environ) == meant


@pytest.mark.parametrize(
    ("spec", "environ", "says"),
    [
        ("gpt", {}, "write one of: scripted"),
        ("", {}, "write one of: scripted"),
        ("embedded:", {}, "write one of"),
        ("litellm:", {}, "write one of"),
        ("http://", {}, "no host"),
        ("http://u:secret@h/v1#m", {}, "address of `h` holds a secret"),
        ("http://h/v1?key=k#m", {}, "address of `h` has a query"),
        ("endpoint", {"OPENAI_BASE_URL": "http://h/v1?key=k"}, "address of `h` has a query"),
        ("openai:m", {"OPENAI_BASE_URL": "http://h/v1?key=k", **KEY}, "`h` has a query"),
        ("endpoint", {"OPENAI_BASE_URL": "http://u:secret@h/v1"}, "address of `h` holds"),
        ("openai:m", {}, "set OPENAI_API_KEY"),
        ("endpoint", {}, "set OPENAI_BASE_URL"),
        ("auto", KEY, "set OPENAI_MODEL"),
    ],
)
def test_what_cannot_work_says_what_to_do(spec: str, environ: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(spec, environ)


def test_our_own_key_goes_first_and_a_bound_key_stays_home() -> None:
    both = {"AGENTLOOP_API_KEY": "a", "OPENAI_API_KEY": "o"}
    assert parse("http://h/v1#m", both).key_variable == "AGENTLOOP_API_KEY"
    bound = {**KEY, "OPENAI_BASE_URL": "http://home/v1"}
    assert parse("http://else/v1#m", bound).key_variable == ""
    assert parse("http://home/v2#m", bound).key_variable == "OPENAI_API_KEY"


def test_builds_the_transports() -> None:
    script = Scripted(["x"])
    assert connect("scripted", scripted=script) is script
    assert isinstance(connect("openai:m", environ=KEY), OpenAIProvider)
    if importlib.util.find_spec("litellm"):
        assert isinstance(connect("litellm:x/y"), LiteLLM)
    else:
        with pytest.raises(MissingDependency, match="api"):
            connect("litellm:x/y")
    endpoint = Endpoint(base_url="http://127.0.0.1:9/v1", token="t", model="m")
    local = connect("embedded", endpoint=endpoint)
    assert isinstance(local, OpenAICompatible)
    assert (local.model, local.extensions, local.native_tools) == ("m", True, False)
    remote = connect("http://h/v1#m", environ=KEY, timeout=3)
    assert isinstance(remote, OpenAICompatible)
    assert (remote.extensions, remote.native_tools, remote.timeout) == (False, True, 3)


@pytest.mark.parametrize("spec", ["scripted", "embedded"])
def test_what_must_be_lent(spec: str) -> None:
    with pytest.raises(UsageError):
        connect(spec, environ={})


def test_describe() -> None:
    assert describe("http://h:1/v1", {}) == {
        "kind": "openai_compatible", "host": "h:1", "model": "first of the endpoint",
    }  # fmt: skip
    assert describe("embedded", {})["model"] == "default"
    assert parse("embedded", {}).local and not parse("litellm:x/y", {}).local


@pytest.mark.parametrize("installed", ["1.82.7", "1.107.0", "1.107.3", "2.0.0"])
def test_a_litellm_that_must_not_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, installed: str
) -> None:
    monkeypatch.setattr(litellm_home, "version", lambda name: installed)
    with pytest.raises(UsageError, match="not used"):
        LiteLLM("x/y")


def test_without_litellm_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise litellm_home.PackageNotFoundError(name)

    monkeypatch.setattr(litellm_home, "version", absent)
    with pytest.raises(MissingDependency, match=r'pip install "agentloop\[api\]"'):
        LiteLLM("x/y")


def test_parsing_and_describing_import_nothing_heavy() -> None:
    code = (
        "import sys; from agentloop.models.connect import describe; describe('embedded', {});"
        "print([m for m in ('aiohttp', 'openai', 'litellm', 'langgraph') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert shown.stdout.strip() == "[]"


def test_an_endpoint_and_a_key_in_the_environment_are_enough() -> None:
    request = Request(messages=(Message(role="user", content="hi"),), key="e/0")
    meter = Meter(prices={"first": (1.0, 1.0)})

    async def scenario(base_url: str) -> Completion:
        transport = connect("auto", environ={"OPENAI_BASE_URL": base_url, **KEY})
        try:
            return await Metered(Retrying(transport, base=0.0), meter).complete(request)
        finally:
            await transport.close()

    with FakeEndpoint([503, "hello"], key="k", models=("first",)) as fake:
        done = asyncio.run(scenario(fake.base_url))
    assert done.message.content == "hello"
    assert meter.total.calls == fake.calls == 2
    assert meter.total.usd == pytest.approx(10e-6)
