"""What a data script wrote is judged: formats, and everything that may be wrong with lines, rows and the whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scenarios.finetune import data, data_report
from scenarios.finetune.data_report import DataReport, examine
from scenarios.finetune.rows import read


def alpaca(number: int, **more: Any) -> dict[str, Any]:
    return {"instruction": f"What is {number} + 1?", "output": str(number + 1), **more}


GOOD = [alpaca(number) for number in range(40)]


def judged(directory: Path, rows: list[Any], **more: Any) -> DataReport:
    """Rows that are bytes are written as they are."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    (directory / "data.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    wanted: dict[str, Any] = {"run": "full", "cutoff_len": 100, "most": 1000} | more
    return examine(directory / "data.jsonl", directory / "kept.jsonl", **wanted)


@pytest.mark.parametrize(
    ("form", "row", "columns"),
    [
        ("alpaca", alpaca(1), {"prompt": "instruction", "response": "output"}),
        (
            "alpaca",
            alpaca(1, input="x", system="be brief"),
            {"prompt": "instruction", "query": "input", "response": "output", "system": "system"},
        ),
        ("question/answer", {"question": "a", "answer": "b"}, {"prompt": "question", "response": "answer"}),
        (
            "chat",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            {"messages": "messages"},
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            {"messages": "conversations"},
        ),
        (
            "preference",
            {"instruction": "a", "input": "b", "chosen": "c", "rejected": "d"},
            {"prompt": "instruction", "query": "input", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            "preference",
            {
                "conversations": [{"from": "human", "value": "a"}],
                "chosen": {"from": "gpt", "value": "b"},
                "rejected": {"from": "gpt", "value": "c"},
            },
            {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
        ),
        (
            "labelled",
            {"prompt": "a", "completion": "b", "label": False},
            {"prompt": "prompt", "response": "completion", "label": "label"},
        ),
    ],
)
def test_formats(form: str, row: dict[str, Any], columns: dict[str, str], tmp_path: Path) -> None:
    report = judged(tmp_path, [row | {"note": "not kept"}], run="debug")
    assert (report.format, report.columns, report.usable) == (form, columns, True), report.for_agent()
    assert list(read(tmp_path / "kept.jsonl")) == [row]
    assert data.recognise(tmp_path / "kept.jsonl").columns == columns


def test_good_data(tmp_path: Path) -> None:
    report = judged(tmp_path, GOOD)
    assert (report.usable, report.rows, report.kept, report.problems) == (True, 40, 40, ())
    assert report.statistics is not None
    assert report.statistics.scripts == {"Latin": 1.0}
    assert report.for_agent().startswith("full run of process_data.py: usable\nrows written 40, kept 40, format alpaca")
    prepared = data.write(data.recognise(tmp_path / "kept.jsonl"), tmp_path / "prepared")
    assert (prepared.rows, prepared.dropped) == (40, 0)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "fatal: no row was written"),
        ([b"", b"  "], "fatal: no row was written"),
        (GOOD[:1], "fatal: too few different rows that can be trained on: 1, at least 10 are needed"),
        (GOOD[:1] * 500, "fatal: too few different rows"),
        (
            [{"text": "a", "label": 1}] * 40,
            "fatal: the output: no usable columns among text, label; wanted: instruction",
        ),
        (
            [alpaca(n) if n % 2 else {"instruction": "x"} for n in range(40)],
            "fatal: 20 rows: without the column 'output'",
        ),
        ([alpaca(n, output="") if n % 4 else alpaca(n) for n in range(40)], "fatal: 30 rows: with an empty 'output'"),
        ([*GOOD, *["text"] * 10], "fatal: 10 rows: JSON, but no object with columns\n  the first: line 41: '\"text\"'"),
        ([*GOOD, b'{"instruction": '], "fatal: 1 row: no JSON\n  the first: line 41: '{\"instruction\":'"),
        ([*GOOD, b"\xff\xfe"], "fatal: 1 row: no JSON"),
        ([*GOOD, b'{"a": NaN}'], "fatal: 1 row: no JSON"),
        ([*GOOD, b"[" * 100_000], "fatal: 1 row: no JSON"),
        ([*GOOD, b'{"a": "' + b"x" * (5 << 20) + b'"}'], "fatal: 1 row: longer than 4 MiB\n  the first: line 41"),
        ([alpaca(n, output="word " * 200) for n in range(40)], "fatal: 40 rows: longer than cutoff_len 100 (about 2"),
        ([{"messages": [{"role": "user", "content": f"{n}"}]} for n in range(40)], "no usable columns among messages"),
        ([{"chosen": "a", "rejected": "b"}] * 40, "fatal: the output: chosen and rejected need a prompt beside them"),
        (
            [{"prompt": f"{n}", "chosen": "a", "rejected": "a"} for n in range(40)],
            "fatal: 40 rows: whose chosen and rejected answers are the same",
        ),
        ([{"prompt": f"{n}", "chosen": "a", "rejected": ""} for n in range(40)], "with an empty 'rejected'"),
        (
            [{"prompt": f"{n}", "completion": "a", "label": True if n else None} for n in range(10)],
            "1 row: whose 'label' is neither true nor false",
        ),
    ],
)
def test_what_makes_data_useless_is_said(rows: list[Any], said: str, tmp_path: Path) -> None:
    report = judged(tmp_path, rows)
    assert not report.usable
    assert said in report.for_agent()
    assert "NOT usable" in report.for_agent()


@pytest.mark.parametrize(
    ("rows", "kept", "said"),
    [
        ([*GOOD, *GOOD[:3]], 43, "3 rows: the same as an earlier row"),
        ([*GOOD, alpaca(99, output=" ")], 40, "1 row: with an empty 'output'\n  the first: {\"instruction\""),
        (
            [*GOOD, alpaca(99, output="word " * 200)],
            41,
            "1 row: longer than cutoff_len 100 (about 254 tokens the longest)",
        ),
        ([*GOOD * 5, b"oops"], 200, "1 row: no JSON"),
    ],
)
def test_what_does_not_is_said_too(rows: list[Any], kept: int, said: str, tmp_path: Path) -> None:
    report = judged(tmp_path, rows)
    assert (report.usable, report.kept) == (True, kept)
    assert said in report.for_agent()
    assert sum(1 for _ in read(tmp_path / "kept.jsonl")) == kept


def test_a_debug_run_may_give_few_rows(tmp_path: Path) -> None:
    assert judged(tmp_path, GOOD[:1], run="debug").usable
    assert not judged(tmp_path, [], run="debug").usable


def test_of_too_many_rows_some_are_drawn(tmp_path: Path) -> None:
    report = judged(tmp_path, GOOD, most=15, seed=3)
    assert (report.rows, report.kept, report.usable) == (40, 15, True)
    drawn = list(read(tmp_path / "kept.jsonl"))
    assert len(drawn) == 15
    assert drawn != GOOD[:15], "not the first ones"
    assert drawn == [row for row in GOOD if row in drawn], "in their order"
    assert "more than the limit of 15: 15 were drawn (seed 3)" in report.for_agent()
    judged(tmp_path, GOOD, most=15, seed=3)
    assert drawn == list(read(tmp_path / "kept.jsonl"))


def test_too_many_lines_end_the_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_report, "MOST_LINES", 20)
    report = judged(tmp_path, GOOD)
    assert report.rows == 20
    assert "fatal: more than 20 lines" in report.for_agent()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(json.dumps(GOOD[0]))
    (tmp_path / "data.jsonl").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        examine(tmp_path / "data.jsonl", tmp_path / "kept.jsonl", run="full", cutoff_len=100, most=10)


def test_lengths_are_counted_as_told(tmp_path: Path) -> None:
    rows = [alpaca(n, output="x" * 100) for n in range(20)]
    assert judged(tmp_path, rows, bytes_per_token=4.0).usable
    assert not judged(tmp_path, rows, bytes_per_token=1.0).usable, "the demo's tokenizer has a token a character"


def test_a_report_survives_its_record_and_its_text_is_bounded(tmp_path: Path) -> None:
    report = judged(tmp_path, [alpaca(n, **{f"column {n} {'x' * 500}": "y" * 5000}) for n in range(60)])
    assert msgspec.json.decode(msgspec.json.encode(report), type=DataReport) == report
    assert len(report.for_agent()) <= data_report.TOLD


CELL = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.dictionaries(st.text(), st.text()))
)
KEYS = st.sampled_from(["instruction", "output", "messages", "chosen", "rejected", "prompt"]) | st.text()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.binary() | st.dictionaries(KEYS, CELL, max_size=5) | CELL, max_size=12))
def test_anything_is_judged(rows: list[Any], tmp_path: Path) -> None:
    judged(tmp_path, rows, run="debug").for_agent().encode()
    assert {path.name for path in tmp_path.iterdir()} <= {"data.jsonl", "kept.jsonl"}, "no drafts are left"
    (tmp_path / "kept.jsonl").unlink(missing_ok=True)
