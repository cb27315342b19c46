"""The watchdog's settings: one JSON file written by the role ``watchdog``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import UNSET, Meta, UnsetType

from clawdeploy.errors import ClawError
from clawdeploy.notify import NotifyConfig

Measure = Literal["cpu", "memory", "processes", "oom", "restarts", "requests", "spend", "denied"]
Step = Literal["warn", "throttle", "suspend"]

MEASURES: tuple[Measure, ...] = get_args(Measure)
STEPS: tuple[Step, ...] = get_args(Step)

_Positive = Annotated[float, Meta(gt=0)]
_Count = Annotated[int, Meta(ge=1, le=10_000)]


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One measure of a bot and what it leads to.

    A window whose value is ``limit`` or more is a hit; ``hits`` among the last ``of`` windows take the next
    step of ``ladder``, ``calm`` windows in a row without a hit take the last one back. No ladder: no rule.
    """

    limit: _Positive
    hits: _Count
    of: _Count
    calm: _Count
    ladder: tuple[Step, ...]

    def __post_init__(self) -> None:
        if self.hits > self.of:
            raise ValueError(f"hits ({self.hits}) cannot be more than of ({self.of})")
        order = [STEPS.index(step) for step in self.ladder]
        if order != sorted(set(order)):
            raise ValueError(f"ladder must be some of {', '.join(STEPS)}, in this order")


class RuleChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a plan has otherwise in a rule."""

    limit: float | UnsetType = UNSET
    hits: int | UnsetType = UNSET
    of: int | UnsetType = UNSET
    calm: int | UnsetType = UNSET
    ladder: tuple[Step, ...] | UnsetType = UNSET


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Times in seconds, sizes in bytes.

    interval: between two looks; window: what one value of a rule is made of; grace: how long nothing is
    judged after a container was made or resumed; throttle: share of its CPUs that a throttled bot keeps;
    disk_low: free bytes below which the operator is told.
    """

    interval: Annotated[float, Meta(ge=0.2)]
    window: _Positive
    grace: Annotated[float, Meta(ge=0)]
    dry_run: bool
    throttle: Annotated[float, Meta(gt=0, lt=1)]
    rules: dict[Measure, Rule]
    plan_rules: dict[str, dict[Measure, RuleChange]]
    disk_low: Annotated[int, Meta(ge=0)]
    metrics_port: Annotated[int, Meta(ge=0, le=65535)]
    state_file: Path
    status_file: Path
    notify: NotifyConfig

    def __post_init__(self) -> None:
        if self.window < self.interval:
            raise ValueError(f"window ({self.window} s) cannot be shorter than interval ({self.interval} s)")
        if missing := set(MEASURES) - self.rules.keys():
            raise ValueError(f"rules lacks {', '.join(sorted(missing))}")
        for plan in self.plan_rules:
            self.rules_of(plan)

    def rules_of(self, plan: str) -> Mapping[Measure, Rule]:
        """The rules for bots of this plan; ValueError if its changes make no sense."""
        changes = self.plan_rules.get(plan)
        if not changes:
            return self.rules
        return {
            measure: Rule(**(msgspec.structs.asdict(rule) | _given(changes.get(measure))))
            for measure, rule in self.rules.items()
        }


def _given(change: RuleChange | None) -> dict[str, Any]:
    if change is None:
        return {}
    return {name: value for name, value in msgspec.structs.asdict(change).items() if value is not UNSET}


def load(path: Path) -> Config:
    """Read the settings; ClawError("watchdog_config") names the setting that cannot be used."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Config, dec_hook=_decode)
    except (OSError, msgspec.DecodeError) as error:
        raise ClawError("watchdog_config", f"{path}: {error}; run prepare_host again.") from None


def _decode(wanted: type, value: Any) -> Any:
    if wanted is Path and isinstance(value, str):
        return Path(value)
    raise NotImplementedError(wanted)
