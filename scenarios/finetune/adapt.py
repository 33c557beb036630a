"""A training as it was asked for, or as near to that as memory and time allow; every change is recorded.

Out of memory: half the batch and twice the accumulation, once. Too slow for its deadline: fewer epochs, or not at all.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from agent.errors import BudgetEnded, TrialFailed
from agent.records import Checkpoint, MiniRun, Recipe, Value
from scenarios import Bench
from scenarios.finetune import outputs, training
from scenarios.finetune.arguments import canonical
from scenarios.finetune.estimate_rules import BATCH, SUMMED, after_oom
from scenarios.finetune.estimate_time import LEAST_SHARE, hopeless, projected_seconds, steps_of, verdict
from scenarios.finetune.training import TrainingPlan, defaults

SURE = 0.9
"""Share of the time in which a training must fit that is begun once more, now or by a new call."""
WARM = 0.5
"""Share of a mini-run's seconds a step that a training's steps take at least: the first is slow (the demo: 0.53)."""


def mini_run(bench: Bench, recipe: Recipe, plan: TrainingPlan, earlier: Sequence[tuple[int, MiniRun]]) -> MiniRun:
    """As `training.mini_run`; once again with half the batch if that ran out of memory."""
    try:
        found = training.mini_run(bench, recipe, plan, earlier)
    except TrialFailed as failed:
        smaller, why = _smaller(bench, recipe, plan, failed)
        with _again(why):
            found = training.mini_run(bench, smaller, plan, [run for run in earlier if not run[1].changed])
        shape, summed = training.shape(recipe, plan), training.accumulation(recipe, plan)
        return msgspec.structs.replace(
            found, shape=shape, accumulation=summed, changed=_changed(recipe, smaller, plan), why=why
        )
    if found.changed:  # one of the same shape had run out of memory
        half = after_oom(recipe, plan.arguments)
        if half is None:
            raise TrialFailed("train:oom", f"as the mini-run of trial {found.reused_from}: {found.why}")
        changed = _changed(recipe, half, plan)
        found = msgspec.structs.replace(found, changed=changed, why=_halved(recipe, changed, plan))
    return found


def train(bench: Bench, recipe: Recipe, plan: TrainingPlan, measured: MiniRun) -> Checkpoint:
    """As `training.train`, with what the mini-run had to change, in the time that there is.

    Raises:
        TrialFailed: Also "train:timeout" for a training that cannot end in time, as early as that is known.
        BudgetEnded: The call has too little time left, and another one of its length would have enough.
    """
    began = time.monotonic()
    asked = msgspec.structs.replace(recipe, train=recipe.train | measured.changed)
    fitted, shorter = in_time(bench, asked, plan, measured)
    whys, halved, restarted = [why for why in (measured.why, shorter) if why], measured.why, False
    if shorter:
        bench.say(shorter)
    while True:
        spent = time.monotonic() - began
        pace = Pace(bench.directory / "model", lambda: _limit(bench, plan.full_timeout - (time.monotonic() - began))[0])
        try:
            with _again(halved):
                left = max(1.0, plan.full_timeout - spent)
                made = training.train(bench, fitted, msgspec.structs.replace(plan, full_timeout=left), pace)
        except TrialFailed as failed:
            if failed.kind == "train:oom" and not halved:
                fitted, why = _smaller(bench, fitted, plan, failed)
                halved = why
            elif pace.slow is not None and failed.kind == "train:timeout":
                left = plan.full_timeout - (time.monotonic() - began)
                fitted, why = _fewer(bench, asked, fitted, plan, pace.slow, left, failed, restarted=restarted)
                restarted = True
            else:
                raise
            whys.append(why)
        else:
            return msgspec.structs.replace(made, changed=_changed(recipe, fitted, plan), why="; ".join(whys))


def in_time(bench: Bench, recipe: Recipe, plan: TrainingPlan, measured: MiniRun) -> tuple[Recipe, str]:
    """The recipe, with fewer epochs where it could not end in time, and why; raises as `train` where those are too few.

    Nothing is changed where nothing was measured, or where packing hides how many steps there are.
    """
    keys = defaults(recipe, plan) | canonical(recipe.train, plan.arguments)
    if measured.step_seconds is None or keys.get("packing") or keys.get("neat_packing"):
        return recipe, ""
    rows = int(keys["per_device_train_batch_size"]) * int(keys["gradient_accumulation_steps"])
    epochs = float(keys["num_train_epochs"])
    _, trained = plan.data.dataset(str(keys["stage"]))
    steps = steps_of(trained, rows, epochs, gpus=plan.gpus)
    step = measured.step_seconds * WARM * _typical(plan)
    seconds, whose = _limit(bench, plan.full_timeout)
    found = verdict(step_seconds=step, steps=steps, epochs=epochs, seconds=seconds, startup=measured.startup)
    if found.action == "run":
        return recipe, ""
    why = f"{found.reason} ({whose})"
    if found.action == "stop":
        least = projected_seconds(step, int(LEAST_SHARE * steps) + 1, measured.startup)
        raise _too_late(bench, plan, least, why)
    return msgspec.structs.replace(recipe, train=recipe.train | {"num_train_epochs": found.epochs}), why


class Slow(msgspec.Struct, frozen=True, kw_only=True):
    """A training that cannot end in time, as its steps but the first show: seconds and steps of the whole of it."""

    step_seconds: float
    steps: int
    startup: float

    @property
    def seconds(self) -> float:
        """How long all of it takes."""
        return projected_seconds(self.step_seconds, self.steps, self.startup)


class Pace:
    """Asked while a training runs: why it cannot end in time.

    Args:
        model: Where it logs. left: Seconds until it must have ended. clock: Monotonic seconds.
    """

    def __init__(self, model: Path, left: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._model, self._left, self._clock = model, left, clock
        self._began = clock()
        self._first: tuple[int, float] | None = None
        self._last = 0
        self.slow: Slow | None = None

    def __call__(self) -> str | None:
        """The reason; None where it can, or where that is not known."""
        found = outputs.logged(self._model)
        if found is None or found[0] <= self._last:
            return None
        step, steps, _ = found
        self._last, now = step, self._clock()
        if self._first is None:
            self._first = step, now
            return None
        first, since = self._first
        done, elapsed = step - first, now - since
        reason = hopeless(done, steps - first, elapsed, self._left(), untimed=first)
        if reason is not None:
            self.slow = Slow(step_seconds=elapsed / done, steps=steps, startup=since - self._began)
        return reason


def _fewer(
    bench: Bench,
    asked: Recipe,
    recipe: Recipe,
    plan: TrainingPlan,
    slow: Slow,
    left: float,
    failed: TrialFailed,
    *,
    restarted: bool,
) -> tuple[Recipe, str]:
    """The recipe with as few epochs as end in the time that is left, and why; raises where those are too few.

    Args:
        asked: With the epochs that were asked for. recipe: What is too slow. slow: How slow.
        left: Seconds until FT_FULL_TIMEOUT. failed: What ended it. restarted: It was begun anew for that before.
    """
    seconds, whose = _limit(bench, left)
    epochs, wanted = (_epochs(one, plan) for one in (recipe, asked))
    found = verdict(
        step_seconds=slow.step_seconds, steps=slow.steps, epochs=epochs, seconds=SURE * seconds, startup=slow.startup
    )
    if restarted or found.action != "shorten" or found.epochs < LEAST_SHARE * wanted:
        raise _too_late(bench, plan, slow.seconds, f"{failed.reason} ({whose})", failed.tail)
    why = f"{failed.reason} ({whose}): num_train_epochs {epochs:g} -> {found.epochs:g}"
    bench.say(f"{why}; trying that")
    _clear(bench, "train-too-slow.log")
    return msgspec.structs.replace(recipe, train=recipe.train | {"num_train_epochs": found.epochs}), why


def _epochs(recipe: Recipe, plan: TrainingPlan) -> float:
    return float((defaults(recipe, plan) | canonical(recipe.train, plan.arguments))["num_train_epochs"])


def _limit(bench: Bench, deadline: float) -> tuple[float, str]:
    """Seconds until a training must have ended, and what says so."""
    left = bench.left()
    return (deadline, "FT_FULL_TIMEOUT") if left is None or deadline <= left else (left, "the time of this call")


def _too_late(bench: Bench, plan: TrainingPlan, needed: float, why: str, tail: str = "") -> TrialFailed | BudgetEnded:
    """A finding; but where only this call is too short, and the next would not be, its end."""
    whole = bench.whole()
    if whole is not None and needed <= min(plan.full_timeout, SURE * whole):
        return BudgetEnded(f"too little time for this training: {why}")
    return TrialFailed("train:timeout", why, tail)


def _smaller(bench: Bench, recipe: Recipe, plan: TrainingPlan, failed: TrialFailed) -> tuple[Recipe, str]:
    """What to try after a failure, and why; raises the failure where nothing can be tried."""
    smaller = after_oom(recipe, plan.arguments) if failed.kind == "train:oom" else None
    if smaller is None:
        raise failed
    why = _halved(recipe, _changed(recipe, smaller, plan), plan)
    bench.say(f"{why}; trying that")
    _clear(bench, "train-out-of-memory.log")
    return smaller, why


def _clear(bench: Bench, name: str) -> None:
    """Remove what a failed attempt left, but for its log, which gets this name."""
    for leftover in ("model", "data"):
        shutil.rmtree(bench.directory / leftover, ignore_errors=True)
    log = bench.directory / "train.log"
    if log.is_file() and not log.is_symlink():
        log.replace(bench.directory / name)


@contextmanager
def _again(why: str) -> Iterator[None]:
    """Says of a second failure for want of memory what had been changed before it."""
    try:
        yield
    except TrialFailed as failed:
        if why and failed.kind == "train:oom":
            raise TrialFailed(failed.kind, f"{why}, and again: {failed.reason}", failed.tail) from None
        raise


def _halved(recipe: Recipe, changed: Mapping[str, Value], plan: TrainingPlan) -> str:
    keys = defaults(recipe, plan) | canonical(recipe.train, plan.arguments)
    return "out of memory: " + " and ".join(f"{key} {keys[key]} -> {changed[key]}" for key in (BATCH, SUMMED))


def _changed(asked: Recipe, trained: Recipe, plan: TrainingPlan) -> dict[str, Value]:
    """Keys of what was trained whose values are not those that were asked for."""
    before = canonical(asked.train, plan.arguments)
    return {key: value for key, value in canonical(trained.train, plan.arguments).items() if before.get(key) != value}


def _typical(plan: TrainingPlan) -> float:
    """How long a row is, as a share of the longest, which mini-runs are made of; 1 where that is not known."""
    try:
        longest = [len(line) for line in plan.data.longest.read_bytes().split(b"\n") if line]
    except OSError:
        return 1.0
    if not longest or not plan.data.bytes or not plan.data.rows:
        return 1.0
    return min(1.0, plan.data.bytes / plan.data.rows / (sum(longest) / len(longest)))
