"""Our data folders are found from a checkout and from an installed package."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.resources import resource

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("name", ["prompts", "docker", "docker/train/requirements.lock"])
def test_a_checkout_has_them(name: str) -> None:
    assert resource(name) == ROOT / name


def test_what_is_missing_is_named() -> None:
    with pytest.raises(MachineError, match="docker/nothing"):
        resource("docker/nothing")


@pytest.mark.parametrize("place", ["share/ftloop", "site-packages/agent/_resources"])
def test_an_installed_package_finds_its_own_and_not_the_docker_sdk(tmp_path: Path, place: str) -> None:
    """In site-packages a folder `docker` lies beside `agent`, and is somebody else's."""
    packages = tmp_path / "site-packages"
    (packages / "agent").mkdir(parents=True)
    for name in ("__init__.py", "errors.py", "resources.py"):
        shutil.copy(ROOT / "agent" / name, packages / "agent")
    (packages / "docker").mkdir()
    ours = tmp_path / place / "docker"
    ours.mkdir(parents=True)
    program = (
        f"import sys; sys.prefix = {str(tmp_path)!r}; from agent.resources import resource; print(resource('docker'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, tmp_path], cwd=packages, capture_output=True, text=True, check=True
    ).stdout
    assert found.strip() == str(ours)
