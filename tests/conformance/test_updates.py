"""LLaMA-Factory's newest commit becomes an image, or the installed version stays; from a repository of the test's."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from agent.run import updates
from agent.run.containers import connect
from agent.run.images import is_there, ours, remove
from agent.run.updates import NotUpdated

from .upstream import Repository


def test_a_repository_out_of_reach_is_one_line_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    started = time.monotonic()
    url = "https://no-such-host.invalid/LLaMA-Factory"
    with pytest.raises(NotUpdated, match=url):  # no engine is needed to find that out
        updates.newest(None, "ftloop-train:x", said.append, url=url, patience=5.0)  # type: ignore[arg-type]
    assert time.monotonic() - started < 7
    assert said == []


def test_a_repository_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """The transport hangs; git and its helper are ended."""
    program = tmp_path / "git-remote-hang"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        started = time.monotonic()
        with pytest.raises(NotUpdated, match="no answer in 6 s"):
            updates.newest(None, "x", print, url="hang://host/repository", patience=6.0)  # type: ignore[arg-type]
    assert time.monotonic() - started < 20
    process = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 5
    while (state := process_state(process)) not in ("Z", ""):  # ended, though perhaps not yet waited for
        assert time.monotonic() < deadline, f"the helper of git is still there, in state {state}"
        time.sleep(0.05)


def process_state(process: str) -> str:
    """The state letter of proc(5); empty for a process that is gone."""
    try:
        return Path("/proc", process, "stat").read_text().split()[2]
    except OSError:
        return ""


def test_a_machine_without_git_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotUpdated, match="git cannot be run"):
        updates.newest(None, "x", print)  # type: ignore[arg-type]


def test_a_branch_that_is_gone_is_told(repository: Repository) -> None:
    repository.commit("0.9.6")
    with pytest.raises(NotUpdated, match="no branch gone"):
        updates.newest(None, "x", print, url=repository.url, branch="gone")  # type: ignore[arg-type]


@pytest.mark.docker
def test_the_newest_commit_becomes_an_image_with_its_arguments(repository: Repository, installed: str) -> None:
    client, said = connect(), list[str]()
    repository.commit("0.9.6")
    commit = repository.commit("0.9.7.dev0", key="newest_key", requires=("audio>=2", "numlike<3"))
    found = updates.newest(client, installed, said.append, url=repository.url, network="none")
    try:
        assert found.commit == commit
        assert found.image == updates.image_of(installed, commit)
        assert found.image in ours(client)
        image = client.images.get(found.image)
        assert image.labels[updates.COMMIT_LABEL] == commit
        assert image.attrs["Config"]["User"] == "1000:1000"
        arguments = json.loads(found.arguments)
        assert arguments["newest_key"]["types"] == ["int"]
        assert client.images.list(filters={"dangling": True, "label": "ftloop.step=wheel"}) == []
        said.clear()
        again = updates.at(client, installed, commit, said.append, url="file:///gone", network="none")
        assert again == found, "nothing is built or fetched twice"
        assert said == []
    finally:
        remove(client, [found.image])


@pytest.mark.docker
@pytest.mark.parametrize(
    ("requires", "words"),
    [
        (("audio", "numlike>=3"), "numlike>=3 (the lock has numlike 2.0)"),
        (("audio", "brand-new>=1"), "needs brand-new"),
    ],
)
def test_what_the_locked_versions_do_not_satisfy_is_not_taken(
    repository: Repository, installed: str, requires: tuple[str, ...], words: str
) -> None:
    client = connect()
    commit = repository.commit("0.9.8", requires=requires)
    with pytest.raises(NotUpdated) as why:
        updates.newest(client, installed, print, url=repository.url, network="none")
    assert words in str(why.value)
    assert "audio" not in str(why.value), "the lock leaves it out on purpose"
    assert not is_there(client, updates.image_of(installed, commit))


@pytest.mark.docker
def test_a_commit_that_does_not_build_is_not_taken(repository: Repository, installed: str) -> None:
    client = connect()
    (repository.path / "backend.py").write_text("raise SystemExit('broken upstream')")
    commit = repository.commit("0.9.9")
    with pytest.raises(NotUpdated, match=r"building ftloop-train-update:.* failed"):
        updates.newest(client, installed, print, url=repository.url, network="none")
    assert not is_there(client, updates.image_of(installed, commit))


@pytest.mark.docker
def test_arguments_that_cannot_be_read_are_not_taken(repository: Repository, installed: str) -> None:
    repository.commit("0.9.10", parser='VERSION = "0.9.10"\nraise ImportError("moved")\n')
    with pytest.raises(NotUpdated, match="ImportError: moved"):
        updates.newest(connect(), installed, print, url=repository.url, network="none")


@pytest.mark.docker
def test_a_version_without_what_every_training_sets_is_not_taken(repository: Repository, installed: str) -> None:
    client = connect()
    commit = repository.commit("0.9.11", key="new_key")
    with pytest.raises(NotUpdated, match="has no cutoff_len, template any more"):
        updates.newest(
            client, installed, print, needed=("stage", "template", "cutoff_len"), url=repository.url, network="none"
        )
    assert not is_there(client, updates.image_of(installed, commit))
