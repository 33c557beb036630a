"""Finds the data folders `prompts/` and `docker/`, from a checkout and from an installed wheel alike."""

from __future__ import annotations

import site
import sys
from pathlib import Path

from agent.errors import MachineError


def resource(name: str) -> Path:
    """The file or folder `name`, a path relative to the repository ("prompts", "docker/train/requirements.lock").

    Raises:
        MachineError: if it is not there, as in a wheel that was built without its data.
    """
    roots = _roots(Path(__file__).resolve().parent)
    for root in roots:
        if (root / name).exists():
            return root / name
    raise MachineError(
        f"ftloop's own {name!r} is missing; looked in {', '.join(map(str, roots))}",
        "reinstall ftloop, or run it from a complete checkout",
    )


def _roots(package: Path) -> list[Path]:
    """Where data may lie, given the folder of the package `agent`; the first that has it wins."""
    checkout = package.parent
    # In site-packages, "docker" beside "agent" is the docker SDK, not our folder: only a checkout counts.
    if (checkout / "pyproject.toml").is_file():
        return [checkout]
    prefixes = [sys.prefix, site.getuserbase()]
    return [package / "_resources", *(Path(prefix) / "share" / "ftloop" for prefix in prefixes)]
