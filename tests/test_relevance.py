"""The data set that is taken where none is named: the one worded most like the benchmarks, never a benchmark itself."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import pytest

from agent import checks, dry_run
from agent.errors import UsageError
from agent.options import parse
from agent.settings import Settings, load
from scenarios.finetune import demo
from scenarios.finetune.benchmarks import Benchmark, resolve
from scenarios.finetune.relevance import choose, directories, likeness, words
from scenarios.finetune.splits import Halves, Item
from tests.word_problems import problems

ROOT = Path(__file__).parent.parent
CHAT = [
    {"instruction": f"Tell me a {mood} story about {who}.", "output": f"Once upon a time {who} was very {mood} indeed."}
    for mood in ("sad", "happy", "long", "short", "strange")
    for who in ("a fox", "the moon", "two sisters", "an old tree")
]
CODE = [
    {"instruction": f"Write a Python function {name}.", "output": f"def {name}(items):\n    return {name[0]} + items"}
    for name in ("sort_list", "merge", "reverse_words", "flatten", "count_vowels", "is_prime")
]


def lay(file: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def word_problems(seed: int, number: int = 60) -> list[dict[str, object]]:
    return [{"question": question, "answer": answer} for question, answer in islice(problems(seed), number)]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """A workspace with the questions of gsm8k, made up, and nothing else."""
    lay(tmp_path / "benchmarks/gsm8k/test.jsonl", word_problems(1))
    return tmp_path


def no_download(_: str) -> Path:
    raise AssertionError("nothing is downloaded here")


def gsm8k(workspace: Path) -> tuple[Benchmark, ...]:
    return resolve(("gsm8k",), workspace, no_download)


def three(workspace: Path) -> Path:
    """Data sets of word problems, of chat and of code; the first by a name that does not help."""
    root = workspace / "datasets"
    lay(root / "lab/zz/train.jsonl", word_problems(2))
    lay(root / "chat/data/train.jsonl", CHAT)
    lay(root / "lab/python-code/train.json", CODE)
    return root


# Which are there


def test_directories_are_told_from_owners(tmp_path: Path) -> None:
    for file in (
        *("flat/train.jsonl", "nested/data/train.jsonl", "split/test/rows.jsonl", "owner/one/train.jsonl"),
        *(
            "owner/two/data/train.csv",
            ".partial/three/train.jsonl",
            "_draft/four/train.jsonl",
            "owner/.five/train.jsonl",
        ),
    ):
        lay(tmp_path / file, CHAT)
    (tmp_path / "downloaded/odd/place").mkdir(parents=True)
    (tmp_path / "downloaded/.ftloop.json").write_text("{}")
    demo.make_data(tmp_path / "demo/reverse")
    assert list(directories(tmp_path)) == ["downloaded", "flat", "nested", "owner/one", "owner/two", "split"]
    assert directories(tmp_path / "nowhere") == {}


# Which is taken


def test_the_only_one_is_taken(workspace: Path) -> None:
    lay(workspace / "datasets/mine/train.jsonl", CHAT)
    found = choose(workspace / "datasets", gsm8k(workspace))
    assert (found.name, found.path) == ("mine", workspace / "datasets/mine")
    assert found.reason == f"the only one in {workspace / 'datasets'}"


def test_of_several_the_one_worded_like_the_benchmark(workspace: Path) -> None:
    root = three(workspace)
    found = choose(root, gsm8k(workspace))
    assert found.name == "lab/zz"
    assert found.reason.startswith(f"the most like gsm8k of 3 in {root} (wording 0.")
    assert sorted(line.split(":")[0] for line in found.others) == ["chat", "lab/python-code"]
    assert choose(root, gsm8k(workspace)) == found


def test_a_tag_decides_between_what_is_worded_alike(workspace: Path) -> None:
    root = workspace / "datasets"
    for name in ("a", "b", "c"):
        lay(root / name / "train.jsonl", word_problems(2))
    assert choose(root, gsm8k(workspace)).name == "a"
    (root / "b/README.md").write_text("---\ntags: [math, english]\n---\n")
    found = choose(root, gsm8k(workspace))
    assert found.name == "b"
    assert "named or tagged math" in found.reason
    (root / "b/README.md").write_text("---\ntask_categories: [text-generation]\n---\n")
    assert choose(root, gsm8k(workspace)).name == "a"


def test_a_tag_alone_does_not_outweigh_what_the_rows_say(workspace: Path) -> None:
    root = three(workspace)
    (root / "chat/README.md").write_text("---\ntags: [math]\n---\n")
    assert choose(root, gsm8k(workspace)).name == "lab/zz"


@pytest.mark.parametrize("split", ["search", "test"])
def test_copies_of_either_half_are_not_taken(workspace: Path, split: str) -> None:
    root, (benchmark,) = three(workspace), gsm8k(workspace)
    items = benchmark.halves.search if split == "search" else benchmark.halves.test
    lay(root / "stolen/train.jsonl", [{"prompt": f"Q: {item.row['question']}", "response": "42"} for item in items])
    found = choose(root, (benchmark,))
    assert found.name == "lab/zz"
    assert any(line.startswith("stolen: a copy of the benchmark gsm8k (100% of") for line in found.others)


def test_what_the_benchmark_was_downloaded_from_is_not_taken_unasked(workspace: Path) -> None:
    lay(workspace / "datasets/openai/gsm8k/main/train.jsonl", word_problems(3))
    with pytest.raises(UsageError, match="openai/gsm8k: the benchmark gsm8k is taken from it") as caught:
        choose(workspace / "datasets", gsm8k(workspace))
    assert "--dataset" in caught.value.hint
    lay(workspace / "datasets/mine/train.jsonl", CHAT)
    assert choose(workspace / "datasets", gsm8k(workspace)).reason.startswith("the only one in")


def test_what_cannot_be_trained_on_is_passed_over_with_the_reason(workspace: Path) -> None:
    root = three(workspace)
    lay(root / "odd/train.jsonl", [{"left": "1", "right": "2"}])
    lay(root / "held/test.jsonl", CHAT)
    lay(root / "blank/train.jsonl", [{"question": "x", "answer": " "}, {"question": " ", "answer": "y"}])
    (root / "empty").mkdir()
    (root / "torn").mkdir()
    (root / "torn/train.jsonl").write_text('{"question": "a", "answer": "b"}\n{"quest')
    found = choose(root, gsm8k(workspace))
    assert found.name == "lab/zz"
    assert {line.split(":")[0] for line in found.others if "not usable" in line} == {"odd", "held", "blank", "torn"}
    with pytest.raises(UsageError, match=r"python-code: not usable"):
        choose(root, gsm8k(workspace), {"prompt": "left", "response": "nothing"})
    assert choose(root, gsm8k(workspace), {"prompt": "left", "response": "right"}).name == "odd"


def test_nothing_in_common_is_no_choice(workspace: Path) -> None:
    root = workspace / "datasets"
    lay(root / "greek/train.jsonl", [{"question": "αβγ", "answer": "δεζ"}])
    lay(root / "russian/train.jsonl", [{"question": "абв", "answer": "где"}])
    with pytest.raises(UsageError, match="a word in common with gsm8k") as caught:
        choose(root, gsm8k(workspace))
    assert "greek, russian" in caught.value.hint


def test_the_sealed_half_plays_no_part(workspace: Path) -> None:
    """A data set worded like the sealed half alone gains nothing by it; the planted words would show if it did."""
    root, (benchmark,) = three(workspace), gsm8k(workspace)
    spy = [
        {"question": f"Zyx {word} quux number {word}", "answer": f"{word} zyx"} for word in ("vroom", "blorp", "fnord")
    ]
    lay(root / "spy/train.jsonl", spy)

    def sealed(*texts: str) -> Benchmark:
        test = tuple(Item(f"{place:016d}", {"question": text, "answer": "1"}) for place, text in enumerate(texts))
        return dataclasses.replace(benchmark, halves=Halves(benchmark.halves.search, test, 0))

    planted = [f"Why does a quux zyx {word}?" for word in ("vroom", "blorp", "fnord") * 20]
    assert choose(root, (sealed(*planted),)) == choose(root, (sealed(),))


# Likeness


def test_words() -> None:
    assert words("Two CATS, 3 dogs: 12.5 — x") == {"two", "cats", "0", "dogs"}
    assert words("数学題") == {"数", "学", "題"}


def test_likeness_is_between_none_and_the_same() -> None:
    cats, dogs = [words("cats purr"), words("cats sleep")], [words("dogs bark")]
    same, none = likeness([cats, dogs], [cats])
    assert (round(same, 9), none) == (1.0, 0.0)
    half, less = likeness([cats, dogs], [cats, dogs])
    assert (round(half, 9), round(less, 9)) == (0.5, 0.5)
    assert likeness([[frozenset()]], [cats]) == [0.0]


# As a call says it


def settings(workspace: Path) -> Settings:
    environ = {"FT_FILE_PATH": str(workspace), "FT_BENCHMARK_DATASETS": '["gsm8k"]', "FT_RUNNER": "local"}
    return load({}, None, environ, workspace)


def test_a_dry_run_and_the_doctor_say_the_same(workspace: Path) -> None:
    root = three(workspace)
    reason = choose(root, gsm8k(workspace)).reason
    before = sorted(workspace.rglob("*"))
    lines = list(dry_run.rows(parse([]), settings(workspace)))
    assert lines[0] == ("data set", f"lab/zz, {reason}")
    assert lines[1][1].startswith("not taken: ")
    assert ("rows", "60, read as question/answer (prompt=question,response=answer)") in lines
    (finding,) = checks.data_set(settings(workspace))
    assert finding.found == f"lab/zz, {reason}"
    assert sorted(workspace.rglob("*")) == before
    named = list(dry_run.rows(parse(["--dataset", "chat"]), settings(workspace)))
    assert named[0][1].startswith("chat, on disk in")


def test_before_the_benchmark_is_there_nothing_is_claimed(tmp_path: Path) -> None:
    three(tmp_path)
    (_, line), *_ = dry_run.rows(parse([]), settings(tmp_path))
    assert line == "chosen of chat, lab/python-code, lab/zz once the benchmarks' data are on disk"
    (finding,) = checks.data_set(settings(tmp_path))
    assert (finding.status, "lab/zz" in finding.found) == ("ok", True)


def test_the_doctor_minds_no_empty_workspace(workspace: Path) -> None:
    for _ in range(2):
        (finding,) = checks.data_set(settings(workspace))
        assert finding.status == "ok"
        assert "--dataset" in finding.found
        lay(workspace / "datasets/odd/train.jsonl", [{"left": "1"}])


def called(workspace: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        **{"FT_FILE_PATH": str(workspace), "FT_BENCHMARK_DATASETS": '["gsm8k"]', "FT_PROPOSER": "tpe"},
        **{"FT_RUNNER": "local", "HF_HUB_OFFLINE": "1", "FT_GPUS": "none"},
    }
    command = [sys.executable, "agent/loop.py", *argv]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_a_call_says_what_it_takes_before_anything_is_downloaded(workspace: Path) -> None:
    three(workspace)
    done = called(workspace, "--loop_n", "1")
    said = " ".join(done.stdout.split())
    assert "data set: lab/zz, the most like gsm8k of 3" in said
    assert "data set not taken: chat: wording" in said
    assert "model: Qwen/Qwen3-0.6B, the" in said
    assert done.returncode == 3, "nothing is downloaded offline"
    assert "Qwen/Qwen3-0.6B" in done.stderr


def test_without_a_data_set_anywhere_nothing_is_begun(tmp_path: Path) -> None:
    nowhere = tmp_path / "workspace"
    for argv in ([], ["--dry-run"]):
        done = called(nowhere, *argv)
        assert done.returncode == 2
        assert "--dataset is required" in done.stderr
    assert not nowhere.exists()
