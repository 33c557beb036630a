"""FT_DOCKER_ENABLE_CACHE=False: a study that is over gives its images back, then only, and nothing else goes."""

from __future__ import annotations

import io
import os
import secrets
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from docker import DockerClient

from agent.loop import run_call
from agent.records import History, Proposal
from agent.run.containers import DockerRunner, connect
from agent.run.images import is_there, remove
from agent.settings import Settings, load
from agent.store import StudyPaths, Workspace, new_entry
from agent.wiring import remove_images
from tests.toy import IDENTITY, Listed, lab

pytestmark = pytest.mark.docker
MEGABYTE = 1_000_000
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runner(image: str) -> Iterator[DockerRunner]:
    """With images for train and bench, and a third one for training jobs, each with a megabyte of its own."""
    client = connect()
    tags = [f"ftloop-test-cache:{name}-{secrets.token_hex(4)}" for name in ("train", "bench", "update")]
    for tag in tags:
        context = io.BytesIO()
        files = {"Dockerfile": f"FROM {image}\nCOPY file /\n".encode(), "file": os.urandom(MEGABYTE)}
        with tarfile.open(fileobj=context, mode="w") as archive:
            for name, content in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        context.seek(0)
        client.images.build(fileobj=context, custom_context=True, tag=tag, rm=True)
    yield DockerRunner(client, {"train": tags[0], "bench": tags[1]}).with_update(tags[2])
    remove(client, tags)
    client.close()


def images(runner: DockerRunner) -> list[bool]:
    """Which of train, bench and update are there."""
    names = [runner.environment_image("train"), runner.environment_image("bench"), runner._image("train")]
    return [is_there(runner.client, name) for name in names]


def settings(root: Path, cache: bool = False) -> Settings:
    return load({}, None, {"FT_FILE_PATH": str(root), "FT_DOCKER_ENABLE_CACHE": str(cache)}, root)


def call(root: Path, runner: DockerRunner, *, cache: bool = False, **limits: int) -> list[str]:
    """One call on the toy study, closed as `wiring.connect` closes one; what it said at its end."""
    said: list[str] = []
    with lab(root, proposer=Listed([0.9]), runner=runner, **limits) as toy:  # type: ignore[arg-type]
        run_call(toy)
        journal = toy.study.journal.path.read_bytes()
        remove_images(toy.study, runner, Workspace(root), settings(root, cache), said.append)
        assert toy.study.journal.path.read_bytes() == journal
    return said


def test_the_images_go_at_the_end_and_not_at_a_pause(runner: DockerRunner, tmp_path: Path) -> None:
    assert call(tmp_path, runner, step_n=4) == []
    assert images(runner) == [True, True, True]
    (line,) = call(tmp_path, runner, loop_n=1)
    assert images(runner) == [False, False, False]
    assert line == "FT_DOCKER_ENABLE_CACHE=False: the study's images are removed, which freed 3.0 MB"
    assert (tmp_path / "output" / "toy" / "weights").read_text() == "0.9", "the winner stays"


def test_they_stay_with_the_cache(runner: DockerRunner, tmp_path: Path) -> None:
    assert call(tmp_path, runner, cache=True, loop_n=1) == []
    assert images(runner) == [True, True, True]


def test_they_stay_after_ctrl_c(runner: DockerRunner, tmp_path: Path) -> None:
    class Stopping(Listed):
        def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
            raise KeyboardInterrupt

    with lab(tmp_path, proposer=Stopping([0.9]), runner=runner, loop_n=1) as toy:
        with pytest.raises(KeyboardInterrupt):
            run_call(toy)
        remove_images(toy.study, runner, Workspace(tmp_path), settings(tmp_path), print)
    assert images(runner) == [True, True, True]


def test_what_another_container_was_made_from_stays(runner: DockerRunner, tmp_path: Path) -> None:
    foreign = runner.client.containers.create(runner.environment_image("bench"), ["true"])
    try:
        call(tmp_path, runner, loop_n=1)
        assert images(runner) == [False, True, False]
    finally:
        foreign.remove(force=True)


def test_they_stay_while_another_study_is_at_work(runner: DockerRunner, tmp_path: Path) -> None:
    other = StudyPaths(tmp_path / "studies" / "other")
    other.root.mkdir(parents=True)
    Workspace(tmp_path).enter(new_entry("other", IDENTITY, other.root))
    code = "import fcntl, sys; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"
    argv = [sys.executable, "-c", code, str(other.lock)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holding:
        assert holding.stdout
        holding.stdout.readline()
        (line,) = call(tmp_path, runner, loop_n=1)
        assert "as the study other is at work" in line
        assert images(runner) == [True, True, True]
        assert holding.stdin
        holding.stdin.write(b"\n")
        holding.stdin.flush()
    call(tmp_path, runner, loop_n=1)
    assert images(runner) == [False, False, False]


NEEDS = """
import sys
from agent.run.image_locks import Uses
uses = Uses()
uses.share(sys.argv[1])
print(flush=True)
input()
"""


@contextmanager
def needing(image: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process, as of a study in another workspace, that is between two jobs; killed at the end."""
    argv = [sys.executable, "-c", NEEDS, image]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as holding:
        assert holding.stdout
        holding.stdout.readline()
        try:
            yield holding
        finally:
            holding.kill()


def test_an_image_that_a_study_of_another_workspace_needs_stays_until_that_has_ended(
    runner: DockerRunner, tmp_path: Path
) -> None:
    bench = runner.environment_image("bench")
    with needing(bench):
        kept, removed = call(tmp_path, runner, loop_n=1)
        assert kept == f"FT_DOCKER_ENABLE_CACHE=False: kept, as another study needs them: {bench}"
        assert removed.endswith("which freed 2.0 MB")
        assert images(runner) == [False, True, False]
    assert runner.remove_images()[1] == [], "a killed process holds nothing"
    assert images(runner) == [False, False, False]


def test_a_study_needs_its_images_from_the_moment_they_are_ready(runner: DockerRunner) -> None:
    other = DockerRunner(runner.client, {"train": runner.environment_image("train"), "bench": "none"})
    other.ready("train", print)
    assert other.environment_image("train") in runner.remove_images()[1]
    assert is_there(runner.client, other.environment_image("train"))


def test_an_engine_that_went_away_is_said_and_no_error(runner: DockerRunner, tmp_path: Path) -> None:
    said: list[str] = []
    own = f"ftloop-test-cache:gone-{secrets.token_hex(4)}"  # the real ones may be in use on this machine
    nobody = DockerRunner(DockerClient("tcp://127.0.0.1:9", version="1.41"), {"train": own, "bench": own})
    with lab(tmp_path, proposer=Listed([0.9]), runner=runner, loop_n=1) as toy:
        run_call(toy)
        remove_images(toy.study, nobody, Workspace(tmp_path), settings(tmp_path), said.append)
    assert "the Docker engine cannot remove its images" in said[0]
    assert images(runner) == [True, True, True]
