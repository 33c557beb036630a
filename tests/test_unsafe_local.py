"""Without a container, code that nobody reviewed runs only where --unsafe-local said so: through the real runner."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.options import parse
from agent.run import Job, Mount, Runner
from agent.settings import load
from agent.wiring import choose_runner


def local_runner(tmp_path: Path, said: list[str], *argv: str) -> Runner:
    """The runner that a call with these arguments gets."""
    options = parse(["--dataset", "demo/reverse", "--runner", "local", *argv])
    settings = load(options.settings(), None, {"FT_ENVIRONMENTS": str(tmp_path / "environments")}, tmp_path)
    return choose_runner(settings, said.append, unsafe_local=options.unsafe_local)


def job(directory: Path, *, untrusted: bool) -> Job:
    return Job(
        name="generated",
        environment="train",
        argv=("sh", "-c", "touch ran"),
        cwd=str(directory),
        log=str(directory / "job.log"),
        deadline=30.0,
        mounts=(Mount(str(directory), writable=True),),
        untrusted=untrusted,
    )


def test_without_the_option_it_is_refused_and_both_ways_out_are_named(tmp_path: Path) -> None:
    said: list[str] = []
    runner = local_runner(tmp_path, said)
    with pytest.raises(MachineError) as caught:
        runner.run(job(tmp_path, untrusted=True))
    assert "--unsafe-local" in caught.value.hint
    assert "--runner docker" in caught.value.hint
    assert not (tmp_path / "ran").exists()
    assert not any("unsafe" in line for line in said)
    assert runner.run(job(tmp_path, untrusted=False)).kind == "ok", "our own programs need no option"


@pytest.mark.parametrize("spelling", ["--unsafe-local", "--unsafe_local"])
def test_with_the_option_it_runs_and_the_call_says_so(tmp_path: Path, spelling: str) -> None:
    said: list[str] = []
    outcome = local_runner(tmp_path, said, spelling).run(job(tmp_path, untrusted=True))
    assert outcome.kind == "ok", outcome
    assert (tmp_path / "ran").exists()
    assert any("--unsafe-local" in line for line in said)
