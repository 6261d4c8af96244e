"""A stand-in for the `vllm` package, for tests of the real worker script around it."""

import sys
from pathlib import Path

STAND_IN = '''
"""What the worker needs of vLLM's API server: flags, a port, /health and the adapter orders."""
import argparse, http.server, importlib, json, os, subprocess, sys, time
parser = argparse.ArgumentParser()
for flag in ("model", "served-model-name", "host", "max-lora-rank", "max-loras", "max-cpu-loras",
             "logprobs-mode", "generation-config", "middleware", "dtype"):
    parser.add_argument("--" + flag)
for flag in ("enable-lora", "enable-prefix-caching", "enable-prompt-tokens-details",
             "disable-uvicorn-access-log"):
    parser.add_argument("--" + flag, action="store_true")
parser.add_argument("--port", type=int)
given = parser.parse_args()
print("INFO a line that vLLM prints on stdout", flush=True)
os.makedirs(given.model, exist_ok=True)
helper = subprocess.Popen(["sleep", "60"])
with open(given.model + "/seen.json", "w") as seen:
    module, _, name = given.middleware.rpartition(".")
    middleware = getattr(importlib.import_module(module), name)
    json.dump({"flags": vars(given), "env": dict(os.environ), "helper": helper.pid,
               "middleware": middleware.__module__, "path": sys.path}, seen)
if os.environ["MODE"] == "crash":
    sys.exit("RuntimeError: no memory for the cache")
if os.environ["MODE"] == "hang":
    time.sleep(60)

class Handler(http.server.BaseHTTPRequestHandler):
    loaded = set()
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200, {"status": "ok", "loaded": sorted(self.loaded)})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = body["lora_name"]
        if self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            return self.answer(401, {"error": "Unauthorized"})
        if (name in self.loaded) == self.path.endswith("/load_lora_adapter"):
            return self.answer(400, {"error": {"message": name + " is a wrong name"}})
        self.loaded ^= {name}
        self.answer(200, "done")
    def log_message(self, *_):
        pass

class Server(http.server.ThreadingHTTPServer):
    allow_reuse_address = True

Server((given.host, given.port), Handler).serve_forever()
'''


def interpreter(folder: Path, mode: str = "ok") -> Path:
    """One made in `folder`, without any installed package but with the stand-in; `mode` is how it
    starts: `ok`, `crash` or `hang`."""
    module = folder / "site" / "vllm" / "entrypoints" / "openai" / "api_server.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text(STAND_IN)
    script = folder / f"python-{mode}"
    script.write_text(
        f'#!/bin/sh\nMODE={mode} PYTHONPATH={folder}/site exec {sys.executable} -S "$@"\n'
    )
    script.chmod(0o755)
    return script
