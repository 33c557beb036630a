"""`make demo`, as a newcomer runs it: better than the base on questions that nobody has seen, and said so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from agent.records import Sealed
from agent.run.environments import Environments
from tests.end_to_end.command import ROOT, User

pytestmark = pytest.mark.slow


def test_make_demo_ends_with_a_better_model(tmp_path: Path, environments: Environments) -> None:
    makefile = (ROOT / "Makefile").read_text()
    (command,) = re.findall(r"^demo: plan setup\n\t\$\(BIN\)/(python .*)$", makefile, flags=re.MULTILINE)
    user = User(tmp_path)
    output = user.run(*shlex.split(command), timeout=900)  # what `make demo` runs after `make setup`
    state = user.state()
    assert state.best is not None
    sealed = state.result(state.best, "test", Sealed)
    assert sealed is not None
    assert sealed.comparison.verdict == "better"
    assert sealed.comparison.low > 0
    assert (user.workspace / "output" / state.study / "recipe.yaml").exists()
    assert "better than base" in output
    assert "sealed until the search ended" in output
    assert state.openings == [state.best]
