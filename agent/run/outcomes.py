"""Turns how a job ended into an `Outcome`; the one place where runners agree on what each ending is called."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Literal

from agent.run import Job, Outcome, OutcomeKind, Watch, disk
from agent.run.logs import out_of_memory, tail

POLL = 0.5
"""Seconds between two looks at a running job."""
Stop = tuple[Literal["timeout", "stopped", "disk"], str]
"""Why we stopped a job ourselves: the outcome's kind and its reason."""
# What a program does to itself is its exit; any other signal came from elsewhere.
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}


class Clock:
    """When to look at a running job, when to stop it, and what became of it.

    Args:
        job: The job, about to be started.
        watch: Its watch.
        disk_limit: Bytes that it may write; None for any number.
    """

    def __init__(self, job: Job, watch: Watch | None, disk_limit: int | None = None) -> None:
        self._job = job
        self._watch = watch
        self._meter = disk.Meter(job, disk_limit)
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the job was started."""
        return time.monotonic() - self._started

    @property
    def pause(self) -> float:
        """Seconds until the next look is due."""
        return min(POLL, max(0.0, self._job.deadline - self.seconds))

    def stop(self) -> Stop | None:
        """Why the job must be stopped now; asks its watch, and counts what it wrote."""
        if self.seconds >= self._job.deadline:
            return "timeout", f"stopped at its deadline of {self._job.deadline:g} s"
        if (reason := self._watch() if self._watch else None) is not None:
            return "stopped", reason
        if (reason := self._meter.look()) is not None:
            return "disk", reason
        return None

    def outcome(self, code: int | None, stop: Stop | None = None, *, out_of_host_memory: bool = False) -> Outcome:
        """The outcome of the ended job.

        Args:
            code: Exit code; 128 + n after signal n; None where the runner lost the job.
            stop: Why we stopped it, if we did.
            out_of_host_memory: The kernel killed it for memory.
        """
        seconds, log = self.seconds, Path(self._job.log)
        kind, reason = stop or self._judge(code, log, out_of_host_memory)
        excess = None if kind == "lost" else self._meter.last()
        if excess and stop is None:
            kind, reason = "disk", excess
        return Outcome(kind=kind, code=code, seconds=seconds, log=str(log), tail=tail(log), reason=reason)

    def _judge(self, code: int | None, log: Path, out_of_host_memory: bool) -> tuple[OutcomeKind, str]:
        if code is None:
            return "lost", "it was lost: what ran it went away"
        if code == 0:
            return "ok", "ended normally"
        if out_of_host_memory:
            return "oom", "killed by the kernel: the machine, or its memory limit, has no more memory"
        if out_of_memory(tail(log, lines=400, limit=64_000)):  # torchrun reports at length after it
            return "oom", f"ran out of memory (exit code {code})"
        for path in (*(mount.path for mount in self._job.mounts if mount.writable), self._job.log):
            if disk.full(path):
                return "full", f"ended with exit code {code}: no space is left on the disk of {path}"
        number = _signal(code)
        if number is None:
            return "exit", f"ended with exit code {code}"
        if number == signal.SIGXFSZ:
            return "disk", "it wrote a file larger than FT_TRIAL_DISK"
        return ("exit" if number in _CRASHES else "killed"), f"ended by {number.name}"


def _signal(code: int) -> signal.Signals | None:
    try:
        return signal.Signals(code - 128)
    except ValueError:
        return None
