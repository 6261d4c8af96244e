"""The shape of `workflow.yaml`: what a person writes, checked before anything runs.

Goes in: the mapping read from YAML. Comes out: a frozen `Workflow`, or one `UsageError` that names
the wrong key and the nearest valid one. Parts are given as `{use: reference, key: value ...}`;
their keys are the fields of the part and are checked when it is built (`load.build`).
"""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from agentloop.errors import UnknownName, UsageError
from agentloop.records import Budget, Json, Limits, record

Lanes = Literal["instructions", "skills", "policy"]
Tier = Literal["unit", "toy", "lm"]
Operator = Literal[">=", "<=", ">", "<"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PartSpec(BaseModel):
    """`{use: pkg.mod:Name, ...}`; every other key is a field of that part."""

    model_config = ConfigDict(extra="allow", frozen=True)
    use: str

    @property
    def fields(self) -> dict[str, Any]:
        """The part's own keys."""
        return dict(self.model_extra or {})


class Decoding(_Strict):
    """How the agent samples when it is evaluated or serves."""

    max_tokens: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)


class HeldOut(_Strict):
    """At most how many held-out tasks judge the final bundle, and how many others each lane alone.
    The gate stops early where it can."""

    n: int = Field(default=256, ge=1)
    lanes: int = Field(default=64, ge=1)


class Check(_Strict):
    """One claim that `agentloop check` measures: `metric op bar` over `seeds`."""

    id: str
    tier: Tier
    metric: str
    op: Operator = ">="
    bar: float
    seeds: tuple[int, ...] = (0,)
    source: str
    """Where the bar comes from."""
    ablation: str | None = None
    """Run with this entry of `ablations` applied."""
    use: str | None = None
    """Reference of `async measure(context) -> dict[str, float]`; default: one cycle's report."""


def _part(value: Any) -> Any:
    if isinstance(value, str):
        return {"use": value}
    if isinstance(value, dict | PartSpec):
        return value
    raise ValueError("write `package.module:Name`, or {use: package.module:Name, key: value}")


PartField = Annotated[PartSpec, BeforeValidator(_part)]


class ScriptedRun(_Strict):
    """What `--model scripted` runs on: recorded replies instead of a model."""

    tasks: PartField
    replies: str
    """A recorded JSONL file, or a reference of a function from `Request` to a reply."""
    reward: PartField | None = None
    """Default: the workflow's own."""


class Price(_Strict):
    """US dollars per million tokens."""

    prompt: float = Field(ge=0.0)
    completion: float = Field(ge=0.0)


class Rate(_Strict):
    """How fast each model's endpoint may be called; a key left out is no limit."""

    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Prompt and reply together."""
    in_flight: int | None = Field(default=None, ge=1)


class Retries(_Strict):
    """How often a call that met a passing fault is made, and the seconds for all its attempts."""

    attempts: int = Field(default=4, ge=1, le=20)
    deadline: float = Field(default=300.0, gt=0.0)


@record
class Budgets(Budget):
    """Of one run or cycle; `month` is of all cycles of the workflow in a calendar month, UTC."""

    month: Budget = Budget()


class When(_Strict):
    """What starts a cycle beside the clock; a key left out starts none."""

    trajectories: int | None = Field(default=None, ge=1)
    """So many were logged by use (not by cycles) since the last cycle began."""
    drift: float | None = Field(default=None, gt=0.0, lt=1.0)
    """The live reward fell; this is the chance of a false alarm between two cycles."""


class Schedule(_Strict):
    """When `agentloop schedule` starts cycles; its options come before these keys."""

    cron: str = ""
    """Five fields, in `timezone`."""
    timezone: str = "UTC"
    every: str = ""
    """Instead of `cron`: `30m`, `6h`, `1d`."""
    when: When = When()
    missed: Literal["skip", "once", "all"] = "once"
    """What becomes of the times that passed while nothing ran."""

    @model_validator(mode="after")
    def _one_clock(self) -> Schedule:
        if self.cron and self.every:
            raise ValueError("`cron` and `every` are two clocks; give one of them")
        return self


class Serve(_Strict):
    """What `agentloop serve` does with conversations, and how a new bundle gets to them."""

    consent: Literal["always", "ask", "never"] = "ask"
    """Which conversations are logged: all whose requests do not refuse it, those whose requests
    agree to it, or none."""
    canary: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of new conversations that go to the bundle at `WORKFLOW/canary`, while there is one."""
    promote: Literal["champion", "canary"] = "champion"
    """Where a cycle's promotion goes first."""
    reward: PartField | None = None
    """Scores a logged conversation at its end, without knowing an answer; feedback goes before."""
    patience: float = Field(default=600.0, ge=0.0)
    """Seconds that feedback has to come in before `reward` counts for the canary instead."""
    alpha: float = Field(default=0.05, gt=0.0, lt=0.5)
    """The chance of promoting a canary that is no better, and of ending one that is no worse."""
    pairs: int = Field(default=1000, ge=1)
    """Rewards of each side after which a canary that shows no gain is ended."""


class Workflow(_Strict):
    """One workflow. Keys stand in the order in which data flows."""

    title: str
    model: str = "auto"
    tasks: PartField
    graph: str = "react"
    command: tuple[str, ...] = ()
    """Instead of `graph`: a program that is the agent, e.g. `[node, ./agent.mjs]`. It reads the
    task on stdin, calls the model at `$OPENAI_BASE_URL` and prints its answer last."""
    instruction: str = ""
    tools: tuple[str, ...] = ()
    """`python`, or references of typed functions."""
    sandbox: str = "monty"
    """A profile in `sandboxes/`, or `auto`: the first of full Python that holds on this machine."""
    world: PartField | None = None
    """Each rollout has one of its own: its calls are tools, or with `tools: [python]` functions of
    the code."""
    limits: Limits = Limits()
    decoding: Decoding = Decoding()
    reward: PartField
    collect: PartField = PartSpec(use="agentloop.lanes.collect:Explore")
    lanes: dict[Lanes, PartField] = Field(default_factory=dict)
    heldout: HeldOut = HeldOut()
    probes: PartField | None = None
    """Tasks that a challenger must still solve where the champion does; a row with `expect: fail`
    is one that nobody can, and passing it is proof of a fooled grader."""
    gate: PartField = PartSpec(use="agentloop.gates.sequential:Sequential")
    budget: Budgets = Budgets()
    schedule: Schedule = Schedule()
    prices: dict[str, Price] = Field(default_factory=dict)
    concurrency: int = Field(default=64, ge=1, le=1024)
    rate: Rate = Rate()
    retries: Retries = Retries()
    fallbacks: tuple[str, ...] = ()
    """Models to ask, in order, when `model` is down; never behind a local one."""
    cache: bool = False
    """Answer a repeated identical request with a seed or temperature 0 from the log, for free."""
    serve: Serve = Serve()
    scripted: ScriptedRun | None = None
    claim: str = ""
    """One sentence for the index: what this folder shows."""
    seed_paper: str = ""
    """Title and link of the paper that this folder starts from."""
    faithful: str = ""
    """What is done as in the paper."""
    reduced: str = ""
    """What is smaller or other than in the paper."""
    requires: tuple[str, ...] = ()
    """Importable modules that must be installed."""
    modules: tuple[str, ...] = ()
    """Shipped modules whose change makes the results stale."""
    ablations: dict[str, dict[str, Json]] = Field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    @model_validator(mode="after")
    def _limits_allow_something(self) -> Workflow:
        sections = {
            "limits": asdict(self.limits), "budget": asdict(self.budget),
            "budget.month": asdict(self.budget.month),
        }  # fmt: skip
        for name, section in sections.items():
            for key, value in section.items():
                if isinstance(value, int | float) and value <= 0:
                    raise ValueError(f"`{name}.{key}` must be above 0, or left out")
        return self

    @model_validator(mode="after")
    def _one_agent(self) -> Workflow:
        if self.command and "graph" in self.model_fields_set:
            raise ValueError("`graph` and `command` are two agents; give one of them")
        if self.command and self.world is not None:
            raise ValueError("a `world` is for graphs; a `command` acts elsewhere, leave one out")
        if self.command and self.tools:
            raise ValueError("`tools` are for graphs; a `command` brings its own, leave them out")
        return self

    @model_validator(mode="after")
    def _ablations_exist(self) -> Workflow:
        for check in self.checks:
            if check.ablation is not None and check.ablation not in self.ablations:
                raise ValueError(
                    f"check `{check.id}` names ablation `{check.ablation}`, "
                    f"known: {', '.join(self.ablations) or 'none'}"
                )
        return self


def validate(data: object, where: str) -> Workflow:
    """A `Workflow`; raises `UsageError` or `UnknownName` about the first fault."""
    if not isinstance(data, dict):
        raise UsageError(f"`{where}` must be a mapping with the keys title, tasks, reward, ...")
    try:
        return Workflow.model_validate(data)
    except ValidationError as error:
        raise explain(error, where, Workflow) from None


def explain(error: ValidationError, where: str, model: type[Any]) -> UsageError:
    """The first fault of a pydantic error as one of our errors."""
    faults = error.errors(include_url=False)
    fault = next((one for one in faults if _unknown(one)), faults[0])
    path = [str(at) for at in fault["loc"]]
    if _unknown(fault):
        known = _keys(model, path[:-1])
        inside = f" of `{'.'.join(path[:-1])}`" if path[:-1] else ""
        return UnknownName(f"key{inside} in `{where}`:", path[-1], known)
    if model is Workflow and path[-1:] == ["[key]"]:
        return UnknownName(f"key of `{path[0]}` in `{where}`:", path[-2], get_args(Lanes))
    if fault["type"] == "missing":
        return UsageError(f"`{where}` lacks the key `{'.'.join(path)}`; add it")
    detail = fault["msg"].removeprefix("Value error, ")
    if not path:
        return UsageError(f"`{where}`: {detail}")
    at, given = ".".join(path), _short(fault.get("input"))
    return UsageError(f"`{where}` at `{at}`: {detail} (given: {given})")


def _unknown(fault: Any) -> bool:
    return fault["type"] in ("extra_forbidden", "unexpected_keyword_argument")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _keys(model: type[Any], path: list[str]) -> list[str]:
    inner: Any = model
    for name in path:  # a part inside a part, such as a gate's guards
        held = getattr(inner, "__dataclass_fields__", {}).get(name)
        inner = type(held.default) if held and is_dataclass(held.default) else inner
    fields: Any = getattr(inner, "model_fields", None) or getattr(inner, "__dataclass_fields__", {})
    names = {
        "limits": Limits.__dataclass_fields__, "budget": Budgets.__dataclass_fields__,
        "budget.month": Budget.__dataclass_fields__, "schedule": Schedule.model_fields,
        "schedule.when": When.model_fields,
        "decoding": Decoding.model_fields, "heldout": HeldOut.model_fields,
        "checks": Check.model_fields, "scripted": ScriptedRun.model_fields,
        "prices": Price.model_fields, "rate": Rate.model_fields, "retries": Retries.model_fields,
        "serve": Serve.model_fields,
    }  # fmt: skip
    if path and model is Workflow:
        return list(names.get(".".join(path)) or names.get(path[0], {}))
    return list(fields)
