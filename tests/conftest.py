"""What the tests share: the locked environments, and an environment without anybody's keys and settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.run.environments import Environments
from tests.warm import OPENCOMPASS, warm_python

ROOT = Path(__file__).resolve().parent.parent
LEAKS = ("FT_", "OPENAI_", "HF_", "RAY_", "WANDB_")


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them and their programs ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long is left out, and said to be, unless it is asked for; what shares an engine or a file stays together.

    Several processes run the tests at once (`make test`): those that need an engine would take each other's
    containers and images for their own.
    """
    for item in items:
        together = "engine" if item.get_closest_marker("docker") else item.path.name
        item.add_marker(pytest.mark.xdist_group(together))
    if os.environ.get("FTLOOP_TEST_LONG"):
        return
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="long: set FTLOOP_TEST_LONG=1"))


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


@pytest.fixture(scope="session")
def warm_bench(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The bench environment's python, with OpenCompass imported."""
    with warm_python(environments.python("bench"), tmp_path_factory.mktemp("w"), *OPENCOMPASS) as python:
        yield python
