"""What is learned from episodes: rows, datasets, versioned artifacts, proposals, verdicts."""

from __future__ import annotations

from dataclasses import field
from typing import Literal, TypeAlias

from agentloop.records.base import Json, LaneName, content_id, record
from agentloop.records.exchange import Message, Sampling


@record
class Row:
    """One training row: a prompt, then segments of exact token ids of which some were sampled.

    `prompt` is rendered by the trainer with the chat format of the base model (this is how
    examples are left out of the prompt); when it is empty the segments carry all tokens.
    """

    episode: str
    prompt: tuple[Message, ...]
    segments: tuple[tuple[int, ...], ...]
    sampled: tuple[bool, ...]
    """One per segment; only sampled segments get a loss."""
    logprobs: tuple[tuple[float, ...], ...] = ()
    """One tuple per segment, empty for the unsampled."""
    weight: float = 1.0
    group: str = ""
    """Rows of one group are samples of one task from one start."""
    policy: str | None = None
    """The version that sampled it."""
    sampling: Sampling | None = None
    """How it was sampled: `logprobs` are under this temperature and cut-off; `None` is unknown."""
    advantages: tuple[float, ...] = ()
    """One per segment, 0 for the unsampled; empty without credit."""
    reward: float | None = None
    """The episode's total, before any credit."""
    share: float | None = None
    """How much of its group was right, those left out included, in [0, 1]."""
    pair: str = ""
    """Names the two rows of a preference."""
    label: bool | None = None
    """Whether it is the preferred of its pair or, where it has none, right; `None` is not told."""
    attempts: tuple[int, ...] = ()
    """Which attempt each segment belongs to, from 1; empty where there is only one."""


@record
class Dataset:
    """A frozen dataset artifact: the file is `datasets/<id>/rows.jsonl` in the home."""

    rows: int
    tokens: int
    sha256: str
    episodes: tuple[str, ...]
    spec: dict[str, Json] = field(default_factory=dict)


@record
class Instruction:
    """A version of the instruction text."""

    text: str
    operator: str = "seed"
    """Which operator made it: seed, example, reflect, edit."""
    parents: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    """Ids of the episodes it was made from."""


@record
class Skill:
    """A version of a skill; `document` is a whole SKILL.md in the Agent Skills format."""

    name: str
    description: str
    document: str
    parents: tuple[str, ...] = ()
    evidence: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    """The other files of its folder by relative path: text, or a data URL where they are none."""


@record
class Policy:
    """A version of the local policy in `policies/<id>/`: a LoRA adapter over `base`, or a whole
    model where all weights were learned."""

    base: str
    sha256: str
    """Of the weights file."""
    role: str = "agent"
    dataset: str | None = None
    parents: tuple[str, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)


@record
class Bundle:
    """The unit that runs, is evaluated, is promoted and is rolled back: ids of one version each."""

    instruction: str
    skills: tuple[str, ...] = ()
    policies: dict[str, str] = field(default_factory=dict)
    """Role -> policy id; a role that is absent runs the base model."""


Artifact: TypeAlias = Instruction | Skill | Policy | Bundle | Dataset


@record
class TrainingJob:
    """One trainer process: `job.json` in its directory."""

    method: str
    """Reference of the training function, `pkg.mod:name`."""
    base: str
    """Directory of the base model (safetensors)."""
    dataset: str
    """Path of the frozen rows file."""
    out: str
    """Directory that the adapter is written to, atomically."""
    adapter: str | None = None
    """Directory of the adapter to start from."""
    settings: dict[str, Json] = field(default_factory=dict)
    seed: int = 0


@record
class TrainingResult:
    """What the trainer left: the adapter's directory and sha256 of its weights, and metrics."""

    adapter: str
    sha256: str
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0


def kind_of(artifact: Artifact) -> str:
    """`instruction`, `skill`, `policy`, `bundle` or `dataset`."""
    return type(artifact).__name__.lower()


def artifact_id(artifact: Artifact) -> str:
    """The artifact's one name, in the log and on the disk: a hash of its content without its
    history (parents, evidence, metrics), so that the same thing made twice is the same version."""
    parts: tuple[object, ...]
    match artifact:
        case Instruction():
            parts = (artifact.text,)
        case Skill():
            beside = (artifact.files,) if artifact.files else ()  # ids are older than files
            parts = (artifact.name, artifact.document, *beside)
        case Policy():
            parts = (artifact.base, artifact.sha256, artifact.role)
        case Bundle():
            parts = (artifact.instruction, artifact.skills, artifact.policies)
        case Dataset():
            parts = (artifact.sha256, artifact.spec)
    return content_id(kind_of(artifact), *parts)


@record
class Proposal:
    """What a lane brings before the gate."""

    lane: LaneName
    state: Literal["proposed", "skipped", "failed"]
    bundle: Bundle | None = None
    """The champion with this lane's artifacts changed."""
    candidate: str | None = None
    """Id of the artifact to name it by (the first of several)."""
    reason: str = ""
    seconds: float = 0.0


@record
class Verdict:
    """A gate's decision with its raw numbers."""

    subject: str
    """A lane's name, `joint`, or `joint-without-<lane>`."""
    champion: str
    challenger: str
    n: int
    champion_rate: float
    challenger_rate: float
    effect: float
    ci95: tuple[float, float]
    p: float
    tokens_ratio: float
    passed: bool
    reason: str
    outcomes: tuple[tuple[str, int, int], ...] = ()
    """(task id, champion right, challenger right) per pair."""
    excluded: int = 0
    """Pairs left out because the champion was not scored."""
    planned: int = 0
    """Pairs that there would have been without stopping early."""
    stopped: str = ""
    """Why it ended: `better`, `cheaper`, `worse`, `futile` (too small to matter), `limit` (all
    tasks used) or `refused` (by a guard, or the bundle could not be served or run)."""
    alpha: float = 0.0
    """The level it was tested at, its share of the gate's."""
    evidence: dict[str, float] = field(default_factory=dict)
    """The most that the stake of each bet was worth; empty for a test of a fixed size."""
    guards: dict[str, Json] = field(default_factory=dict)
    """Raw numbers of the guards, by name."""
    final: bool = False
    """Whether this one decided about the promotion."""
    use: int = 0
    """The how-manieth cycle this is that looked at some of these tasks."""


@record
class Budget:
    """Hard limits, checked before each call; `None` is no limit."""

    usd: float | None = None
    tokens: int | None = None
    seconds: float | None = None
    rollouts: int | None = None


@record
class Limits:
    """Limits of one rollout."""

    turns: int = 6
    tokens: int = 4096
    """Sampled tokens over all turns."""
    seconds: float = 120.0
    usd: float | None = None
