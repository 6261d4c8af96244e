"""Name what training left: immutable policy directories with a checked manifest.

In: a `TrainingResult`. Out: a `Policy` record and `root/<id>/` with the two files of an adapter, or
of a whole model where all weights were learned. Files are copied, so that a finished job can still
be found; nothing is ever overwritten, and a policy is compared with its manifest each time before
it is used.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from agentloop.errors import StoreError, UnknownName, UsageError
from agentloop.files import new_directory, read_manifest, sha256_of, write_manifest
from agentloop.policies.finite import check_finite
from agentloop.records import Policy, TrainingResult, artifact_id
from agentloop.trajectories import codec

ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
FULL = ("config.json", "model.safetensors")
"""A configuration and its weights: all that a policy is, as an adapter or as a whole model.
Anything else (pickles, checkpoints) stays behind."""

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


class Policies:
    """The policies below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def admit(
        self, result: TrainingResult, *, base: str, role: str = "agent",
        dataset: str | None = None, parents: Sequence[str] = (),
    ) -> Policy:  # fmt: skip
        """Copy an adapter or a whole model in and return its record. The same weights for the same
        base and role are the same policy, whose first record stays.

        Raises `StoreError` when the weights are not what the trainer reported, `PolicyError` when
        they are not all finite numbers.
        """
        source = Path(result.adapter)
        files = files_of(source)
        for name in files:
            if not (source / name).is_file() or (source / name).is_symlink():
                raise StoreError(f"`{source / name}` is missing; train the policy again")
        if sha256_of(source / files[1]) != result.sha256:
            raise StoreError(f"`{source / files[1]}` is not what the trainer wrote (sha256)")
        check_finite(source / files[1])
        policy = Policy(
            base=base,
            sha256=result.sha256,
            role=role,
            dataset=dataset,
            parents=tuple(parents),
            metrics=dict(result.metrics),
        )
        target = self.root / policy_id(policy)
        if not target.exists():
            # Whoever admits the same policy first wins; the check below covers both.
            with suppress(FileExistsError), new_directory(target) as draft:
                for name in files:
                    shutil.copyfile(source / name, draft / name)
                write_manifest(draft, {"policy": codec.to_json(policy)})
        return self.load(policy_id(policy))

    def path(self, name: str) -> Path:
        """The policy's directory, after every file was compared with the manifest, and the manifest
        with the name.

        Raises `UnknownName`, or `StoreError` when a file is missing or was changed, or all of it is
        another policy's.
        """
        self.load(name)
        return self._directory(name)

    def load(self, name: str) -> Policy:
        """The record of a policy, checked as by `path`."""
        directory = self._directory(name)
        manifest = read_manifest(directory)
        policy = codec.from_json(Policy, manifest.get("policy"))
        weights = {entry["sha256"] for entry in manifest["files"].values()}
        if policy_id(policy) != name or policy.sha256 not in weights:
            raise StoreError(f"`{directory}` holds another policy; restore it or train it again")
        return policy

    def names(self) -> list[str]:
        """Ids of all policies, sorted."""
        if not self.root.is_dir():
            return []
        return sorted(entry.name for entry in self.root.iterdir() if _SAFE.fullmatch(entry.name))

    def _directory(self, name: str) -> Path:
        if not _SAFE.fullmatch(name):
            raise UsageError(f"`{name}` is not a policy id; ids are like `policy-0123456789abcdef`")
        if not (self.root / name).is_dir():
            raise UnknownName("policy", name, self.names())
        return self.root / name


def files_of(directory: Path) -> tuple[str, str]:
    """The names of the configuration and the weights that `directory` holds or should hold:
    `ADAPTER`, unless there is a whole model and no adapter."""
    present = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
    return FULL if set(FULL) <= present and not set(ADAPTER) & present else ADAPTER


def policy_id(policy: Policy) -> str:
    """The directory's name and the name it is served under."""
    return artifact_id(policy)
