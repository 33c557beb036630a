"""What a refused call leaves behind: no study that nobody can continue, and every file that the refusal names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.errors import FtloopError, MachineError, UsageError
from agent.journal import FORMAT, CallStarted, Journal, StudyOpened
from agent.store import StudyPaths, Workspace
from agent.wiring import forgotten_if_refused
from tests.records_factory import make_identity
from tests.test_models import make_model
from tests.test_relevance import called, lay, word_problems


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    found = StudyPaths(tmp_path / "studies/mine")
    (found.root / "data").mkdir(parents=True)
    (found.root / "data/train.jsonl").write_text("{}\n")
    found.contamination.write_text("{}\n")
    return found


def opened(paths: StudyPaths, *, call: bool = False) -> None:
    journal = Journal(paths.journal)
    journal.append(StudyOpened(at=journal.now(), format=FORMAT, study="mine", identity=make_identity()))
    if call:
        begun = CallStarted(
            at=journal.now(), call=1, pid=1, runner="local", proposer="tpe", loop_n=1, step_n=None, timeout=None
        )
        journal.append(begun)
    journal.close()


def left(paths: StudyPaths, error: FtloopError, *, call: bool = False, old: bool = False) -> list[str]:
    """The names in the study's directory after a call that opened it, or found it, ended with this error."""
    if old:
        opened(paths)

    def refused() -> None:
        with forgotten_if_refused(paths):
            if not old:
                opened(paths, call=call)
            raise error

    with pytest.raises(type(error)):
        refused()
    return sorted(path.name for path in paths.root.iterdir()) if paths.root.exists() else []


def test_a_new_study_that_is_refused_is_gone(paths: StudyPaths) -> None:
    assert left(paths, UsageError("FT_TEMPLATE: there is none")) == []
    assert not paths.root.exists()


def test_what_the_refusal_names_stays(paths: StudyPaths) -> None:
    assert left(paths, UsageError("5 rows", f"they are listed in {paths.contamination}")) == ["contamination.jsonl"]


def test_a_study_that_began_or_was_there_or_only_met_a_broken_machine_stays(paths: StudyPaths) -> None:
    everything = ["contamination.jsonl", "data", "journal.jsonl"]
    assert left(paths, MachineError("the engine is gone")) == everything
    assert left(paths, UsageError("wrong"), old=True) == everything
    paths.journal.unlink()
    assert left(paths, UsageError("wrong"), call=True) == everything


def test_contaminated_data_refused_leave_the_listing_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CONTAMINATION", "refuse")
    lay(tmp_path / "benchmarks/gsm8k/test.jsonl", word_problems(1))
    lay(tmp_path / "datasets/mine/train.jsonl", word_problems(2) + word_problems(1)[:5])
    make_model(tmp_path / "models/tiny")
    done = called(tmp_path, "--loop_n", "1")
    assert done.returncode == 2
    assert "5 of 65 rows hold questions of gsm8k" in done.stderr
    (listing,) = [path for path in (tmp_path / "studies").rglob("*") if path.is_file()]
    assert str(listing) in "".join(done.stderr.split("\n"))
    assert len([json.loads(line)["row"] for line in listing.read_text().splitlines()]) == 5
    assert Workspace(tmp_path).index() == []
