"""The engine tests share the image of the conformance suite; the attempts to escape can be made in a real one too."""

from __future__ import annotations

import os

import pytest

from agent.run.containers import connect
from agent.run.images import is_there
from tests.conformance.conftest import image

__all__ = ["image", "train_image"]


@pytest.fixture(scope="session")
def train_image(image: str) -> str:
    """The image named by FTLOOP_TEST_TRAIN_IMAGE, or the small one with the same contract: a Python and nothing set."""
    named = os.environ.get("FTLOOP_TEST_TRAIN_IMAGE")
    if named:
        client = connect()
        assert is_there(client, named), f"FTLOOP_TEST_TRAIN_IMAGE: the engine has no image {named}"
        client.close()
    return named or image
