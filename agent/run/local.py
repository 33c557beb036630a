"""Runs jobs as child processes in a locked virtual environment.

What a job may touch is not enforced here: its mounts are a promise, not a wall. For code that is not trusted, see
`agent.run.containers`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any, Protocol

from agent.errors import MachineError
from agent.run import EnvironmentName, Job, Outcome, Say, Watch, logs, owner, supervisor
from agent.run.gpus import environment_of_jobs
from agent.run.outcomes import Clock, Stop

_MARGIN = 10.0
"""Seconds beyond the grace within which the supervisor must have ended everything."""


_INHERITED = frozenset(
    {"LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
)
"""What a job gets of the user's environment. Names in full, no prefixes: NVIDIA_API_KEY is a secret."""


class Interpreters(Protocol):
    """What the runner needs of `agent.run.environments.Environments`."""

    def python(self, name: EnvironmentName) -> Path:
        """The interpreter of an environment."""
        ...

    def ready(self, name: EnvironmentName, say: Say) -> None:
        """Build the environment unless it is there."""
        ...


class LocalRunner:
    """The runner without an engine.

    Args:
        environments: Where the interpreters are.
        grace: Seconds between SIGTERM and SIGKILL.
        disk_limit: Bytes that one job may write below its writable mounts; None for any number.
        gpus: FT_GPUS: the GPUs that jobs see; None for those of CUDA_VISIBLE_DEVICES, or all.
        unsafe: Run code that nobody reviewed all the same (--unsafe-local).
    """

    name = "local"

    def __init__(
        self,
        environments: Interpreters,
        grace: float = 5.0,
        *,
        disk_limit: int | None = None,
        gpus: str | None = None,
        unsafe: bool = False,
    ) -> None:
        self._environments = environments
        self._grace = grace
        self._disk_limit = disk_limit
        self._gpus = gpus
        self._unsafe = unsafe

    def ready(self, environment: EnvironmentName, say: Say) -> None:
        """Build the virtual environment unless it is there; MachineError if it cannot."""
        self._environments.ready(environment, say)

    def refuses(self) -> str:
        """Why code that nobody reviewed is not run; empty where it was allowed."""
        return (
            "" if self._unsafe else "without a container nothing confines it (--unsafe-local would run it all the same)"
        )

    def run(self, job: Job, watch: Watch | None = None) -> Outcome:
        """Run to the end. Nothing of the job outlives this call, however it ends, KeyboardInterrupt included."""
        if job.untrusted and not self._unsafe:
            raise MachineError(
                f"{job.name} runs code that nobody reviewed, and without a container nothing confines it",
                "start a Docker engine (--runner docker), or say --unsafe-local to run it with all your rights",
            )
        token = f"{owner.this_process()}/{job.name.replace('/', '-')}/{secrets.token_hex(4)}"
        specification = self._specification(job, token)
        killed_before = _out_of_memory_kills()
        stop: Stop | None = None
        clock = Clock(job, watch, self._disk_limit)
        process = _supervise(job, token)
        try:
            _send(process, specification)
            while not _readable(process.stdout, clock.pause):
                stop = clock.stop()
                if stop:
                    break
        finally:
            code = self._finish(process, token)
        if stop:
            return clock.outcome(code, stop)
        out_of_memory = code == 137 and _out_of_memory_kills() > killed_before
        return clock.outcome(code, out_of_host_memory=out_of_memory)

    def reap(self) -> list[str]:
        """End the processes of jobs whose owner is dead; return the jobs' names."""
        left: dict[int, str] = {}

        def find() -> list[int]:
            found = supervisor.marked(_owner_is_dead)
            left.update(found)
            return list(found)

        supervisor.end(find, self._grace + 1.0)  # their own supervisors, where they live, are at it too
        return sorted({token.split("/")[5] for token in left.values()})

    def _specification(self, job: Job, token: str) -> dict[str, Any]:
        """What the supervisor must know; it travels by pipe, as arguments can be read by every user."""
        environment = self._variables(job) | {supervisor.TOKEN: token}
        program = shutil.which(job.argv[0], path=environment["PATH"]) or job.argv[0]
        return {
            "program": program,
            "argv": [program, *job.argv[1:]],
            "cwd": job.cwd,
            "environment": environment,
            "grace": self._grace,
        }

    def _variables(self, job: Job) -> dict[str, str]:
        """The job's whole environment: an allow-list, so that no key of the user's reaches it."""
        home = Path(job.cwd) / ".home"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        inherited = {key: value for key, value in os.environ.items() if key in _INHERITED}
        inherited = environment_of_jobs(inherited, self._gpus)
        binaries = self._environments.python(job.environment).parent
        path = f"{binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {"LANG": "C.UTF-8"} | inherited | {"HOME": str(home), "PATH": path} | job.variables

    def _finish(self, process: subprocess.Popen[bytes], token: str) -> int | None:
        """End whatever is left of the job. Its exit code, 128 + n after signal n; None if its supervisor was killed."""
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()  # first of all: from here on the supervisor ends the job, whatever happens to us
        done = _readable(process.stdout, self._grace + _MARGIN)
        answer = process.stdout.read() if done else b""
        process.stdout.close()
        if not answer:
            process.kill()
            _sweep(token)
        process.wait()
        if not answer:
            return None
        code: int | None = json.loads(answer)["code"]
        return 128 - code if code is not None and code < 0 else code


def _supervise(job: Job, token: str) -> subprocess.Popen[bytes]:
    """Start the job's supervisor, which waits for its specification."""
    log = logs.create(Path(job.log))
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", supervisor.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={supervisor.TOKEN: token},
            start_new_session=True,  # Ctrl-C at the terminal is for us; we tell the job
        )
    finally:
        os.close(log)


def _send(process: subprocess.Popen[bytes], specification: dict[str, Any]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died already: the outcome will be "lost", the log says why
        process.stdin.write(json.dumps(specification).encode() + b"\n")
        process.stdin.flush()


def _sweep(token: str) -> None:
    """End a job whose supervisor is gone, by the mark that all of its processes bear."""
    patience = time.monotonic() + _MARGIN

    def find() -> list[int]:
        pids = list(supervisor.marked(lambda other: other == token))
        if pids and time.monotonic() > patience:
            raise MachineError(f"processes {pids} cannot be ended", "they hang in the kernel; restart the machine")
        return pids

    supervisor.end(find, grace=0.0)


def _readable(stream: IO[bytes] | None, seconds: float) -> bool:
    """Whether the stream has something to read, or ended, within so many seconds."""
    poll = select.poll()
    assert stream is not None
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _owner_is_dead(token: str) -> bool:
    return token.count("/") == 6 and owner.is_dead("/".join(token.split("/")[:5]))


def _out_of_memory_kills() -> int:
    """How many processes the kernel has killed for memory since it booted; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
