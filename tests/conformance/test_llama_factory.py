"""A study keeps the LLaMA-Factory that it began with; with a real engine, and a repository of the test's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.journal import Journal, StageStarted, StudyOpened
from agent.llama_factory import Source, Trainer, settle
from agent.run import Runner, updates
from agent.run.containers import DockerRunner, connect
from agent.run.images import remove
from agent.run.updates import image_of
from agent.store import StudyPaths
from tests.toy import IDENTITY

from .runners import make_runner, python_job
from .upstream import Repository

GONE = Source(url="file:///gone", network="none")
Settle = Callable[..., Trainer]


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    """A study that was just begun."""
    paths = StudyPaths(tmp_path / "studies" / "toy")
    Journal(paths.journal).append(StudyOpened(at=0.0, format=1, study="toy", identity=IDENTITY))
    return paths


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def call(paths: StudyPaths, said: list[str]) -> Settle:
    """What one call does, from what lies on the disk."""

    def settle_once(runner: Runner, source: Source = GONE, wanted: bool = True) -> Trainer:
        said.clear()
        return settle(
            runner, Journal(paths.journal), paths, wanted=wanted, needed=("stage",), say=said.append, source=source
        )

    return settle_once


@pytest.fixture
def runner(installed: str) -> Iterator[DockerRunner]:
    client = connect()
    yield DockerRunner(client, {"train": installed, "bench": installed})
    client.close()


@pytest.fixture
def upstream(repository: Repository, installed: str) -> Iterator[Source]:
    """Its only commit is `0.9.6`; the images of all commits that a test adds are removed."""
    repository.commit("0.9.6", key="first_key")
    yield Source(url=repository.url, network="none")
    client = connect()
    remove(client, [image_of(installed, commit) for commit in repository.commits()])
    client.close()


def version(trainer: Trainer, directory: Path) -> str:
    """Of the LLaMA-Factory that a training job finds."""
    code = "from llamafactory.hparams import parser; print(parser.VERSION)"
    outcome = trainer.runner.run(python_job(directory, "", argv=("python", "-c", code)))
    return outcome.tail.strip() if outcome.kind == "ok" else "installed"


@pytest.mark.docker
def test_a_new_study_takes_the_newest_and_keeps_it(
    call: Settle, runner: DockerRunner, upstream: Source, repository: Repository, paths: StudyPaths, tmp_path: Path
) -> None:
    assert version(Trainer(runner), tmp_path / "before") == "installed"
    commit = repository.commit("0.9.7", key="second_key")
    first = call(runner, upstream)
    assert first.arguments is not None
    assert first.arguments["second_key"].types == ("int",)
    assert version(first, tmp_path / "first") == "0.9.7"
    journaled = Journal(paths.journal).state.llama_factory
    assert journaled is not None
    assert journaled.commit == commit
    assert journaled.arguments == hashlib.sha256(paths.arguments.read_bytes()).hexdigest()

    before = paths.journal.read_bytes()
    repository.commit("0.9.8", key="third_key")
    second = call(runner, GONE, wanted=False)  # nobody is asked, whatever the setting says now
    assert second.arguments == first.arguments
    assert version(second, tmp_path / "second") == "0.9.7"
    assert paths.journal.read_bytes() == before


@pytest.mark.docker
def test_an_image_that_was_removed_is_built_again_from_the_same_commit(
    call: Settle, runner: DockerRunner, upstream: Source, repository: Repository, paths: StudyPaths, tmp_path: Path
) -> None:
    first = call(runner, upstream)
    commit = repository.commits()[0]
    repository.commit("0.9.7")
    before = paths.journal.read_bytes()
    remove(runner.client, [image_of(runner.environment_image("train"), commit)])
    source = paths.llama_factory.read_bytes()
    paths.llama_factory.write_bytes(source[:-1] + b"x")
    with pytest.raises(MachineError, match=f"began with LLaMA-Factory's commit {commit[:12]}") as stopped:
        call(runner, GONE)
    assert "file:///gone can be reached" in stopped.value.hint
    assert paths.journal.read_bytes() == before
    again = call(runner, upstream)
    assert paths.llama_factory.read_bytes() == source
    assert version(again, tmp_path / "again") == "0.9.6"
    assert again.arguments == first.arguments
    assert paths.journal.read_bytes() == before


@pytest.mark.docker
@pytest.mark.parametrize("there", [False, True], ids=["built by this study", "built by another one"])
def test_an_image_that_was_removed_is_built_again_without_a_network(
    call: Settle,
    runner: DockerRunner,
    upstream: Source,
    repository: Repository,
    paths: StudyPaths,
    tmp_path: Path,
    there: bool,
) -> None:
    """As FT_DOCKER_ENABLE_CACHE=False removes it: the study has the source."""
    (commit,) = repository.commits()
    image = runner.environment_image("train")
    if there:
        updates.at(runner.client, image, commit, print, url=repository.url, network="none")
    first = call(runner, upstream)
    before = paths.journal.read_bytes()
    remove(runner.client, [image_of(image, commit)])
    again = call(runner, GONE)
    assert version(again, tmp_path / "again") == "0.9.6"
    assert again.arguments == first.arguments
    assert paths.journal.read_bytes() == before


@pytest.mark.docker
@pytest.mark.parametrize("damage", ["{}", "", None], ids=["other", "no json", "gone"])
def test_arguments_that_are_damaged_are_read_from_the_image_again(
    call: Settle, runner: DockerRunner, upstream: Source, paths: StudyPaths, damage: str | None
) -> None:
    first = call(runner, upstream)
    whole = paths.arguments.read_bytes()
    if damage is None:
        paths.arguments.unlink()
    else:
        paths.arguments.write_text(damage)
    assert call(runner, GONE).arguments == first.arguments
    assert paths.arguments.read_bytes() == whole


@pytest.mark.docker
def test_out_of_reach_is_said_and_stays_decided(
    call: Settle, runner: DockerRunner, upstream: Source, paths: StudyPaths, said: list[str]
) -> None:
    trainer = call(runner, GONE)
    assert (trainer.runner, trainer.arguments) == (runner, None)
    assert said == [
        "LLaMA-Factory is not updated: file:///gone cannot be reached "
        "('/gone' does not appear to be a git repository); going on with the installed version"
    ]
    journaled = Journal(paths.journal).state.llama_factory
    assert journaled is not None
    assert journaled.commit is None
    assert "file:///gone cannot be reached" in journaled.why
    again = call(runner, upstream)
    assert (again.runner, again.arguments) == (runner, None), "no other version in the middle of a study"
    assert "with which this study began (file:///gone cannot be reached" in said[-1]


@pytest.mark.docker
def test_a_study_of_an_earlier_version_of_ftloop_goes_on_with_what_trained_it(
    call: Settle, runner: DockerRunner, upstream: Source, paths: StudyPaths
) -> None:
    journal = Journal(paths.journal)
    journal.append(StageStarted(at=0.0, call=1, trial=1, stage="propose", attempt=1))
    journal.close()
    assert call(runner, upstream).runner is runner
    journaled = Journal(paths.journal).state.llama_factory
    assert journaled is not None
    assert journaled.commit is None
    assert "trained with it already" in journaled.why


@pytest.mark.docker
def test_the_local_runner_does_not_go_on_with_an_update(call: Settle, runner: DockerRunner, upstream: Source) -> None:
    call(runner, upstream)
    with pytest.raises(MachineError, match="only the docker runner") as stopped:
        call(make_runner("local"), upstream)
    assert "--runner docker" in stopped.value.hint


@pytest.mark.docker
def test_a_study_that_did_not_want_one_gets_none_later(
    call: Settle, runner: DockerRunner, upstream: Source, said: list[str]
) -> None:
    assert call(runner, upstream, wanted=False).runner is runner
    assert said == []
    assert call(runner, upstream).runner is runner
    assert "FT_UPDATE_LLAMA_FACTORY=False" in said[-1]


def test_the_local_runner_says_once_that_it_cannot(call: Settle, paths: StudyPaths, said: list[str]) -> None:
    local = make_runner("local")
    assert call(local).runner is local
    assert said == [
        "LLaMA-Factory is not updated: FT_UPDATE_LLAMA_FACTORY needs the docker runner; "
        "going on with the installed version"
    ]
    journaled = Journal(paths.journal).state.llama_factory
    assert journaled is not None
    assert journaled.commit is None
    assert call(local).runner is local
    assert said == []
