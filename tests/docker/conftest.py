"""The engine tests share the image of the conformance suite; some run in the real ones, built as a user's loop does."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from docker import DockerClient

from agent.run import EnvironmentName
from agent.run.containers import DockerRunner, connect
from agent.run.images import is_there, tag_of
from tests.conformance.conftest import image
from tests.docker.base import base_image

__all__ = ["engine_client", "image", "real_images", "train_image"]


@pytest.fixture(scope="session")
def engine_client(image: str) -> Iterator[DockerClient]:
    """Asks for `image`, so that it is skipped, or fails, where that is."""
    client = connect()
    yield client
    client.close()


@pytest.fixture(scope="session")
def real_images(engine_client: DockerClient) -> dict[EnvironmentName, str]:
    """The real images, by environment. Minutes, unless the engine has them; they stay there for the next time."""
    names: dict[EnvironmentName, str] = {"train": tag_of("train", {}), "bench": tag_of("bench", {})}
    if not all(is_there(engine_client, tag) for tag in names.values()):
        runner = DockerRunner(engine_client)
        with base_image(engine_client):  # one base for both: they share the layer with torch
            for name in names:
                runner.ready(name, print)
    return names


@pytest.fixture(scope="session")
def train_image(engine_client: DockerClient, image: str, request: pytest.FixtureRequest) -> str:
    """The real train image in CI, and where the engine has it; else the small one, for want of minutes to build it.

    Both have the same contract: a Python, and nothing set.
    """
    if os.environ.get("CI") == "true":
        return str(request.getfixturevalue("real_images")["train"])
    real = tag_of("train", {})
    return real if is_there(engine_client, real) else image
