"""Generation requests in, completions out, from any thread: the engine around a decoder.

The decision worth knowing: one worker thread owns the model, the caches and the adapters. Everyone
else hands it work through a bounded inbox and gets a future, so an event loop never blocks and
nothing inside needs a lock.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from agentloop.errors import UsageError
from agentloop.serving.adapters import Adapter, load_adapter
from agentloop.serving.batch import Limits, Row
from agentloop.serving.decode import Decoder
from agentloop.serving.model import LlamaLike, is_native
from agentloop.serving.plain import PlainDecoder
from agentloop.serving.sampling import Draw, Sampling
from agentloop.serving.weights import check_model_dir
from agentloop.trajectories.chat_format import end_of_turn

log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Busy(Exception):
    """The inbox is full; try again later."""


class NotServed(LookupError):
    """No model or adapter of that name."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run. `dtype` "auto" is float32 on CPU and bfloat16 on a GPU; `gather_ms` is how long
    an idle engine waits for company before it starts a batch; `pending` bounds the inbox."""

    name: str = "base"
    dtype: str = "auto"
    device: str = "auto"
    limits: Limits = field(default_factory=Limits)
    context: int = 0
    gather_ms: float = 5.0
    pending: int = 1024


@dataclass(frozen=True, slots=True)
class Generation:
    """What to generate. `prompt_logprobs` also scores the prompt; `max_tokens` 0 only scores."""

    prompt: list[int]
    sampling: Sampling
    model: str = ""
    prompt_logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Generated:
    """`token_ids` are exactly what was sampled (end token included), `logprobs` one per id in nats;
    `text` has no special tokens and ends before a stop string. `cached` prompt tokens were not
    computed for this request. `prompt_logprobs` has no entry for the first token."""

    prompt: list[int]
    token_ids: list[int]
    logprobs: list[float]
    text: str
    finish: str
    cached: int
    prompt_logprobs: list[float] | None


class Engine:
    """Loads a model directory; `submit` from any thread; `close` when done."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self.options = options or Options()
        check_model_dir(folder)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
        device = self.options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        kind = self.options.dtype
        if kind == "auto":
            kind = "bfloat16" if device.startswith("cuda") else "float32"
        if kind not in DTYPES:
            raise UsageError(f"dtype `{kind}` is not one of {', '.join(DTYPES)}")
        self.decoder: Decoder | PlainDecoder
        if is_native(config):
            model = LlamaLike.load(folder, dtype=DTYPES[kind], device=device)
            self.decoder = Decoder(model, self.options.limits)
            self.context, self.vocab = model.shape.context, model.shape.vocab
        else:
            self.decoder = PlainDecoder(folder, dtype=DTYPES[kind], device=device)
            self.context, self.vocab = self.decoder.context, self.decoder.vocab
        self.context = min(self.context, self.options.context or self.context)
        self.eos = _ends(self.tokenizer, folder)
        self.adapters: dict[str, Adapter] = {}
        self._loads = 0
        self._inbox: queue.Queue[Callable[[], None] | None] = queue.Queue(self.options.pending)
        self._rows: dict[int, tuple[Row, Callable[[], None], Future[Generated]]] = {}
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, work: Generation) -> Future[Generated]:
        """Queue a request; cancel the future to stop it.

        Raises `ValueError` on ids or lengths that cannot work, `NotServed` on an unknown model and
        `Busy` when the inbox is full.
        """
        adapter = self._adapter(work.model)
        prompt, sampling = work.prompt, work.sampling
        if not prompt:
            raise ValueError("the prompt has no tokens")
        if min(prompt) < 0 or max(prompt) >= self.vocab:
            raise ValueError(f"prompt token ids must be between 0 and {self.vocab - 1}")
        if len(prompt) + sampling.max_tokens > self.context:
            raise ValueError(
                f"context overflow: {len(prompt)} prompt tokens and max_tokens "
                f"{sampling.max_tokens} exceed this model's {self.context} tokens"
            )
        future: Future[Generated] = Future()
        self._post(lambda: self._begin(work, adapter, future))
        return future

    def load(self, name: str, folder: Path) -> Future[None]:
        """Serve the peft adapter at `folder` as `name`, replacing one of that name. The future
        raises `UsageError` when the directory cannot be served."""
        if name == self.options.name:
            raise UsageError(f"`{name}` is the base model's name")
        decoder = self.decoder
        if isinstance(decoder, PlainDecoder):
            raise UsageError("this architecture is served without adapters")
        shape, dtype, device = decoder.model.shape, decoder.model.dtype, decoder.model.device

        def action() -> None:
            self._loads += 1
            uid = f"{name}#{self._loads}"
            self.adapters[name] = load_adapter(
                name, folder, shape, uid=uid, dtype=dtype, device=device
            )

        return self._call(action)

    def unload(self, name: str) -> Future[None]:
        """Stop serving adapter `name`; requests in flight end with it. `NotServed` if unknown."""
        if name not in self.adapters:
            raise NotServed(f"no adapter `{name}` is loaded")

        def action() -> None:
            self.adapters.pop(name, None)

        return self._call(action)

    @property
    def alive(self) -> bool:
        """Whether the worker runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop the worker; requests in flight fail. Idempotent."""
        if self._thread.is_alive():
            self._inbox.put(None)
            self._thread.join(timeout=10)

    def _adapter(self, name: str) -> Adapter | None:
        if name in ("", self.options.name):
            return None
        try:
            return self.adapters[name]
        except KeyError:
            known = ", ".join([self.options.name, *self.adapters])
            raise NotServed(f"no model `{name}` is served; known: {known}") from None

    def _post(self, action: Callable[[], None]) -> None:
        if not self._thread.is_alive():
            raise Busy("the engine has stopped")
        try:
            self._inbox.put_nowait(action)
        except queue.Full:
            raise Busy(f"{self.options.pending} requests are waiting already") from None

    def _call(self, action: Callable[[], None]) -> Future[None]:
        future: Future[None] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                action()
            except Exception as error:  # handed to whoever waits
                future.set_exception(error)
            else:
                future.set_result(None)

        self._post(run)
        return future

    def _begin(self, work: Generation, adapter: Adapter | None, future: Future[Generated]) -> None:
        if future.cancelled():
            return
        try:
            scores = self.decoder.score(work.prompt, adapter) if work.prompt_logprobs else None
        except Exception as error:  # handed to whoever waits
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
            return
        sampling = work.sampling
        if sampling.max_tokens == 0:
            if future.set_running_or_notify_cancel():
                future.set_result(Generated(work.prompt, [], [], "", "length", 0, scores))
            return
        row = Row(
            prompt=work.prompt,
            draw=Draw(sampling),
            adapter=adapter,
            eos=self.eos,
            stops=_stopper(self.tokenizer, sampling.stop) if sampling.stop else None,
            cancelled=future.cancelled,
        )

        def end() -> None:
            if row.finish != "cancelled" and future.set_running_or_notify_cancel():
                future.set_result(_result(self.tokenizer, row, scores))

        self._rows[id(row)] = (row, end, future)
        self.decoder.add(row)

    def _work(self) -> None:
        while True:
            if not self._take():
                break
            try:
                for row in self.decoder.step() if self.decoder.busy else ():
                    self._rows.pop(id(row))[1]()
            except Exception as error:  # one bad step must not end the server
                log.exception("a decoding step failed")
                self._fail(error)
        self._fail(RuntimeError("the engine has stopped"))

    def _take(self) -> bool:
        """Run what lies in the inbox; when idle, wait for it. False: close."""
        idle = not self.decoder.busy
        while True:
            try:
                action = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if action is None:
                return False
            action()
            if idle and self.decoder.busy:
                time.sleep(self.options.gather_ms / 1e3)  # rollouts start together
                idle = False

    def _fail(self, error: Exception) -> None:
        for _, _, future in self._rows.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(error)
        self._rows.clear()
        if isinstance(self.decoder, Decoder):  # its caches may be half-written
            self.decoder = Decoder(self.decoder.model, self.decoder.limits)
        else:
            self.decoder.waiting.clear()


def _ends(tokenizer: PreTrainedTokenizerBase, folder: Path) -> frozenset[int]:
    found: list[int | None] = [tokenizer.eos_token_id, end_of_turn(tokenizer)]
    if (folder / "generation_config.json").is_file():
        value = GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
        found += value if isinstance(value, list) else [value]
    return frozenset(token for token in found if token is not None)


def _stopper(
    tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]
) -> Callable[[list[int]], bool]:
    # A stop string of n characters spans at most about 4n byte-level tokens.
    tail = 4 * max(map(len, stop)) + 8

    def stops(tokens: list[int]) -> bool:
        text = tokenizer.decode(tokens[-tail:], skip_special_tokens=True)
        return any(mark in text for mark in stop)

    return stops


def _result(tokenizer: PreTrainedTokenizerBase, row: Row, scores: list[float] | None) -> Generated:
    text = tokenizer.decode(row.tokens, skip_special_tokens=True)
    cuts = [at for mark in row.draw.sampling.stop if (at := text.find(mark)) >= 0]
    if cuts:
        text = text[: min(cuts)]
    return Generated(row.prompt, row.tokens, row.logprobs, text, row.finish, row.cached, scores)
