"""What the language model's tools read of a study: the rows that may be shown, their columns, and some logs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.library import LOGS, StudyLibrary
from agent.propose.tools import LogStage
from agent.store import StudyPaths


@pytest.fixture
def library(tmp_path: Path) -> StudyLibrary:
    paths = StudyPaths(tmp_path / "study")
    paths.data.mkdir(parents=True)
    file = paths.data / "train.jsonl"
    rows = [{"instruction": f"question {n}", "topic": "even" if n % 2 == 0 else "odd"} for n in range(1, 101)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return StudyLibrary(file, frozenset({2, 3}), paths, tmp_path / "tokenizer.json")


def test_rows_are_numbered_without_a_gap(library: StudyLibrary) -> None:
    assert library.rows(1, 3) == [
        '1: {"instruction": "question 1", "topic": "odd"}',
        '2: {"instruction": "question 4", "topic": "even"}',
        '3: {"instruction": "question 5", "topic": "odd"}',
    ]
    assert library.rows(98, 20) == ['98: {"instruction": "question 100", "topic": "even"}']
    assert library.rows(99, 20) == []


def test_where_nobody_knows_which_rows_hold_questions_none_is_shown(library: StudyLibrary) -> None:
    blind = StudyLibrary(library.file, None, library.paths, library.tokenizer)
    assert blind.rows(1, 20) == []
    with pytest.raises(ValueError, match="no column 'topic'"):
        blind.column("topic")


def test_a_column_in_figures(library: StudyLibrary) -> None:
    said = library.column("topic")
    assert 'column "topic": text, 100% filled, 2 different, tokens (p5, p50, p95, max): 1, 1, 1, 1' in said
    assert "49 rows: even\n49 rows: odd" in said or "49 rows: odd\n49 rows: even" in said
    assert "instruction" not in said
    assert "no value twice" in library.column("instruction")
    with pytest.raises(ValueError, match="no column 'prompt'; there is instruction, topic"):
        library.column("prompt")


def test_where_recipes_may_work_on_the_data_all_of_its_columns_are_looked_at(
    library: StudyLibrary, tmp_path: Path
) -> None:
    """As scripts get it, without the rows that hold questions; and laid out only when it is looked at."""
    file, asked = tmp_path / "whole.jsonl", []

    def whole() -> Path:
        asked.append(1)
        file.write_text('{"instruction": "q", "output": "a", "source": "web"}\n')
        return file

    given = StudyLibrary(library.file, library.held, library.paths, library.tokenizer, whole)
    assert given.statistics().rows == 98
    assert not asked
    assert given.rows(1, 5) == ['1: {"instruction": "q", "output": "a", "source": "web"}']
    assert "1 different" in given.column("source")


def test_lengths_are_counted_by_the_models_own_vocabulary(library: StudyLibrary) -> None:
    library.tokenizer.write_text(json.dumps({"model": {"vocab": dict.fromkeys("qeustion Ġ1234567890evnd", 0)}}))
    assert "tokens (p5, p50, p95, max): 3, 3, 4, 4" in library.column("topic")


@pytest.mark.parametrize(
    ("stage", "files", "said"),
    [
        ("train", {"train/train.log": "step 3\nloss 0.1"}, "step 3\nloss 0.1"),
        ("mini-run", {"mini-run/train.log": "fits"}, "fits"),
        ("data", {"data/script-1/debug/job.log": "first", "data/script-2/debug/job.log": "second"}, "second"),
        ("data", {"data/script-1/debug/job.log": "debug", "data/script-1/full/job.log": "full"}, "full"),
        ("data", {}, ""),
        ("train", {"bench/train.log": "a question", "train/job.log": "x"}, ""),
    ],
)
def test_logs(library: StudyLibrary, stage: LogStage, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        file = library.paths.trial(1) / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    assert library.log(1, stage) == said


def test_a_log_that_is_a_link_is_not_followed(library: StudyLibrary, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the key")
    stage = library.paths.stage(1, "train")
    stage.mkdir(parents=True)
    (stage / "train.log").symlink_to(tmp_path / "secret")
    assert library.log(1, "train") == ""


def test_no_stage_that_sees_a_benchmark_has_a_log_to_read() -> None:
    assert set(LOGS) == {"data", "mini-run", "train"}
