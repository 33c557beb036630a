"""What the tests share: the locked environments, and an environment without anybody's keys and settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from agent.run.environments import Environments
from tests.warm import OPENCOMPASS, warm_python

ROOT = Path(__file__).resolve().parent.parent
ENGINE = ("tests/conformance/", "tests/docker/", "tests/test_clean.py", "tests/test_doctor.py", "tests/test_gateway.py")
LEAKS = ("FT_", "OPENAI_", "HF_", "RAY_", "WANDB_")


def pytest_configure() -> None:
    """A shell that starts the tests in the background has them and their programs ignore Ctrl-C."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Together(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out whole files to the processes of `make test`, and all that needs an engine to one of them.

    On one engine at a time, tests would take each other's containers and images for their own.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "engine" if file.startswith(ENGINE) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    """Asked by pytest-xdist."""
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is long is left out, and said to be, unless it is asked for."""
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
