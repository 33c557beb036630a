"""Which optional packages a training can use: those that the lock files of the training environment name."""

from __future__ import annotations

import re
from functools import cache

from agent.resources import resource

LOCKS = {"cpu": ("requirements.lock",), "cuda": ("requirements.lock", "requirements.gpu")}
NAME = re.compile(r"^([A-Za-z0-9][\w.-]*)\s*==", re.MULTILINE)


@cache
def installed(device: str) -> frozenset[str]:
    """Names of the packages where trainings run, lower case and with hyphens; no job, no network."""
    text = "\n".join(resource(f"docker/train/{name}").read_text(encoding="utf-8") for name in LOCKS[device])
    return frozenset(re.sub(r"[-_.]+", "-", name).lower() for name in NAME.findall(text))
