"""Each test of this folder runs once a runner; those of the docker runner need an engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.run import Runner
from agent.run.containers import connect, docker_answers

from .images import make_image
from .runners import make_runner
from .upstream import Repository, make_installed


@pytest.fixture(scope="session")
def image() -> str:
    """The image of the docker tests; skips them where no engine answers, but fails them in CI."""
    problem = docker_answers()
    if problem and os.environ.get("CI") == "true":
        pytest.fail(problem)
    if problem:
        pytest.skip(problem)
    client = connect()
    try:
        return make_image(client)
    finally:
        client.close()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """Where an update of LLaMA-Factory comes from."""
    return Repository(tmp_path / "repository")


@pytest.fixture(scope="session")
def installed(image: str) -> Iterator[str]:
    """A stand-in for the training image, upon the image of the docker tests."""
    client = connect()
    tag = make_installed(client)
    yield tag
    client.images.remove(tag, force=True)
    client.close()


@pytest.fixture(params=["local", pytest.param("docker", marks=pytest.mark.docker)])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def image_name(kind: str, request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue("image")) if kind == "docker" else ""


@pytest.fixture
def runner(kind: str, image_name: str) -> Iterator[Runner]:
    made = make_runner(kind, image_name)
    yield made
    if kind == "docker":
        made._client.close()  # type: ignore[attr-defined]
