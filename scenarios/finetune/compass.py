"""Lays a benchmark's questions out as OpenCompass reads them: the input of a docker/bench/compass.py job.

directory/data/...      what OpenCompass calls $COMPASS_DATA_CACHE: the questions of one split, and nothing else
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.rows import Row
from scenarios.finetune.splits import Item

Layout = Callable[[Sequence[Row], Sequence[Row], Path], None]
"""Writes (questions, few-shot examples) below a directory."""


def lay_out(benchmark: Benchmark, items: Sequence[Item], directory: Path, *, fewshot: int) -> dict[str, Any]:
    """Write these questions below `directory`, in the layout that the benchmark's config reads.

    Returns:
        The request's `task` for docker/bench/compass.py: {"compass": config module, "data": directory, "datasets":
        for each question the data set of the module that it belongs to, or None where that has but one, "verdicts",
        "form"}.
    """
    task = benchmark.task
    questions = [item.row for item in items]
    data = directory / "compass"
    data.mkdir(parents=True)
    if files := task.get("files"):
        _by_hand(Path(files), task["questions"], questions, data)
    else:
        LAYOUTS[task["layout"]](questions, benchmark.shots, data)
    return {
        "compass": task["modules"][str(fewshot)],
        "data": str(data),
        "datasets": [row["category"] for row in questions] if task.get("layout") == "mmlu" else None,
        "verdicts": list(benchmark.verdicts),
        "form": task.get("form", ""),
    }


def _aime25(questions: Sequence[Row], shots: Sequence[Row], directory: Path) -> None:
    rows = [{"question": row["question"], "answer": row["answer"]} for row in questions]
    _lines(directory / "data/aime2025/aime2025.jsonl", rows)


def _aime24(questions: Sequence[Row], shots: Sequence[Row], directory: Path) -> None:
    rows = [{"origin_prompt": row["question"], "gold_answer": row["answer"]} for row in questions]
    _lines(directory / "data/aime.jsonl", rows)


def _gsm8k(questions: Sequence[Row], shots: Sequence[Row], directory: Path) -> None:
    rows = [{"question": row["question"], "answer": row["answer"]} for row in questions]
    _lines(directory / "data/gsm8k/test.jsonl", rows)
    # Its loader wants this file, but the examples stand in the config itself.
    _lines(directory / "data/gsm8k/train.jsonl", [{"question": "-", "answer": "#### 0"}])


def _math(questions: Sequence[Row], shots: Sequence[Row], directory: Path) -> None:
    rows = {
        str(number): {"problem": row["question"], "solution": f"\\boxed{{{row['answer']}}}"}
        for number, row in enumerate(questions)
    }
    file = directory / "data/math/test_prm800k_500.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(rows), "utf-8")


def _mmlu(questions: Sequence[Row], shots: Sequence[Row], directory: Path) -> None:
    """One CSV file without header a subject and split."""
    for subject in sorted({row["category"] for row in questions}):
        for split, rows in (("test", questions), ("dev", shots)):
            file = directory / f"data/mmlu/{split}/{subject}_{split}.csv"
            file.parent.mkdir(parents=True, exist_ok=True)
            cells = [
                [row[name] for name in ("question", *"ABCD", "answer")] for row in rows if row["category"] == subject
            ]
            with file.open("w", encoding="utf-8", newline="") as target:
                csv.writer(target, lineterminator="\n").writerows(cells or [["-"] * 6])


def _by_hand(laid: Path, questions_file: str, questions: Sequence[Row], directory: Path) -> None:
    """A user's own files, the one with the questions reduced to those asked for."""
    for file in sorted(path for path in laid.rglob("*") if path.is_file()):
        target = directory / file.relative_to(laid)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.relative_to(laid).as_posix() != questions_file:
            shutil.copyfile(file, target)
    _lines(directory / questions_file, questions)


LAYOUTS: dict[str, Layout] = {"aime25": _aime25, "aime24": _aime24, "gsm8k": _gsm8k, "math": _math, "mmlu": _mmlu}


def _lines(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
