"""The redactor on the log's write path: megabytes a second of JSON that holds no secret.

The bodies are episodes of prose, code, token ids and log-probs from a seed. Each must be asked
about before it is stored; the yardstick is the compression that it goes through next. What a body
costs, in microseconds, is in its row: 10,000 rows a second leave 100 for one. CPU time of one
process.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import zstandard

from agentloop.trajectories.redact import Redactor
from benchmarks.harness import Check, Result, main, median

_TEXT = (
    "the model reads what the tool printed then writes a number and a word about it for each value "
    "in range(10): total += value * 2  # print(f'{total:.3f}') return result (x, y) = solve(a / b) "
    "if n % 7 == 0 else None  import math  math.gcd(1071, 462)  https://example.org/docs/page.html"
)
BODIES, REPEATS = 400, 7


def body(dice: random.Random, nodes: int) -> bytes:
    """One episode as JSON, about 1.2 kB a node."""
    made = [
        {
            "parent": number,
            "message": {
                "role": "assistant",
                "content": " ".join(dice.choices(_TEXT.split(), k=60)),
            },
            "token_ids": [dice.randrange(50_000) for _ in range(40)],
            "logprobs": [-dice.random() for _ in range(20)],
        }
        for number in range(nodes)
    ]
    name = f"{dice.getrandbits(64):016x}"
    episode = {"id": f"ep-{name}", "bundle": f"bundle-{name}", "trajectories": [{"nodes": made}]}
    return json.dumps(episode, separators=(",", ":")).encode()


def speed(work: Callable[[bytes], object], bodies: list[bytes], repeats: int) -> float:
    """Median megabytes per CPU second."""
    size = sum(map(len, bodies)) / 1e6
    found = []
    for _ in range(repeats):
        start = time.process_time()
        for one in bodies:
            work(one)
        found.append(size / (time.process_time() - start))
    return median(found)


def measure(quick: bool) -> Result:
    """Two sizes of bodies, three numbers of known values."""
    dice = random.Random(0)
    repeats = 5 if quick else REPEATS
    alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    known = {f"K{number}": "".join(dice.choices(alphabet, k=40)) for number in range(500)}
    redactors = {n: Redactor(dict(list(known.items())[:n])) for n in (0, 8, 500)}
    result = Result()
    for nodes, count in ((2, BODIES), (50, BODIES // 25)):
        bodies = [body(dice, nodes) for _ in range(count)]
        size = round(sum(map(len, bodies)) / len(bodies))
        packed = speed(zstandard.ZstdCompressor(level=1).compress, bodies, repeats)
        result.rows.append({"who": "zstd level 1", "bytes": size, "mb_per_second": packed})
        for values, redact in redactors.items():
            redact.suspects(bodies[0])  # builds its tables
            looked = sum(map(redact.suspects, bodies)) / len(bodies)
            found = speed(redact.suspects, bodies, repeats)
            result.rows.append(
                {"who": "redactor", "known_values": values, "bytes": size, "mb_per_second": found,
                 "us_per_body": round(size / found, 1), "looked_at_closer": looked}
            )  # fmt: skip
            what = f"{size} bytes, {values} known values"
            result.checks += [
                Check(f"MB/s ({what})", found, 200.0),
                Check(f"speed over compression's ({what})", round(found / packed, 2), 1.0),
            ]
    return result


if __name__ == "__main__":
    main("redaction", measure)
