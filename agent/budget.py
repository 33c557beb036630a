"""What one call may spend: trials, stages, active seconds, GPU time and money, all reserved before they are spent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.errors import BudgetEnded
from agent.money import Money


class Budget:
    """The allowance of one call.

    Args:
        trials: Trials that may still be completed; None means no limit.
        stages: Stages that may still be completed; None means no limit.
        seconds: Active time of this call; None means no limit.
        clock: Monotonic seconds.
        gpus: GPUs that every job may use.
        gpu_seconds: GPU time that is left of the study's; None means no limit, and so does a machine without GPUs.
        money: What the study may spend on language models.
    """

    def __init__(
        self,
        trials: int | None = None,
        stages: int | None = None,
        seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        gpus: int = 0,
        gpu_seconds: float | None = None,
        money: Money | None = None,
    ) -> None:
        self._trials = trials
        self._stages = stages
        self._seconds = seconds
        self._clock = clock
        self._gpus = gpus
        self._gpu_seconds = gpu_seconds if gpus else None
        self._gpu_used = 0.0  # by stages that ended; of one that runs, since when:
        self._gpu_since: float | None = None
        self.money = money or Money()
        self._started = clock()
        self._reserved = 0.0
        self._reserved_for = ""

    @property
    def counted(self) -> bool:
        """Whether the user asked for a number of trials or stages, which is then obeyed."""
        return self._trials is not None or self._stages is not None

    def start(self) -> None:
        """Active time begins now: what came before (downloads, building environments) is not counted."""
        self._started = self._clock()

    def spent(self) -> float:
        """Active seconds so far."""
        return self._clock() - self._started

    def reserve(self, seconds: float, what: str = "the sealed test") -> None:
        """Keep this many of the seconds back for what must happen at the end."""
        self._reserved = max(self._reserved, seconds)
        self._reserved_for = what

    def release(self) -> None:
        """Make the reserved seconds available: the end has come."""
        self._reserved = 0.0

    def left(self) -> float | None:
        """Seconds that a stage may still use; None where neither time nor GPU time is limited."""
        limits = (None if self._seconds is None else self._seconds - self.spent(), self._gpu_left())
        found = [seconds for seconds in limits if seconds is not None]
        return min(found) - self._reserved if found else None

    def whole(self) -> float | None:
        """Seconds that a new call of the same length would have for its stages; None where that is not limited."""
        limits = (self._seconds, self._gpu_left())
        found = [seconds for seconds in limits if seconds is not None]
        return min(found) - self._reserved if found else None

    @contextmanager
    def using_gpus(self) -> Iterator[None]:
        """What happens in here uses the GPUs."""
        self._gpu_since = self._clock()
        try:
            yield
        finally:
            self._gpu_used += (self._clock() - self._gpu_since) * self._gpus
            self._gpu_since = None

    def _gpu_left(self) -> float | None:
        """Seconds that all the GPUs may still be used; None where that is not limited."""
        if self._gpu_seconds is None:
            return None
        now = 0.0 if self._gpu_since is None else self._clock() - self._gpu_since
        return (self._gpu_seconds - self._gpu_used) / self._gpus - now

    def over(self) -> str | None:
        """Why the time is over, or None."""
        left = self.left()
        if left is None or left > 0:
            return None
        kept = f" ({self._reserved:.0f} s are kept for {self._reserved_for})" if self._reserved else ""
        gpu = self._gpu_left()
        if gpu is not None and gpu - self._reserved <= 0:
            return f"the study's GPU hours are used (FT_MAX_GPU_HOURS){kept}"
        if self._seconds is not None and 0 < self._seconds <= self._reserved:
            kept = f"{self._reserved:.0f} s are kept for {self._reserved_for}"
            return f"a call of {self._seconds:.0f} s is too short: {kept}"
        return f"the call's time is over{kept}"

    def before_trial(self) -> None:
        """Raises BudgetEnded where no further trial may start."""
        if self._trials is not None and self._trials <= 0:
            raise BudgetEnded("the number of trials asked for is done")
        self.before_stage(counted=True)

    def before_stage(self, *, counted: bool) -> None:
        """Raises BudgetEnded where no further stage may start."""
        if reason := self.over():
            raise BudgetEnded(reason)
        if counted and self._stages is not None and self._stages <= 0:
            raise BudgetEnded("the number of stages asked for is done", pause=True)

    def count_stage(self) -> None:
        """A counted stage was completed."""
        if self._stages is not None:
            self._stages -= 1

    def count_trial(self) -> None:
        """A trial was completed."""
        if self._trials is not None:
            self._trials -= 1
