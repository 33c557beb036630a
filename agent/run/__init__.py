"""Where jobs run. A job is one process tree in one locked environment; its outcome is a value, never a guess."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

EnvironmentName = Literal["train", "bench"]
OutcomeKind = Literal["ok", "exit", "timeout", "stopped", "disk", "oom", "killed", "full", "lost"]
Watch = Callable[[], str | None]
"""Called about twice a second while a job runs; a returned reason stops the job."""
Say = Callable[[str], None]


class Mount(msgspec.Struct, frozen=True):
    """A host directory or file that the job sees at the same path; read-only unless `writable`."""

    path: str
    writable: bool = False


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One program run.

    Attributes:
        name: Unique among the jobs now running; names the container.
        environment: Which locked environment (docker/<environment>) it runs in.
        argv: Program and arguments; the program is looked up in that environment ("python", "llamafactory-cli").
        cwd: Working directory, inside a writable mount.
        mounts: All that the job can see of the host (enforced where the runner can).
        variables: Its environment variables; nothing is inherited beyond what a program needs to start.
        log: File that receives stdout and stderr while it runs.
        deadline: Seconds after which it is stopped, on our clock.
        untrusted: It runs code that nobody here wrote or reviewed; a runner that cannot confine it refuses.
    """

    name: str
    environment: EnvironmentName
    argv: tuple[str, ...]
    cwd: str
    log: str
    deadline: float
    mounts: tuple[Mount, ...] = ()
    variables: dict[str, str] = {}
    labels: dict[str, str] = {}
    untrusted: bool = False


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended.

    Attributes:
        kind: "ok" (exit code 0), "exit" (another code), "timeout" (its deadline), "stopped" (its watch),
            "disk" (it wrote more than it may), "oom" (out of memory, host or CUDA), "killed" (by a signal from
            elsewhere); and what is no fault of the job: "full" (no space is left), "lost" (the engine went away).
        code: Exit code where there is one. seconds: wall clock. tail: the log's last lines.
        reason: One line for a person.
    """

    kind: OutcomeKind
    code: int | None
    seconds: float
    log: str
    tail: str
    reason: str


class Runner(Protocol):
    """Runs jobs. Every implementation passes tests/conformance."""

    @property
    def name(self) -> str:
        """ "local" or "docker"."""
        ...

    def ready(self, environment: EnvironmentName, say: Say) -> None:
        """Build the environment (virtual environment or image) unless it is there; MachineError if it cannot."""
        ...

    def refuses(self) -> str:
        """Why jobs that are not trusted are refused here; empty where they are run."""
        ...

    def run(self, job: Job, watch: Watch | None = None) -> Outcome:
        """Run to the end. Nothing of the job outlives this call, however it ends, KeyboardInterrupt included."""
        ...

    def reap(self) -> list[str]:
        """End what dead owners left behind, and only that; return the names."""
        ...
