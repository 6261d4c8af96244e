"""The embedded engine beside `transformers` generate: tokens per second on SmolLM2.

Prompts share a 400-token prefix, as the rollouts of one bundle do. The bound is physical: the
machine's measured float32 matrix rate over 2 x parameters per token.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from agentloop.models.openai_compatible import OpenAICompatible
from agentloop.records import Message, Request, Sampling
from agentloop.serving.launch import EmbeddedServer
from agentloop.serving.weights import SMOLLM2
from agentloop.workspace import model_cache
from benchmarks.harness import Check, Result, main, median, medians

NEW = 32
SYSTEM = "You are careful. " * 100
_BARE = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path, n, new, system = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
size = 1024
a = torch.randn(size, size)
for _ in range(3): a @ a
t = time.perf_counter()
for _ in range(20): a @ a
flops = 20 * 2 * size**3 / (time.perf_counter() - t)
model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
tok = AutoTokenizer.from_pretrained(path, padding_side="left")
texts = [tok.apply_chat_template([{"role": "system", "content": system},
    {"role": "user", "content": f"Tell me about the number {i}."}], tokenize=False,
    add_generation_prompt=True) for i in range(n)]
batch = tok(texts, return_tensors="pt", padding=True)
with torch.inference_mode():
    model.generate(**batch, max_new_tokens=2, do_sample=False)
    t = time.perf_counter()
    model.generate(**batch, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    wall = time.perf_counter() - t
print(json.dumps({"tokens_per_second": n * new / wall, "flops": flops,
                  "parameters": sum(p.numel() for p in model.parameters())}))
"""


async def ours(base_url: str, token: str, n: int) -> float:
    """Tokens per second of `n` requests in flight, their common prefix already computed."""
    model = OpenAICompatible(base_url, token, model="base", extensions=True, native_tools=False)

    async def one(number: int, tokens: int) -> int:
        messages = (
            Message(role="system", content=SYSTEM),
            Message(role="user", content=f"Tell me about the number {number}."),
        )
        sampling = Sampling(temperature=1.0, seed=number, max_tokens=tokens)
        reply = await model.complete(Request(messages=messages, sampling=sampling))
        return len(reply.completion_ids or ())

    await asyncio.gather(*(one(number, 2) for number in range(n)))
    began = time.perf_counter()
    made = await asyncio.gather(*(one(number, NEW) for number in range(n)))
    spent = time.perf_counter() - began
    await model.close()
    return sum(made) / spent


async def run(quick: bool) -> Result:
    """Alternate ours and the plain library at each number in flight."""
    weights = model_cache() / SMOLLM2
    sizes = (8, 32) if quick else (1, 8, 32, 64)
    rows, best, bound = [], 0.0, 1.0
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(weights, Path(folder))
        endpoint = await server.start()
        try:
            for n in sizes:
                own, plain = [], []
                for _ in range(1 if quick else 5):
                    own.append(await ours(endpoint.base_url, endpoint.token, n))
                    plain.append(await asyncio.to_thread(bare, weights, n))
                mine, found = median(own), medians(plain)
                bound = found["flops"] / (2 * found["parameters"])
                rows += [
                    {"who": "agentloop", "in_flight": n, "tokens_per_second": mine},
                    {"who": "transformers", "in_flight": n,
                     "tokens_per_second": found["tokens_per_second"]},
                ]  # fmt: skip
                best = max(best, mine)
        finally:
            await server.stop()
    rows.append(
        {"who": "matrix rate / 2 P", "in_flight": max(sizes), "tokens_per_second": round(bound, 1)}
    )
    checks = [Check("share of the matrix-rate bound", round(best / bound, 3), 0.3)]
    return Result(rows, checks, ("torch", "transformers"))


def bare(weights: Path, n: int) -> dict[str, float]:
    """The plain library in a process of its own."""
    command = [sys.executable, "-c", _BARE, str(weights), str(n), str(NEW), SYSTEM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    result: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def measure(quick: bool) -> Result:
    """The synchronous edge."""
    return asyncio.run(run(quick))


if __name__ == "__main__":
    main("engine", measure)
