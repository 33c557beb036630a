"""Resolving benchmark names: data on disk, downloads, the demo's, local task YAMLs, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import UsageError
from scenarios.finetune import demo
from scenarios.finetune.benchmarks import Benchmark, resolve


def no_fetch(dataset: str) -> Path:
    raise AssertionError(f"nothing should be downloaded, asked for {dataset}")


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(count: int, word: str = "test") -> list[dict[str, object]]:
    return [{"question": f"{word} {i}", "answer": f"so\n#### {i}"} for i in range(count)]


def lay_gsm8k(root: Path) -> Path:
    write(root / "benchmarks/gsm8k/test.jsonl", questions(9))
    write(root / "benchmarks/gsm8k/train.jsonl", questions(6, "train"))
    return root


def one(name: str, root: Path, fetch: Callable[[str], Path] = no_fetch) -> Benchmark:
    return resolve([name], root, fetch)[0]


def test_gsm8k_laid_by_hand_needs_no_download(tmp_path: Path) -> None:
    found = one("gsm8k", lay_gsm8k(tmp_path))
    assert (found.name, found.metric, found.filter, found.fewshots) == (
        "gsm8k",
        "exact_match",
        "flexible-extract",
        (0, 5),
    )
    assert (len(found.halves.search), len(found.halves.test), len(found.shots)) == (5, 4, 6)
    assert all(item.row["question"].startswith("test") for item in found.halves.search + found.halves.test)


def test_gsm8k_is_downloaded_where_it_is_missing_and_parquet_is_read(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    asked = []

    def fetch(dataset: str) -> Path:
        asked.append(dataset)
        for subset in ("main", "socratic"):
            for split, count in (("train", 6), ("test", 9)):
                rows = questions(count, f"{subset} {split}")
                file = tmp_path / "snapshot" / subset / f"{split}-00000-of-00001.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        (tmp_path / "snapshot/README.md").write_text("the test set")
        return tmp_path / "snapshot"

    found = one("gsm8k", tmp_path, fetch)
    assert asked == ["openai/gsm8k"]
    assert {item.row["question"][:9] for item in found.halves.search} == {"main test"}
    assert {row["question"][:10] for row in found.shots} == {"main train"}
    laid = tmp_path / "benchmarks/gsm8k"
    assert sorted(path.name for path in laid.iterdir()) == ["test.jsonl", "train.jsonl"]
    lines = [json.loads(line) for line in (laid / "test.jsonl").read_text().splitlines()]
    assert lines == questions(9, "main test")
    shutil.rmtree(tmp_path / "snapshot")
    assert one("gsm8k", tmp_path, no_fetch) == found


def test_what_is_laid_by_hand_is_never_overwritten_and_an_incomplete_download_is_refused(tmp_path: Path) -> None:
    mine = write(tmp_path / "benchmarks/gsm8k/test.jsonl", questions(9, "mine"))
    write(tmp_path / "hub/test.jsonl", questions(7, "theirs"))
    before = mine.read_bytes()
    with pytest.raises(UsageError, match="no file of the train split"):
        one("gsm8k", tmp_path, lambda _: tmp_path / "hub")
    write(tmp_path / "hub/train.jsonl", questions(3, "theirs"))
    found = one("gsm8k", tmp_path, lambda _: tmp_path / "hub")
    assert mine.read_bytes() == before
    assert {item.row["question"][:4] for item in found.halves.search} == {"mine"}
    assert len(found.shots) == 3


def test_a_download_that_is_no_benchmark_leaves_no_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"hub/{split}.jsonl", [*questions(2), {"question": 7}])
    with pytest.raises(UsageError, match="row 3"):
        one("gsm8k", tmp_path, lambda _: tmp_path / "hub")
    assert not (tmp_path / "benchmarks").exists()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "x"}, "row 3: 'answer' must be a text, found None"),
        ({"question": 7, "answer": "y"}, "row 3: 'question' must be a text, found 7"),
        ({"problem": "x", "solution": "y"}, "columns are problem, solution"),
    ],
)
def test_unusable_rows_are_named(tmp_path: Path, row: dict[str, object], words: str) -> None:
    lay_gsm8k(tmp_path)
    write(tmp_path / "benchmarks/gsm8k/test.jsonl", [*questions(2), row])
    with pytest.raises(UsageError) as error:
        one("gsm8k", tmp_path)
    assert words in str(error.value)
    assert "test.jsonl" in str(error.value)


def test_the_demo_brings_its_own_benchmark(tmp_path: Path) -> None:
    demo.make_data(tmp_path / "reverse")
    (found,) = resolve(["reverse"], tmp_path, no_fetch, demo=tmp_path / "reverse")
    assert found.fewshots == (0,)
    assert len(found.halves.search) == len(found.halves.test) == 150
    assert all(isinstance(item.row["answer"], str) for item in found.halves.search)
    with pytest.raises(UsageError, match="--dataset demo/reverse"):
        one("reverse", tmp_path)


@pytest.mark.parametrize("name", ["aime25", "aime24", "mmlu", "math"])
def test_names_that_need_opencompass_say_what_is_available(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as error:
        one(name, tmp_path)
    assert "needs OpenCompass" in error.value.message
    assert "gsm8k" in error.value.hint
    assert "reverse" not in error.value.hint, "it belongs to the demo data set"


def test_unknown_names_get_the_nearest_and_the_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean gsm8k") as error:
        one("gsm8", tmp_path)
    assert "gsm8k" in error.value.hint
    with pytest.raises(UsageError, match="unknown benchmark 'zebra'"):
        one("zebra", tmp_path)


def test_a_bad_name_is_found_before_anything_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="aime25 needs OpenCompass"):
        resolve(["gsm8k", "aime25"], tmp_path, no_fetch)


def test_a_benchmark_named_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="gsm8k is named twice"):
        resolve(["gsm8k", "gsm8k"], lay_gsm8k(tmp_path), no_fetch)


def test_fingerprint_follows_content_and_nothing_else(tmp_path: Path) -> None:
    first = one("gsm8k", lay_gsm8k(tmp_path / "a")).fingerprint
    assert one("gsm8k", lay_gsm8k(tmp_path / "b")).fingerprint == first
    changed = questions(9)
    changed[4]["answer"] = "#### 5"
    write(tmp_path / "b/benchmarks/gsm8k/test.jsonl", changed)
    assert one("gsm8k", tmp_path / "b").fingerprint != first


# Task YAMLs of the user's own

TASK = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: data/capitals.jsonl, train: data/more.jsonl}}
test_split: test
doc_to_text: !function helpers.prompt
doc_to_target: "{{city}}"
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
filter_list:
  - name: first-line
    filter:
      - {function: regex, regex_pattern: "^(.*)$"}
      - {function: take_first}
"""


def lay_task(directory: Path, text: str = TASK) -> Path:
    write(directory / "data/capitals.jsonl", [{"country": f"c{i}", "city": f"d{i}"} for i in range(8)])
    write(directory / "data/more.jsonl", [{"country": f"e{i}", "city": f"f{i}"} for i in range(3)])
    (directory / "helpers.py").write_text("raise RuntimeError('the host must never run this')\n")
    (directory / "capitals.yaml").write_text(text)
    return directory / "capitals.yaml"


def test_a_task_yaml_is_read_without_running_its_functions(tmp_path: Path) -> None:
    path = lay_task(tmp_path)
    found = one(str(path), tmp_path)
    assert (found.name, found.metric, found.filter, found.fewshots) == ("capitals", "exact_match", "first-line", (0,))
    assert found.task == {"file": str(path)}
    assert found.sources == (path, tmp_path / "helpers.py")
    assert len(found.halves.search) == len(found.halves.test) == 4


@pytest.mark.parametrize(
    ("prompt", "duplicates"),
    [
        ('"{{question}}"', 4),
        ("question", 4),
        ('"Q: {{ question.strip() }}\\nA:"', 4),
        ('"{{question}} {{source}}"', 0),
        ("!function helpers.prompt", 0),
        ('"{{made_by_code}}"', 0),
        ('"{{ broken"', 0),
    ],
)
def test_rows_that_ask_the_same_are_one_question(tmp_path: Path, prompt: str, duplicates: int) -> None:
    """Else the search half could hold a question of the sealed half under another number."""
    path = lay_task(tmp_path, TASK.replace("!function helpers.prompt", prompt))
    rows = [{"question": f"q{i % 4}", "city": "c", "source": f"s{i}"} for i in range(8)]
    write(tmp_path / "data/capitals.jsonl", [dict(row) for row in rows])
    halves = one(str(path), tmp_path).halves
    assert halves.duplicates == duplicates
    write(tmp_path / "data/capitals.jsonl", [{"id": i, **row} for i, row in enumerate(rows + rows)])
    again = one(str(path), tmp_path).halves
    assert again.duplicates == duplicates + 8
    assert [item.id for item in again.search] == [item.id for item in halves.search]


def test_the_code_beside_a_task_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    path = lay_task(tmp_path)
    before = one(str(path), tmp_path).fingerprint
    assert one(str(path), tmp_path).fingerprint == before
    (tmp_path / "helpers.py").write_text("def prompt(doc): return 'another'\n")
    assert one(str(path), tmp_path).fingerprint != before


def test_included_files_are_merged_under_the_task(tmp_path: Path) -> None:
    lay_task(tmp_path)
    child = tmp_path / "child.yaml"
    child.write_text("include: capitals.yaml\ntask: child\nnum_fewshot: 2\nfewshot_split: train\n")
    found = one(str(child), tmp_path)
    assert (found.name, found.filter, found.fewshots, len(found.shots)) == ("child", "first-line", (0, 2), 3)
    (tmp_path / "capitals.yaml").write_text(TASK + "include: child.yaml\n")
    with pytest.raises(UsageError, match="includes itself"):
        one(str(child), tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("dataset_path: json", "dataset_path: openai/gsm8k", "dataset_path is 'openai/gsm8k', not json"),
        ("task: capitals", "output_type: multiple_choice\ntask: capitals", "only generate_until"),
        ("task: capitals", "group: capitals\ntask: [a, b]", "key group is not supported"),
        ("task: capitals", "task: ../../escape", "key task must name"),
        ("task: capitals", "task: capitals\nunsafe_code: true", "unsafe_code"),
        ("task: capitals", "task: capitals\ngeneration_kwargs: {do_sample: true}", "greedily"),
        ("task: capitals", "task: capitals\nnum_fewshot: 3", "no data file of their own"),
        ("task: capitals", "task: capitals\nnum_fewshot: 3\nfewshot_split: test", "no data file of their own"),
        ("data/capitals.jsonl", "data/none.jsonl", "does not exist"),
        ("test_split: test", "test_split: exam", "no data file for its test split"),
        ("higher_is_better: true", "higher_is_better: false", "better when lower"),
        ('doc_to_target: "{{city}}"', "", "doc_to_target is missing"),
        ("task: capitals", "task: [", "is not YAML"),
    ],
)
def test_a_task_that_cannot_be_scored_is_refused_by_key(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = lay_task(tmp_path, TASK.replace(old, new))
    with pytest.raises(UsageError) as error:
        one(str(path), tmp_path)
    assert words in str(error.value)
    assert str(tmp_path) in error.value.message


def test_a_task_yaml_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such task YAML"):
        one(str(tmp_path / "none.yaml"), tmp_path)
