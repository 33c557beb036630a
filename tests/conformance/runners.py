"""The runners under test, and a process that owns a job and can be killed: `python -m tests.conformance.runners`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.run import EnvironmentName, Job, Mount, Runner

GRACE = 1.0


class ThisPython:
    """Stands in for the locked environments: the interpreter that runs the tests."""

    def python(self, name: EnvironmentName) -> Path:
        return Path(sys.executable)

    def ready(self, name: EnvironmentName, say: Callable[[str], None]) -> None:
        pass


def make_runner(kind: str, image: str = "", *, disk: int | None = None) -> Runner:
    if kind == "local":
        from agent.run.local import LocalRunner

        return LocalRunner(ThisPython(), grace=GRACE, disk_limit=disk)
    from agent.run.containers import DockerRunner, connect
    from agent.run.lock import Limits

    return DockerRunner(connect(), {"train": image, "bench": image}, grace=GRACE, limits=Limits(disk=disk))


def python_job(directory: Path, code: str, *, name: str = "job", deadline: float = 60.0, **more: Any) -> Job:
    """A job that runs `code`, with `directory` as its writable working directory."""
    directory.mkdir(parents=True, exist_ok=True)
    return Job(
        name=name,
        environment="train",
        argv=more.pop("argv", ("python", "-I", "-S", "-u", "-c", code)),
        cwd=str(directory),
        log=str(directory / "job.log"),
        deadline=deadline,
        mounts=more.pop("mounts", (Mount(str(directory), writable=True),)),
        **more,
    )


if __name__ == "__main__":
    owned = python_job(Path(sys.argv[3]), sys.argv[4], name="owned", deadline=600.0)
    print(make_runner(sys.argv[1], sys.argv[2]).run(owned).kind)
