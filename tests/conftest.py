"""What the tests share: the locked environments, and an environment without anybody's keys and settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.run.environments import Environments

ROOT = Path(__file__).resolve().parent.parent
LEAKS = ("FT_", "OPENAI_", "HF_", "RAY_", "WANDB_")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and keys of whoever runs the tests play no part in them."""
    for name in list(os.environ):
        if name.startswith(LEAKS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def environments() -> Environments:
    """The local runner's locked environments, built on demand and kept between runs as for a user."""
    built = Environments()
    built.ready("train", print)
    built.ready("bench", print)
    return built
