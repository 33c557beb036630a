"""A study as on a user's GPU host: every job in a container of the real images, and a loop that is killed at work."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker import DockerClient

from agent.records import Scores
from agent.run import EnvironmentName
from agent.run.containers import JOB_LABEL, OWNER_LABEL, DockerRunner, connect
from agent.run.lock import UNPRIVILEGED
from tests.conformance.test_runners import IGNORE_AND_SLEEP
from tests.docker.test_engine import is_alive, owner
from tests.end_to_end.command import User, processes_below

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(2400)]  # the images are built first
COMMAND = shlex.split("python agent/loop.py --dataset demo/reverse --loop_n 1 --proposer tpe")
SECRET = "hf-not-a-real-token-51c7"
QUESTIONS = 10
SMALL = {
    "FT_RUNNER": "docker",
    "FT_BENCHMARK_LIMIT": str(QUESTIONS),
    "FT_MAX_EPOCHS": "1",
    "FT_DOCKER_ENABLE_CACHE": "True",  # the images are for the other tests too
    "FT_UPDATE_LLAMA_FACTORY": "False",
    "HF_TOKEN": SECRET,
}
JOB_USER = UNPRIVILEGED if os.getuid() == 0 else os.getuid()


class Witness:
    """Looks at each container of a job when it starts, and at whose its processes are."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self._client = connect()
        filters = {"label": OWNER_LABEL, "event": "start", "type": "container"}
        self._events = self._client.events(decode=True, filters=filters)
        threading.Thread(target=self._look, name="witness", daemon=True).start()

    def _look(self) -> None:
        for event in self._events:
            with contextlib.suppress(docker.errors.APIError):  # one that ended at once; its stage is missed then
                container = self._client.containers.get(event["id"])
                listed = container.top(ps_args="-o pid,uid,args")["Processes"] or []
                self.seen.append({**container.attrs, "uids": {uid for _, uid, _ in listed}})

    def close(self) -> None:
        self._events.close()
        self._client.close()

    def of(self, study: str) -> list[dict[str, Any]]:
        return [one for one in self.seen if one["Config"]["Labels"].get("ftloop.study") == study]


@pytest.fixture
def witness(engine_client: DockerClient) -> Iterator[Witness]:
    made = Witness()
    yield made
    made.close()


@pytest.fixture
def user(tmp_path: Path) -> Iterator[User]:
    """Somebody who keeps what they make to themselves."""
    before = os.umask(0o077)
    yield User(tmp_path)
    os.umask(before)


@pytest.fixture
def foreign(engine_client: DockerClient, image: str) -> Iterator[str]:
    """Somebody's container that looks like one of ours by its name and the label of its job."""
    argv = ["python", "-I", "-S", "-c", IGNORE_AND_SLEEP]
    container = engine_client.containers.run(
        image, argv, name=f"ftloop-foreign-{os.getpid()}", labels={JOB_LABEL: "train"}, network_mode="none", detach=True
    )
    yield str(container.id)
    container.remove(force=True)


@pytest.fixture
def neighbour(image: str, engine_client: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory in which the container of another study, whose loop lives, is at work."""
    directory = tmp_path_factory.mktemp("neighbour")
    process = owner(image, directory)
    yield directory
    process.kill()
    process.wait()
    assert DockerRunner(engine_client).reap() == ["owned"], "its turn has come"


def test_a_trial_in_the_real_images_and_a_loop_killed_while_it_trains(
    user: User,
    witness: Witness,
    foreign: str,
    neighbour: Path,
    engine_client: DockerClient,
    real_images: dict[EnvironmentName, str],
) -> None:
    (theirs,) = jobs(engine_client)
    others = started(engine_client, theirs, foreign)
    kill_in_training(user)
    (left,) = jobs(engine_client) - {theirs}
    labels = engine_client.containers.get(left).labels
    assert started(engine_client, left), "the container outlives its loop"

    output = user.run(*COMMAND, env=SMALL)

    (study,) = (entry.id for entry in user.studies())
    reaped = [line for line in output.splitlines() if "ended what a killed call had left running" in line]
    assert len(reaped) == 1, output
    assert reaped[0].endswith(f"{study}-0001-train"), "exactly the training"
    assert (labels[JOB_LABEL], labels["ftloop.study"], labels["ftloop.trial"]) == (f"{study}-0001-train", study, "1")
    assert jobs(engine_client) == {theirs}, "nothing of this study is left"
    assert started(engine_client, theirs, foreign) == others
    assert is_alive(neighbour)
    assert not processes_below(user.home)

    both_trials_are_whole(user)
    nothing_was_open(witness.of(study), user, real_images)
    assert SECRET not in output
    assert stat.S_IMODE(user.workspace.stat().st_mode) == 0o700, "as its user's umask says"
    assert "2 trials" in user.run(*shlex.split("ftloop report"))


def jobs(client: DockerClient) -> set[str]:
    """The containers of jobs, running or not."""
    return {str(one.id) for one in client.containers.list(all=True, filters={"label": OWNER_LABEL})}


def started(client: DockerClient, *containers: str) -> list[str]:
    """When these running containers started: one that was started again differs."""
    states = [client.containers.get(container).attrs["State"] for container in containers]
    assert all(state["Running"] for state in states)
    return [state["StartedAt"] for state in states]


def kill_in_training(user: User) -> None:
    """Start the command, and kill it once its trainer has written its first steps."""
    process = user.start(*COMMAND, env=SMALL)
    deadline = time.monotonic() + 300
    while not [*user.workspace.glob("studies/*/trials/0001/train/model/trainer_log.jsonl")]:
        assert time.monotonic() < deadline, "the training did not start"
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def both_trials_are_whole(user: User) -> None:
    """The killed call's trial, and this call's: trained by LLaMA-Factory, asked by lm-eval, judged."""
    state = user.state()
    assert len(state.trials) == 2
    base = state.result(0, "bench", Scores)
    assert base is not None
    assert all("lm_eval" in score.settings["versions"] for score in base.scores)
    for trial in state.trials:
        assert trial.failure is None, trial.failure
        assert trial.checkpoint is not None
        assert trial.checkpoint.steps > 0
        assert trial.checkpoint.losses
        assert " llamafactory." in (Path(trial.checkpoint.path).parent / "train.log").read_text()
        (score,) = trial.scores
        assert (score.planned or score.n, score.unscored) == (QUESTIONS, 0), "who cannot win is not asked everything"
        assert trial.verdict in ("better", "tie", "worse", "undecidable")
    done = user.endings()
    assert done[(1, "train", "interrupted")] == 1
    assert done[(1, "propose", "done")] == done[(0, "bench", "done")] == 1, "what was done is kept"
    for number, stage in ((1, "train"), (1, "bench"), (2, "train"), (2, "bench")):
        assert done[(number, stage, "done")] == 1


def nothing_was_open(containers: list[dict[str, Any]], user: User, images: dict[EnvironmentName, str]) -> None:
    """Every job's container, as the engine itself tells it."""
    stages = Counter(one["Config"]["Labels"]["ftloop.stage"] for one in containers)
    assert stages["train"] == 3, "two trainings, one of them twice"
    assert stages["bench"] >= 3, "the base and two candidates"
    for one in containers:
        host, config = one["HostConfig"], one["Config"]
        name = config["Labels"][JOB_LABEL]
        assert config["Image"] == images["bench" if "bench" in name or "test" in name else "train"], name
        assert config["User"] == f"{JOB_USER}:{JOB_USER}" or os.getuid() != 0, name
        assert one["uids"] == {str(JOB_USER)}, name
        assert host["NetworkMode"] == "none"
        assert list(one["NetworkSettings"]["Networks"]) == ["none"]
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["Privileged"] is False
        assert host["PidsLimit"]
        assert host["Memory"]
        assert SECRET not in str(one)
        writable = [mount["Source"] for mount in one["Mounts"] if mount["RW"] and mount["Type"] == "bind"]
        assert len(writable) == 1, f"{name} writes to {writable}"
        assert Path(writable[0]).is_relative_to(user.workspace / "studies")
        assert config["Labels"]["ftloop.stage"] in Path(writable[0]).parts, name
