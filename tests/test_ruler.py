"""What a study is measured with: halves or a search pool, what they can show and what they cost, said beforehand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent import accept, dry_run
from agent.errors import UsageError
from agent.options import parse
from agent.ruler import asked_how, sensitivity
from agent.settings import Settings, load
from scenarios.finetune.asked import normalised
from scenarios.finetune.contamination import scan
from scenarios.finetune.measures import Measures, measures

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


def no_fetch(dataset: str) -> Path:
    raise AssertionError(f"nothing should be downloaded, asked for {dataset}")


def task(root: Path, name: str, questions: list[str]) -> str:
    """A local lm-eval task over these questions; its path."""
    rows, file = root / f"{name}.jsonl", root / f"{name}.yaml"
    rows.write_text("".join(json.dumps({"question": one, "answer": "x"}) + "\n" for one in questions))
    file.write_text(TASK.format(name=name, rows=rows))
    return str(file)


def asked(word: str, count: int) -> list[str]:
    return [f"{word} question {i}?" for i in range(count)]


def read(root: Path, targets: list[str], pool: list[str] | None = None) -> Measures:
    return measures(targets, pool or [], root, no_fetch)


def settings(root: Path, **given: str) -> Settings:
    return load({}, None, {"FT_FILE_PATH": str(root), **given}, root)


def said(found: Measures, chosen: Settings) -> str:
    return "\n".join(sensitivity(found, chosen))


# Splits


def test_without_a_pool_each_benchmark_is_halved(tmp_path: Path) -> None:
    found = read(tmp_path, [task(tmp_path, "aim", asked("aim", 10))])
    assert not found.pooled
    assert found.search == found.sealed == found.all
    assert (len(found.search[0].halves.search), len(found.search[0].halves.test)) == (5, 5)
    assert found.names == "aim"


def test_a_pool_is_searched_whole_and_the_target_is_sealed_whole(tmp_path: Path) -> None:
    aim, near, far = (task(tmp_path, name, asked(name, n)) for name, n in (("aim", 10), ("near", 7), ("far", 4)))
    found = read(tmp_path, [aim], [near, far])
    assert found.pooled
    assert [(b.name, len(b.halves.search), len(b.halves.test)) for b in found.search] == [("near", 7, 0), ("far", 4, 0)]
    assert [(b.name, len(b.halves.search), len(b.halves.test)) for b in found.sealed] == [("aim", 0, 10)]
    assert [b.name for b in found.all] == ["near", "far", "aim"]
    assert found.names == "near, far to search with; aim sealed"
    items = found.search[0].halves.search
    assert [item.id for item in items] == sorted(item.id for item in items), "in hash order, which a limit cuts"
    assert len(found.sealed[0].halves.take("test", 3)) == 3


def test_what_the_pool_shares_is_left_out_and_said(tmp_path: Path) -> None:
    aim = task(tmp_path, "aim", asked("aim", 10))
    near = task(tmp_path, "near", [*asked("near", 5), "AIM  question 3?", "aim question 4?"])
    far = task(tmp_path, "far", [*asked("far", 5), "near question 1?"])
    found = read(tmp_path, [aim], [near, far])
    assert [len(b.halves.search) for b in found.search] == [5, 5]
    assert len(found.sealed[0].halves.test) == 10
    assert found.notes == (
        "near: 2 of its questions are left out, because others ask them too",
        "far: 1 of its questions are left out, because others ask them too",
    )
    texts = [str(item.row["question"]) for b in found.search for item in b.halves.search]
    assert not {text.lower() for text in texts} & set(asked("aim", 10))


def test_a_pool_that_is_the_target_is_refused(tmp_path: Path) -> None:
    aim, copy = task(tmp_path, "aim", asked("aim", 6)), task(tmp_path, "copy", asked("aim", 6))
    with pytest.raises(UsageError, match="every question of copy is asked by aim too"):
        read(tmp_path, [aim], [copy])
    with pytest.raises(UsageError, match="stands in FT_SEARCH_BENCHMARKS and in FT_BENCHMARK_DATASETS"):
        read(tmp_path, [aim], [aim])
    with pytest.raises(UsageError, match="unknown benchmark 'aime42'") as caught:
        read(tmp_path, [aim], ["aime42"])
    assert caught.value.hint.startswith("set FT_SEARCH_BENCHMARKS; available: ")


def test_training_data_are_searched_for_the_questions_of_pool_and_target(tmp_path: Path) -> None:
    def long(word: str) -> list[str]:
        return [f"How many {word} does the farmer number {i} of the {word} valley sell every year?" for i in range(4)]

    found = read(tmp_path, [task(tmp_path, "aim", long("apples"))], [task(tmp_path, "near", long("turnips"))])
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in (long("apples")[1], long("turnips")[2])))
    assert {name: [held.row for held in holds] for name, holds in scan(rows, found.all).items()} == {
        "near": [1],
        "aim": [0],
    }


def test_a_pool_makes_another_study(tmp_path: Path) -> None:
    from agent.records import SEARCHED
    from agent.store import identity_hash
    from tests.records_factory import make_identity

    alone, pooled = make_identity(generation={}), make_identity(generation={SEARCHED: "aime24, math"})
    assert identity_hash(alone) != identity_hash(pooled)
    assert (alone.pool, pooled.pool) == ("", "aime24, math")
    aim, near = task(tmp_path, "aim", asked("aim", 60)), task(tmp_path, "near", asked("near", 200))
    found, chosen = read(tmp_path, [aim], [near]), settings(tmp_path)
    assert asked_how(found.sealed[0], chosen, None).startswith("4 samples"), "by the size of the whole"
    assert asked_how(found.search[0], chosen, None).startswith("greedy")


# The same question in two benchmarks


AIME = [
    f"Let $N_{{{i}}}$ be the number of ordered pairs of positive integers with sum {100 + 7 * i}. Find $N \\bmod 1000$."
    for i in range(20)
]


def lay_rows(root: Path, file: str, rows: list[dict[str, str]]) -> None:
    path = root / "benchmarks" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts(found: Measures, split: str) -> set[str]:
    """The questions that every benchmark has in a split, as letters and digits."""
    rows = [item.row for b in found.all for item in getattr(b.halves, split)]
    return {normalised(str(row.get("question") or row.get("origin_prompt"))) for row in rows}


COMPASS = "opencompass:aime2024.aime2024_llmjudge_gen_5e9f4f"


def lay_aime_twice(root: Path) -> None:
    lay_rows(root, "aime24/test.jsonl", [{"question": text, "answer": str(i)} for i, text in enumerate(AIME)])
    again = [{"origin_prompt": text.replace(" ", "  ").upper(), "gold_answer": str(i)} for i, text in enumerate(AIME)]
    lay_rows(root, f"{COMPASS.replace(':', '/')}/data/aime.jsonl", again)


def test_no_half_is_searched_with_what_another_benchmark_keeps_sealed(tmp_path: Path) -> None:
    lay_aime_twice(tmp_path)
    found = read(tmp_path, ["aime24", COMPASS])
    assert not found.pooled
    assert not texts(found, "search") & texts(found, "test")
    assert len(texts(found, "test")) > 10, "sealed halves stay whole"
    assert any("aime24: " in note and "left out" in note for note in found.notes)


def test_a_pool_in_another_layout_is_the_target_all_the_same(tmp_path: Path) -> None:
    lay_aime_twice(tmp_path)
    with pytest.raises(UsageError, match=r"every question of opencompass-aime2024.* is asked by aime24 too"):
        read(tmp_path, ["aime24"], [COMPASS])


def test_a_copy_in_another_frame_is_left_out_of_the_pool(tmp_path: Path) -> None:
    aim = [f"How many {word} does the farmer of the {word} valley sell in the {word} market?" for word in WORDS]
    framed = [f"Solve this step by step.\n\n{text}\n\nEnd with a number." for text in aim[:3]]
    found = read(tmp_path, [task(tmp_path, "aim", aim)], [task(tmp_path, "near", [*asked("near", 5), *framed])])
    assert len(found.search[0].halves.search) == 5


def test_a_benchmark_loses_what_its_own_sealed_half_holds_in_another_spelling(tmp_path: Path) -> None:
    twice = [text for one in asked("aim", 20) for text in (one, one.upper())]
    found = read(tmp_path, [task(tmp_path, "aim", twice)])
    assert not texts(found, "search") & texts(found, "test")
    assert len(found.sealed[0].halves.test) == 20


def test_multiple_choice_questions_are_known_by_their_choices(tmp_path: Path) -> None:
    def rows(start: int) -> list[dict[str, str]]:
        letters = [{"A": f"claim {start + i}", "B": f"claim {start - i}", "C": "both", "D": "none"} for i in range(8)]
        return [{"question": "Which one is true?", **one, "answer": "A", "category": "law"} for one in letters]

    lay_rows(tmp_path, "mmlu/test.jsonl", rows(100))
    lay_rows(tmp_path, "mmlu/train.jsonl", rows(200))
    (mmlu,) = read(tmp_path, ["mmlu"]).search
    assert mmlu.halves.duplicates == 0
    assert (len(mmlu.halves.search), len(mmlu.halves.test)) == (4, 4)


WORDS = ("apple", "turnip", "cabbage", "carrot", "onion", "pepper")


# What they can show


def test_what_would_be_found_is_said_with_what_it_costs(tmp_path: Path) -> None:
    found = read(tmp_path, [task(tmp_path, "aim", asked("aim", 400))])
    words = said(found, settings(tmp_path))
    gain = accept.detectable(200) * 100
    assert f"aim: 200 questions to search with; a gain of {gain:.0f} points would be found" in words
    assert "each candidate gives up to 200 answers; the sealed test takes 200 of each model" in words
    assert "hopeless" not in words
    sampled = said(found, settings(tmp_path, FT_BENCHMARK_SAMPLES="4"))
    assert "4 samples at temperature" in sampled
    assert f"a gain of {accept.detectable(200, samples=4) * 100:.0f} points" in sampled
    assert "up to 800 answers" in sampled


def test_several_benchmarks_say_what_they_show_together(tmp_path: Path) -> None:
    found = read(tmp_path, [task(tmp_path, name, asked(name, 300)) for name in ("one", "two")])
    each = accept.detectable(150)
    words = said(found, settings(tmp_path))
    assert words.count("would be found alone") == 2
    assert f"together: a gain of {accept.together([each, each]) * 100:.0f} points on each would be found" in words


def test_a_hopeless_study_says_so_and_what_would_help(tmp_path: Path) -> None:
    found = read(tmp_path, [task(tmp_path, "aim", asked("aim", 40))])
    words = said(found, settings(tmp_path, FT_BENCHMARK_SAMPLES="1"))
    assert "too few to prove a gain: undecidable" in words
    assert "this study is hopeless as it is" in words
    assert "FT_BENCHMARK_SAMPLES=8" in words
    assert 'FT_SEARCH_BENCHMARKS=["aime24", "math"]' in words
    assert "FT_BENCHMARK_LIMIT" not in words, "there is no limit to raise"
    limited = said(found, settings(tmp_path, FT_BENCHMARK_LIMIT="4"))
    assert "a larger FT_BENCHMARK_LIMIT than 4" in limited
    assert "FT_BENCHMARK_SAMPLES" not in limited, "four questions are too few with any number of answers"


def test_a_pool_rescues_a_hopeless_study(tmp_path: Path) -> None:
    aim, near = task(tmp_path, "aim", asked("aim", 30)), task(tmp_path, "near", asked("near", 300))
    words = said(read(tmp_path, [aim], [near]), settings(tmp_path))
    assert "hopeless" not in words
    assert "near: 300 questions to search with" in words
    assert "each candidate gives up to 300 answers; the sealed test takes 240 of each model" in words


def test_a_dry_run_says_it_where_the_data_are_on_disk(tmp_path: Path) -> None:
    aim, near = task(tmp_path, "aim", asked("aim", 30)), task(tmp_path, "near", asked("near", 300))
    chosen = settings(tmp_path, FT_BENCHMARK_DATASETS=json.dumps([aim]), FT_SEARCH_BENCHMARKS=json.dumps([near]))
    before = sorted(tmp_path.rglob("*"))
    rows = list(dry_run.rows(parse(["--dataset", "lab/mine", "--confirm", "2"]), chosen))
    words = "\n".join(line for _, line in rows)
    assert "near: 300 questions to search with" in words
    assert dict(rows)["searched"] == f"with {near}"
    assert dict(rows)["confirm"] == "train the winner's recipe from 2 other seeds, and score it as candidates are"
    assert sorted(tmp_path.rglob("*")) == before
    absent = settings(tmp_path, FT_BENCHMARK_DATASETS='["gsm8k"]')
    words = "\n".join(line for _, line in dry_run.rows(parse(["--dataset", "lab/mine"]), absent))
    assert "said once their data are on disk" in words
    both = settings(tmp_path, FT_BENCHMARK_DATASETS='["gsm8k"]', FT_SEARCH_BENCHMARKS='["gsm8k"]')
    with pytest.raises(UsageError, match="gsm8k stands in FT_SEARCH_BENCHMARKS and in"):
        list(dry_run.rows(parse(["--dataset", "lab/mine"]), both))
