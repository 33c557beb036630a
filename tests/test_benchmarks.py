"""Resolving benchmark names: data on disk, downloads, the demo's, local task YAMLs, and every refusal."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import UsageError
from agent.resources import resource
from agent.run.environments import Environments
from scenarios.finetune import demo
from scenarios.finetune.benchmarks import LOCK, Benchmark, require_known, resolve
from scenarios.finetune.compass_configs import CONFIGS
from scenarios.finetune.registry import REGISTRY


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
    assert (found.name, found.engine, found.fewshots, found.verdicts) == ("gsm8k", "opencompass", (0, 4), ())
    assert found.task["modules"] == {"0": "gsm8k.gsm8k_0shot_gen_a58960", "4": "gsm8k.gsm8k_gen_1d7fe4"}
    assert (len(found.halves.search), len(found.halves.test)) == (5, 4)
    assert not found.shots, "the config has its examples in the prompt"
    assert all(item.row["question"].startswith("test") for item in found.halves.search + found.halves.test)


def test_gsm8k_by_lm_eval_has_the_same_questions_under_a_name_that_a_mount_can_bear(tmp_path: Path) -> None:
    found, other = resolve(["lm_eval:gsm8k", "gsm8k"], lay_gsm8k(tmp_path), no_fetch)
    assert (found.name, found.engine, found.task) == ("lm_eval-gsm8k", "lm_eval", {"shipped": "gsm8k/gsm8k.yaml"})
    assert (found.metric, found.filter, found.fewshots) == ("exact_match", "flexible-extract", (0, 5))
    assert len(found.shots) == 6
    assert found.halves == other.halves
    assert found.fingerprint != other.fingerprint


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

    found = one("lm_eval:gsm8k", tmp_path, fetch)
    assert asked == ["openai/gsm8k"]
    assert {item.row["question"][:9] for item in found.halves.search} == {"main test"}
    assert {row["question"][:10] for row in found.shots} == {"main train"}
    laid = tmp_path / "benchmarks/gsm8k"
    assert sorted(path.name for path in laid.iterdir()) == ["test.jsonl", "train.jsonl"]
    lines = [json.loads(line) for line in (laid / "test.jsonl").read_text().splitlines()]
    assert lines == questions(9, "main test")
    shutil.rmtree(tmp_path / "snapshot")
    assert one("lm_eval:gsm8k", tmp_path, no_fetch) == found


def test_what_is_laid_by_hand_is_never_overwritten_and_an_incomplete_download_is_refused(tmp_path: Path) -> None:
    mine = write(tmp_path / "benchmarks/gsm8k/test.jsonl", questions(9, "mine"))
    write(tmp_path / "hub/test.jsonl", questions(7, "theirs"))
    before = mine.read_bytes()
    with pytest.raises(UsageError, match="no file of the train split"):
        one("lm_eval:gsm8k", tmp_path, lambda _: tmp_path / "hub")
    write(tmp_path / "hub/train.jsonl", questions(3, "theirs"))
    found = one("lm_eval:gsm8k", tmp_path, lambda _: tmp_path / "hub")
    assert mine.read_bytes() == before
    assert {item.row["question"][:4] for item in found.halves.search} == {"mine"}
    assert len(found.shots) == 3


def test_a_download_that_is_no_benchmark_leaves_no_file(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"hub/{split}.jsonl", [*questions(2), {"question": 7}])
    with pytest.raises(UsageError, match="row 3"):
        one("lm_eval:gsm8k", tmp_path, lambda _: tmp_path / "hub")
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


HUB: dict[str, tuple[str, str, dict[str, object], dict[str, object]]] = {
    "aime25": (
        "opencompass/AIME2025",
        "aime2025-I.jsonl",
        {"question": "How many?", "answer": "070"},
        {"question": "How many?", "answer": "070"},
    ),
    "aime24": (
        "HuggingFaceH4/aime_2024",
        "data/train-00000-of-00001.jsonl",
        {"id": 60, "problem": "How many?", "solution": "so", "answer": 204},
        {"question": "How many?", "answer": "204"},
    ),
    "math": (
        "HuggingFaceH4/MATH-500",
        "test.jsonl",
        {"problem": "How many?", "solution": "so", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 2},
        {"question": "How many?", "answer": "\\frac{1}{2}", "category": "Algebra"},
    ),
    "mmlu": (
        "cais/mmlu",
        "all/test-00000-of-00001.jsonl",
        {"question": "How many?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": 2},
        {"question": "How many?", **dict(zip("ABCD", "1234", strict=True)), "answer": "C", "category": "anatomy"},
    ),
}


@pytest.mark.parametrize("name", list(HUB))
def test_what_the_hub_has_is_laid_in_one_form(tmp_path: Path, name: str) -> None:
    dataset, file, theirs, ours = HUB[name]
    question = next(key for key in ("problem", "question") if key in theirs)
    write(tmp_path / "hub" / file, [{**theirs, question: f"{theirs[question]} {i}"} for i in range(8)])
    write(tmp_path / "hub" / file.replace("test", "dev"), [{**theirs, question: f"e {i}"} for i in range(8)]) if (
        name == "mmlu"
    ) else None
    asked = []

    def fetch(wanted: str) -> Path:
        asked.append(wanted)
        return tmp_path / "hub"

    found = one(name, tmp_path, fetch)
    assert asked == [dataset]
    laid = [json.loads(line) for line in (tmp_path / f"benchmarks/{name}/test.jsonl").read_text().splitlines()]
    assert laid == [{**ours, "question": f"How many? {i}"} for i in range(8)]
    assert (found.engine, len(found.halves.search), len(found.halves.test)) == ("opencompass", 4, 4)
    assert found.verdicts == (("A", "B") if name == "aime25" else ())
    assert len(found.shots) == (8 if name == "mmlu" else 0)
    assert one(name, tmp_path, no_fetch) == found


def test_subjects_are_halved_one_by_one(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"question": f"{subject} {i}", "answer": "1", "category": subject}
        for subject, count in (("algebra", 7), ("geometry", 5), ("topology", 2))
        for i in range(count)
    ]
    write(tmp_path / "benchmarks/math/test.jsonl", rows)
    halves = one("math", tmp_path).halves
    counts = [
        [sum(item.row["category"] == subject for item in half) for subject in ("algebra", "geometry", "topology")]
        for half in (halves.search, halves.test)
    ]
    assert counts == [[4, 2, 1], [3, 3, 1]], "the odd ones do not all go to the same half"
    assert [item.id for item in halves.search] == sorted(item.id for item in halves.search)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"question": "q", "answer": "1"}\n{"question": "q2", "ans', "line 2: not JSON"),
        ("", "0 distinct question"),
        ('{"question": "q", "answer": "1"}\n', "1 distinct question"),
        ('{"question": "q", "answer": "1"}\n' * 2, "1 distinct question"),
        ('{"question": "q", "answer": 204}\n', "'answer' must be a text"),
    ],
)
def test_half_a_download_and_too_few_questions_are_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "benchmarks/aime24/test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(UsageError) as error:
        one("aime24", tmp_path)
    assert words in str(error.value)
    assert "aime24" in error.value.message


def test_a_limit_larger_than_the_set_takes_all_of_it(tmp_path: Path) -> None:
    halves = one("gsm8k", lay_gsm8k(tmp_path)).halves
    assert halves.take("search", 1000) == halves.search


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_what_would_run_the_model_s_code_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="running code that the model wrote") as error:
        one(name, tmp_path)
    assert "gsm8k" in error.value.hint
    assert "reverse" not in error.value.hint, "it belongs to the demo data set"


def test_unknown_names_get_the_nearest_and_the_list(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean gsm8k") as error:
        one("gsm8", tmp_path)
    assert "gsm8k" in error.value.hint
    with pytest.raises(UsageError, match="unknown benchmark 'zebra'"):
        one("zebra", tmp_path)


def test_a_bad_name_is_found_before_anything_is_downloaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown benchmark 'aime23'; did you mean aime2"):
        resolve(["gsm8k", "aime23"], tmp_path, no_fetch)


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


# Any config of OpenCompass, any task of lm-eval


def test_an_opencompass_config_takes_its_data_as_opencompass_has_it(tmp_path: Path) -> None:
    name = "opencompass:aime2024.aime2024_llmjudge_gen_5e9f4f"
    directory = tmp_path / "benchmarks/opencompass/aime2024.aime2024_llmjudge_gen_5e9f4f"
    with pytest.raises(UsageError, match="found none") as error:
        one(name, tmp_path)
    assert str(directory) in error.value.message
    write(directory / "data/aime.jsonl", [{"origin_prompt": f"q{i}", "gold_answer": str(i)} for i in range(9)])
    found = one(name, tmp_path)
    assert (found.name, found.engine) == ("opencompass-aime2024.aime2024_llmjudge_gen_5e9f4f", "opencompass")
    assert found.verdicts == ("A", "B")
    assert found.task["questions"] == "data/aime.jsonl"
    assert len(found.halves.search) == 5
    (directory / "data/more.txt").write_text("x")
    assert one(name, tmp_path).fingerprint != found.fingerprint, "another file that the job may read"
    write(directory / "data/others.jsonl", questions(3))
    with pytest.raises(UsageError, match="wanted one file of questions"):
        one(name, tmp_path)


@pytest.mark.parametrize("beside", ["copy.json", "copy.txt", "copy.csv", "copy.bin"])
def test_a_file_beside_the_questions_may_hold_none_of_them(tmp_path: Path, beside: str) -> None:
    name = "opencompass:aime2024.aime2024_llmjudge_gen_5e9f4f"
    directory = tmp_path / "benchmarks/opencompass/aime2024.aime2024_llmjudge_gen_5e9f4f/data"
    asks = [f"What is $\\frac{{{i}}}{{7}}$\nof the \u00e9toile number {i}?" for i in range(9)]
    write(directory / "aime.jsonl", [{"origin_prompt": text, "gold_answer": "1"} for text in asks])
    (directory / "examples.txt").write_text("What is $\\frac{90}{7}$ of a whole?")
    assert len(one(name, tmp_path).halves.test) == 4
    content = {"json": json.dumps(asks[5]), "txt": asks[5], "csv": f'"{asks[5]}",1', "bin": "\ufeff"}[beside[5:]]
    (directory / beside).write_bytes(content.encode("utf-16" if beside == "copy.bin" else "utf-8"))
    with pytest.raises(UsageError, match="take it away") as error:
        one(name, tmp_path)
    assert beside in error.value.message
    assert ("holds question 6" in error.value.message) == (beside != "copy.bin")


def test_an_lm_eval_task_takes_rows_as_its_prompt_reads_them(tmp_path: Path) -> None:
    directory = tmp_path / "benchmarks/lm_eval/arc/easy"
    write(directory / "test.jsonl", questions(9))
    write(directory / "train.jsonl", questions(4, "train"))
    found = one("lm_eval:arc/easy", tmp_path)
    assert (found.name, found.engine, found.task) == ("lm_eval-arc-easy", "lm_eval", {"shipped": "arc/easy.yaml"})
    assert (found.metric, found.filter, found.fewshots) == ("", "", (0,)), "the task's first"
    assert (len(found.halves.search), len(found.shots)) == (5, 4)
    write(tmp_path / "benchmarks/lm_eval/drop/test.jsonl", questions(4))
    assert one("lm_eval:drop", tmp_path).task == {"shipped": "drop/drop.yaml"}


@pytest.mark.parametrize("name", ["opencompass:", "opencompass:../x", "lm_eval:a//b", "lm_eval:/etc/x", "lm_eval:a b"])
def test_a_name_behind_a_prefix_cannot_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name of a"):
        one(name, tmp_path)


def test_a_config_that_opencompass_has_not_is_refused_before_anything_is_downloaded() -> None:
    for name in ("opencompass:aime2024.aime2024_gen_17d799", "opencompass:aime2024/aime2024_gen_17d799"):
        require_known(name)
    with pytest.raises(UsageError, match=r"OpenCompass \d\S+ has no such config") as near:
        require_known("opencompass:aime2024.aime2024_gen_17d798")
    assert "opencompass:aime2024.aime2024_gen_17d799" in near.value.hint
    with pytest.raises(UsageError) as far:
        require_known("opencompass:xyzzy")
    assert "docs/benchmarks.md" in far.value.hint


def test_the_list_of_configs_is_of_the_locked_version_and_has_the_registrys() -> None:
    heading, *known = resource(CONFIGS).read_text("utf-8").splitlines()
    (locked,) = [line for line in resource(LOCK).read_text("utf-8").splitlines() if line.startswith("opencompass==")]
    assert heading.startswith(f"# {locked.replace('opencompass==', 'OpenCompass ')}: ")
    modules = [module for entry in REGISTRY.values() for module in entry.modules.values()]
    assert {module.replace(".", "/") for module in modules} <= set(known)


@pytest.mark.slow
def test_the_list_of_configs_is_what_is_installed(environments: Environments) -> None:
    """Made anew with `cd .../opencompass/configs/datasets && find . -name '*.py'`, sorted, below the same heading."""
    (root,) = environments.python("bench").parents[1].glob("lib/python3*/site-packages/opencompass/configs/datasets")
    names = (path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.py"))
    installed = {name for name in names if not name.endswith("__init__") and "." not in name}
    assert set(resource(CONFIGS).read_text("utf-8").splitlines()[1:]) == installed


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
    assert found.engine == "lm_eval"
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
