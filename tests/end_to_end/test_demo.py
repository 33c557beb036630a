"""`make demo`, as a newcomer runs it: better than the base on questions that nobody has seen, and said so."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from agent.records import Sealed
from agent.run.environments import Environments
from tests.end_to_end.command import ROOT, User

pytestmark = pytest.mark.slow


def test_make_demo_ends_with_a_better_model(tmp_path: Path, environments: Environments) -> None:
    user = User(tmp_path)
    output = user.run(*shlex.split(f"make demo -C {ROOT}"), env={"FT_FILE_PATH": str(user.workspace)})
    state = user.state()
    assert state.best is not None
    sealed = state.result(state.best, "test", Sealed)
    assert sealed is not None
    assert sealed.comparison.verdict == "better"
    assert sealed.comparison.low > 0
    assert (user.workspace / "output" / state.study / "recipe.yaml").exists()
    assert "better than base" in output
    assert "sealed from the search, opened once" in output
    assert state.openings == [state.best]
