"""When a training will end, and the rule for one that cannot end in time; pure functions over seconds and steps."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

LEAST_SHARE = 0.5
"""A training is shortened to no less than this share of its steps: below, another recipe is the better use of time."""
WARMED_STEPS, WARMED_SHARE = 10, 0.02
"""Before so many steps, and this share of all, the speed is not trusted: the first steps are slow."""
TOLERANCE = 1.1
"""A running training is given up only where its projection misses the deadline by more than a tenth."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the rule says of a training before it starts.

    Attributes:
        action: "run" as it is, "shorten" to `epochs`, or "stop".
        steps, epochs: What is then trained; 0 where it is stopped. seconds: How long that will take.
        reason: In words, for the record; empty for "run".
    """

    action: Literal["run", "shorten", "stop"]
    steps: int
    epochs: float
    seconds: float
    reason: str = ""


def projected_seconds(step_seconds: float, steps: int, startup: float = 0.0) -> float:
    """Seconds that so many steps take, after `startup` seconds for imports, loading and tokenizing."""
    return startup + step_seconds * steps


def affordable_steps(step_seconds: float, seconds: float, startup: float = 0.0) -> int:
    """The most steps that end within so many seconds."""
    if step_seconds <= 0:
        raise ValueError(f"a step takes more than 0 seconds, got {step_seconds}")
    return max(0, math.floor((seconds - startup) / step_seconds))


def steps_of(rows: int, batch: int, epochs: float, *, gpus: int = 1) -> int:
    """Optimizer steps of a training, as transformers' Trainer counts them; `batch` is rows a step on each GPU."""
    return max(1, math.ceil(max(1, math.ceil(rows / (batch * gpus))) * epochs))


def verdict(*, step_seconds: float, steps: int, epochs: float, seconds: float, startup: float = 0.0) -> Verdict:
    """The rule: run what fits, shorten what fits by half or more, stop the rest.

    Fewer epochs keep the whole schedule, warm-up to end, unlike a training that is cut off.

    Args:
        step_seconds: Of one optimizer step, as the mini-run measured it.
        steps, epochs: Of the recipe. seconds: Until the deadline. startup: Before the first step.
    """
    takes = projected_seconds(step_seconds, steps, startup)
    if takes <= seconds:
        return Verdict(action="run", steps=steps, epochs=epochs, seconds=takes)
    fitting = min(steps, affordable_steps(step_seconds, seconds, startup))
    said = f"{steps} steps of {step_seconds:.3g} s would take {takes:.0f} s, and {max(0.0, seconds):.0f} s are left"
    if fitting < max(1.0, LEAST_SHARE * steps):
        why = f"{said}: fewer than {LEAST_SHARE:.0%} of them fit"
        return Verdict(action="stop", steps=0, epochs=0.0, seconds=startup, reason=why)
    shorter = math.floor(epochs * fitting / steps * 1000) / 1000  # rounded down, so that it fits
    why = f"{said}: num_train_epochs {epochs:g} -> {shorter:g}"
    return Verdict(
        action="shorten",
        steps=fitting,
        epochs=shorter,
        seconds=projected_seconds(step_seconds, fitting, startup),
        reason=why,
    )


def hopeless(done: int, steps: int, elapsed: float, seconds_left: float, *, untimed: int = 0) -> str | None:
    """Why a running training cannot end in time; None where it can, or where it is too early to tell.

    Args:
        done: Steps that took `elapsed` seconds. steps: of the whole training.
        seconds_left: Until the deadline.
        untimed: Steps before those, which neither number counts.
    """
    if done < max(WARMED_STEPS, WARMED_SHARE * steps) or done >= steps:
        return None
    remaining = (steps - done) * elapsed / done
    if remaining <= max(0.0, seconds_left) * TOLERANCE:
        return None
    so_far, left = f"after {untimed + done} of {untimed + steps} steps", max(0.0, seconds_left)
    return f"{so_far} the rest would take {remaining:.0f} s, and {left:.0f} s are left"
