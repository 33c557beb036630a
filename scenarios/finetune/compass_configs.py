"""Which configs the locked OpenCompass has: a wrong name is refused at once, and not by a job."""

from __future__ import annotations

import difflib

from agent.errors import UsageError
from agent.resources import resource

CONFIGS = "docker/bench/opencompass_configs.txt"
"""A heading that names the version, then one module below opencompass.configs.datasets a line."""


def require_config(benchmark: str) -> None:
    """UsageError where OpenCompass has no config of the name in "opencompass:<config module>"."""
    version, *known = resource(CONFIGS).read_text("utf-8").splitlines()
    module = benchmark.removeprefix("opencompass:").replace(".", "/")
    if module in known:
        return
    near = ["opencompass:" + one.replace("/", ".") for one in difflib.get_close_matches(module, known, cutoff=0.7)]
    named = "its configs are named <folder>.<config>, as aime2024.aime2024_gen_17d799: docs/benchmarks.md"
    raise UsageError(
        f"benchmark {benchmark!r}: {version.removeprefix('# ').split(':')[0]} has no such config",
        f"did you mean {' or '.join(near)}?" if near else named,
    )
