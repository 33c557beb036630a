"""What becomes of jobs whose engine, or whose owner, goes away; with engines of their own that may be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.run.containers import OWNER_LABEL, DockerRunner, connect
from tests.conformance.images import make_image
from tests.conformance.runners import GRACE, make_runner, python_job
from tests.conformance.test_runners import IGNORE_AND_SLEEP, STRAY, assert_dead, wait_for

pytestmark = pytest.mark.docker
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Engine:
    """An engine that belongs to one test."""

    directory: Path
    image: str

    def start(self) -> str:
        elsewhere = os.environ | {"DOCKER_HOST": "unix:///nowhere"}  # or the script would take the one that answers
        argv = [str(ROOT / ".ci/engine"), "start", str(self.directory)]
        return str(subprocess.run(argv, env=elsewhere, check=True, capture_output=True, text=True).stdout.strip())

    def signal(self, number: signal.Signals) -> None:
        os.kill(int((self.directory / "docker.pid").read_text()), number)

    def end_containerd(self) -> None:
        """Where it outlives a killed engine, it keeps the next one from starting."""
        pid = int((self.directory / "exec/containerd/containerd.pid").read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())


@pytest.fixture
def engine(image: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """Asks for `image`, so that it is skipped like the other tests where nobody wants engines."""
    if os.getuid() != 0:
        pytest.skip("only root can start an engine")
    with tempfile.TemporaryDirectory(prefix="fte-", dir="/tmp", ignore_cleanup_errors=True) as directory:
        made = Engine(Path(directory), image)
        monkeypatch.setenv("DOCKER_HOST", made.start())
        try:
            client = connect()
            make_image(client)
            client.close()
            yield made
        finally:
            subprocess.run([ROOT / ".ci/engine", "stop", directory], check=True)


def owner(image: str, directory: Path, code: str = STRAY + "time.sleep(600)") -> subprocess.Popen[str]:
    """A process that runs one job in a container; returns once the job is at work."""
    argv = [sys.executable, "-m", "tests.conformance.runners", "docker", image, str(directory), code]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for((directory / "alive").exists)
    return process


def is_alive(directory: Path) -> bool:
    first = (directory / "alive").read_text()
    time.sleep(0.5)
    return (directory / "alive").read_text() != first


def test_an_engine_that_dies_in_mid_job_is_said_and_its_successor_is_tidied(engine: Engine, tmp_path: Path) -> None:
    with owner(engine.image, tmp_path) as process:
        engine.signal(signal.SIGKILL)
        started = time.monotonic()
        said, _ = process.communicate(timeout=60)
        assert said.strip() == "lost"
        assert time.monotonic() - started < 20
    engine.end_containerd()
    engine.start()
    assert make_runner("docker", engine.image).reap() == ["owned"]
    assert_dead(tmp_path)
    assert connect().containers.list(all=True) == []


def test_an_engine_that_is_stopped_in_mid_job_is_no_failure_of_the_job(engine: Engine, tmp_path: Path) -> None:
    with owner(engine.image, tmp_path) as process:
        engine.signal(signal.SIGTERM)  # it ends its containers first: the job sees a signal
        said, _ = process.communicate(timeout=60)
        assert said.strip() == "lost"
    assert_dead(tmp_path)


def test_a_deadline_holds_though_the_engine_hangs(engine: Engine, tmp_path: Path) -> None:
    runner = DockerRunner(connect(timeout=1.0), {"train": engine.image}, grace=GRACE)

    def watch() -> str | None:
        engine.signal(signal.SIGSTOP)
        return None

    started = time.monotonic()
    try:
        outcome = runner.run(python_job(tmp_path, IGNORE_AND_SLEEP, deadline=2.0), watch)
    finally:
        engine.signal(signal.SIGCONT)
        ended = time.monotonic()
        wait_for(lambda: connect().containers.list(all=True) == [])  # it obeys, late
    assert outcome.kind == "lost", outcome
    assert ended - started < 30


def test_only_what_a_dead_owner_left_is_reaped(image: str, tmp_path: Path) -> None:
    """Three containers run: of an owner that is killed, of one that lives, and of somebody else."""
    client = connect()
    for name in ("killed", "living"):
        (tmp_path / name).mkdir()
    foreign = client.containers.run(image, ["python", "-c", "import time; time.sleep(600)"], detach=True)
    living, killed = owner(image, tmp_path / "living"), owner(image, tmp_path / "killed")
    runner = make_runner("docker", image)
    try:
        assert runner.reap() == []
        killed.kill()
        killed.wait()
        assert is_alive(tmp_path / "killed"), "a container outlives its owner"
        assert runner.reap() == ["owned"]
        assert_dead(tmp_path / "killed")
        assert is_alive(tmp_path / "living")
        foreign.reload()
        assert foreign.status == "running"
        left = client.containers.list(all=True, filters={"label": OWNER_LABEL})
        assert [f"/{living.pid}/" in container.labels[OWNER_LABEL] for container in left] == [True]
    finally:
        living.kill()
        living.wait()
        foreign.remove(force=True)
        runner.reap()
        client.close()


def test_a_killed_loops_container_is_gone_after_the_next_start(
    image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the next start does first (`agent.wiring.connect`) is to reap; the label tells study, trial and stage."""
    labels = {"study": "s", "trial": "3", "stage": "train"}
    seen: list[dict[str, str]] = []

    def watch() -> str | None:
        client = connect()
        seen.extend(container.labels for container in client.containers.list(filters={"label": "ftloop.study=s"}))
        client.close()
        return "seen"

    make_runner("docker", image).run(python_job(tmp_path, "import time; time.sleep(600)", labels=labels), watch)
    assert {key: seen[0][f"ftloop.{key}"] for key in labels} == labels
    host, boot, namespace, pid, start = seen[0][OWNER_LABEL].split("/")
    assert int(pid) == os.getpid()
    assert all((host, boot, namespace, start))
