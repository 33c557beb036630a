import csv
import gzip
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from agent.errors import UsageError
from agent.records import Contamination
from scenarios.finetune.data import LONGEST, fingerprint, recognise, without, write

ROWS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(5)]


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def written(path: Path, tmp_path: Path, columns: dict[str, str] | None = None) -> list[dict[str, Any]]:
    prepared = write(recognise(path, columns), tmp_path / "prepared")
    lines = (Path(prepared.directory) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert prepared.rows == len(lines)
    return [json.loads(line) for line in lines]


def in_every_format(directory: Path) -> dict[str, Path]:
    directory.mkdir()
    files = {"jsonl": jsonl(directory / "a.jsonl", ROWS), "parquet": parquet(directory / "a.parquet", ROWS)}
    files["json"] = directory / "a.json"
    files["json"].write_text("\ufeff" + json.dumps(ROWS, indent=2), encoding="utf-8")
    files["json of lines"] = jsonl(directory / "lines.json", ROWS)
    files["json with a table"] = directory / "table.json"
    files["json with a table"].write_text(json.dumps({"version": 1, "data": ROWS}))
    files["gz"] = directory / "a.jsonl.gz"
    files["gz"].write_bytes(gzip.compress(files["jsonl"].read_bytes()))
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        files[kind] = directory / f"a.{kind}"
        with files[kind].open("w", newline="") as target:
            table = csv.DictWriter(target, ["question", "answer"], delimiter=delimiter)
            table.writeheader()
            table.writerows(ROWS)
    return files


def test_every_file_format_gives_the_same_rows(tmp_path: Path) -> None:
    for kind, file in in_every_format(tmp_path / "in").items():
        rows = written(file, tmp_path / kind)
        assert rows == [{"prompt": row["question"], "response": row["answer"]} for row in ROWS], kind


@pytest.mark.parametrize(
    ("row", "form", "expected"),
    [
        (
            {"instruction": "Add", "input": "1 2", "output": "3"},
            "alpaca",
            {"prompt": "Add", "query": "1 2", "response": "3"},
        ),
        ({"instruction": "Add", "output": "3"}, "alpaca", {"prompt": "Add", "response": "3"}),
        (
            {"instruction": "Add", "context": "", "response": "3"},
            "dolly",
            {"prompt": "Add", "query": "", "response": "3"},
        ),
        ({"prompt": "Add", "completion": "3"}, "prompt/completion", {"prompt": "Add", "response": "3"}),
        ({"Question": "Add", "Answer": 3}, "question/answer", {"prompt": "Add", "response": "3"}),
        (
            {"id": 1, "problem": "P", "solution": "S", "answer": "204"},
            "problem/solution",
            {"prompt": "P", "response": "S"},
        ),
        ({"id": 1, "problem": "P", "answer": "204"}, "problem/answer", {"prompt": "P", "response": "204"}),
        ({"problem": "P", "solution": None, "answer": "204"}, "problem/answer", {"prompt": "P", "response": "204"}),
        ({"query": "Q", "response": "R"}, "query/response", {"prompt": "Q", "response": "R"}),
        ({"input": "I", "output": "O"}, "input/output", {"prompt": "I", "response": "O"}),
        (
            {"question": "Q", "answer": "A", "system": "Be kind."},
            "question/answer",
            {"prompt": "Q", "response": "A", "system": "Be kind."},
        ),
    ],
)
def test_layouts_are_recognised(tmp_path: Path, row: dict[str, Any], form: str, expected: dict[str, str]) -> None:
    path = jsonl(tmp_path / "in.jsonl", [row])
    assert recognise(path).format == form
    assert written(path, tmp_path) == [expected]
    info = json.loads((tmp_path / "prepared/dataset_info.json").read_text())
    assert info == {
        "train": {"file_name": "train.jsonl", "formatting": "alpaca", "columns": {role: role for role in expected}}
    }


def test_conversations_keep_their_messages(tmp_path: Path) -> None:
    sharegpt = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    system = {"role": "system", "content": "Be kind."}
    chat = [{"messages": [system, *turns], "prompt": "Hi", "response": "not this"}]
    assert written(jsonl(tmp_path / "s.jsonl", [sharegpt]), tmp_path / "s") == [{"messages": turns}]
    assert written(jsonl(tmp_path / "c.jsonl", chat), tmp_path / "c") == [{"messages": [system, *turns]}]
    assert written(parquet(tmp_path / "c.parquet", chat), tmp_path / "p") == [{"messages": [system, *turns]}]
    info = json.loads((tmp_path / "s/prepared/dataset_info.json").read_text())["train"]
    assert (info["formatting"], info["tags"]["role_tag"]) == ("sharegpt", "role")


@pytest.mark.parametrize(
    "conversation",
    [
        [],
        [{"role": "user", "content": "Hi"}],
        [{"role": "assistant", "content": "Ho"}, {"role": "user", "content": "Hi"}],
        [{"role": "user", "content": "Hi"}, {"role": "tool", "content": "Ho"}],
        [{"role": "user", "content": " "}, {"role": "assistant", "content": "Ho"}],
        [{"role": "system", "content": "Be kind."}],
        ["Hi", "Ho"],
        "Hi",
    ],
)
def test_conversations_that_llama_factory_would_skip_are_dropped_and_counted(tmp_path: Path, conversation: Any) -> None:
    good = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    path = jsonl(tmp_path / "in.jsonl", [{"messages": good}, {"messages": conversation}])
    prepared = write(recognise(path), tmp_path / "prepared")
    assert (prepared.rows, prepared.dropped) == (1, 1)


def test_an_explicit_map_wins(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"question": "no", "answer": "no", "a": "A", "b": "B", "c": 3}])
    columns = {"prompt": "a", "response": "c", "query": "b"}
    assert recognise(path, columns).format == "columns"
    assert written(path, tmp_path, columns) == [{"prompt": "A", "query": "B", "response": "3"}]
    assert fingerprint(path, columns) != fingerprint(path)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"prompt": "a"}, "needs prompt and response"),
        ({"prompt": "a", "response": "nope"}, "has no column nope"),
        ({"prompt": "a", "response": "b", "answer": "b"}, "answer is no role"),
    ],
)
def test_a_wrong_map_is_refused(tmp_path: Path, columns: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        recognise(jsonl(tmp_path / "in.jsonl", [{"a": "A", "b": "B"}]), columns)


def test_empty_cells_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        *ROWS,
        {"question": " ", "answer": "1"},
        {"question": "Q", "answer": None},
        {"question": "Q"},
        {"answer": {}},
    ]
    prepared = write(recognise(jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "prepared")
    assert (prepared.rows, prepared.dropped) == (5, 4)


def test_only_empty_rows_are_an_error(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"a": "", "b": "B"}])
    with pytest.raises(UsageError, match="all 1 rows have an empty prompt"):
        write(recognise(path, {"prompt": "a", "response": "b"}), tmp_path / "prepared")


BROKEN = {
    "not-json.jsonl": ('{"question": "Q", "answer": "A"}\n{oops\n', r"line 2: not JSON"),
    "not-json.json": ('[{"question": "Q"},\n oops]', r"line 2: not JSON"),
    "list.jsonl": ("[1, 2]\n", r"line 1: wanted a JSON object, found list"),
    "value.json": ("3", "holds a single value"),
    "empty.jsonl": ("\n\n", "holds no rows"),
    "empty.json": ("[]", "holds no rows"),
    "not.parquet": ("PAR1 no", "not Parquet"),
    "wide.csv": ("question,answer\nQ,A\nQ,A,more\n", "line 3: more cells than columns"),
    "torn.csv": ('question,answer\nQ,"A\n', "not CSV"),
    "columns.jsonl": ('{"text": "T", "label": 1}\n', "no usable columns among text, label"),
    "deep.jsonl": ("[" * 100_000 + "\n", "line 1: not JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, name: str) -> None:
    text, words = BROKEN[name]
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        write(recognise(path), tmp_path / "prepared")
    assert str(path) in str(caught.value)
    assert caught.value.hint
    assert not (tmp_path / "prepared/train.jsonl").exists()


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9", "answer": "A"}\n')
    with pytest.raises(UsageError, match="not UTF-8"):
        recognise(tmp_path / "latin.jsonl")
    (tmp_path / "torn.jsonl.gz").write_bytes(gzip.compress(b'{"question": "Q"}' * 1000)[:-20])
    with pytest.raises(UsageError, match="not a complete gzip file"):
        recognise(tmp_path / "torn.jsonl.gz")


def test_lone_surrogates_do_not_stop_the_writing(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "half \\ud83d", "answer": "A"}\n')
    assert written(path, tmp_path) == [{"prompt": "half ?", "response": "A"}]


def test_directories_without_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        recognise(tmp_path / "nothing")
    with pytest.raises(UsageError, match="is an empty directory"):
        recognise(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / ".cache").mkdir()
    jsonl(tmp_path / ".cache/train.jsonl", ROWS)
    with pytest.raises(UsageError, match=r"holds no data files, only README\.md"):
        recognise(tmp_path)
    with pytest.raises(UsageError, match="is not a data file"):
        recognise(tmp_path / "README.md")
    jsonl(tmp_path / "test.jsonl", ROWS)
    with pytest.raises(UsageError, match=r"no training split, only test\.jsonl"):
        recognise(tmp_path)


def chosen(root: Path) -> list[str]:
    return [str(Path(file).relative_to(root)) for file in recognise(root).files]


def test_a_hub_snapshots_train_shards_are_chosen_and_no_held_out_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001", "validation-00000-of-00001"):
        parquet(tmp_path / f"data/{name}.parquet", ROWS)
    jsonl(tmp_path / "extra.jsonl", ROWS)
    (tmp_path / "README.md").write_text("hello")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert chosen(tmp_path) == ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    assert write(recognise(tmp_path), tmp_path / "prepared").rows == 10
    left_out = "\n".join(recognise(tmp_path).left_out)
    assert all(name in left_out for name in ("test-00000", "validation-00000", "extra.jsonl"))


def test_main_is_chosen_of_overlapping_configurations(tmp_path: Path) -> None:
    for configuration in ("main", "socratic"):
        parquet(tmp_path / configuration / "train-00000-of-00001.parquet", ROWS)
        parquet(tmp_path / configuration / "test-00000-of-00001.parquet", ROWS)
    assert chosen(tmp_path) == ["main/train-00000-of-00001.parquet"]
    assert "socratic/train-00000-of-00001.parquet: another configuration than main" in recognise(tmp_path).left_out


def test_other_configurations_are_used_together(tmp_path: Path) -> None:
    for subject in ("algebra", "geometry"):
        parquet(tmp_path / subject / "train-00000-of-00001.parquet", ROWS)
    assert len(chosen(tmp_path)) == 2


def test_unnamed_files_are_all_used_and_doubles_once(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", ROWS)
    parquet(tmp_path / "a.parquet", ROWS)
    jsonl(tmp_path / "deep/er/b.jsonl", ROWS)
    jsonl(tmp_path / "val/c.jsonl", ROWS)
    assert chosen(tmp_path) == ["a.parquet", "deep/er/b.jsonl"]
    assert set(recognise(tmp_path).left_out) == {
        "a.jsonl: the same data in another format",
        "val/c.jsonl: not the training split",
    }


def test_the_fingerprint_is_of_content_alone(tmp_path: Path) -> None:
    one, two = jsonl(tmp_path / "one/a.jsonl", ROWS), jsonl(tmp_path / "two/b.jsonl", ROWS)
    os.utime(two, (0, 0))
    assert fingerprint(one) == fingerprint(two) == fingerprint(tmp_path / "two")
    assert write(recognise(one), tmp_path / "prepared").fingerprint == fingerprint(one)
    jsonl(two, ROWS[:-1])
    assert fingerprint(one) != fingerprint(two)


def test_the_longest_rows_are_kept_for_the_mini_run(tmp_path: Path) -> None:
    rows = [{"question": "Q" * (n * 37 % 200 + 1), "answer": "A"} for n in range(200)]
    prepared = write(recognise(jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "prepared")
    lengths = [len(json.loads(line)["prompt"]) for line in prepared.longest.read_text().splitlines()]
    assert lengths == sorted((len(row["question"]) for row in rows), reverse=True)[:LONGEST]


def test_written_data_is_kept_until_its_content_changes(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", ROWS)
    first = write(recognise(path), tmp_path / "prepared")
    before = (tmp_path / "prepared/train.jsonl").stat().st_mtime_ns
    assert write(recognise(path), tmp_path / "prepared") == first
    assert (tmp_path / "prepared/train.jsonl").stat().st_mtime_ns == before
    jsonl(path, ROWS[:2])
    assert write(recognise(path), tmp_path / "prepared").rows == 2


@pytest.mark.parametrize("damage", [b"", b'{"directory": "x", "na', b"[]", b"\xff\xfe"])
def test_a_damaged_record_of_written_data_is_as_good_as_none(tmp_path: Path, damage: bytes) -> None:
    path = jsonl(tmp_path / "in.jsonl", ROWS)
    first = write(recognise(path), tmp_path / "prepared")
    (tmp_path / "prepared/prepared.json").write_bytes(damage)
    assert write(recognise(path), tmp_path / "prepared") == first
    assert (tmp_path / "prepared/prepared.json").read_bytes() != damage


def test_the_record_of_written_data_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, directory = jsonl(tmp_path / "in.jsonl", ROWS), tmp_path / "prepared"
    write(recognise(path), directory)
    jsonl(path, ROWS[:2])

    replace = Path.replace

    def full(source: Path, target: Path) -> Path:
        if target.name == "prepared.json":
            raise OSError(28, "No space left on device")
        return replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space left"):
            write(recognise(path), directory)
    names = sorted(file.name for file in directory.iterdir())
    assert names == ["dataset_info.json", "longest.jsonl", "train.jsonl"], "no half, and none that tells of other rows"
    jsonl(path, ROWS)
    assert write(recognise(path), directory).rows == len(ROWS)
    assert len((directory / "train.jsonl").read_text().splitlines()) == len(ROWS)


def test_a_hundred_thousand_rows_take_seconds(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", ROWS * 20_000)
    start = time.perf_counter()
    assert write(recognise(path), tmp_path / "prepared").rows == 100_000
    assert time.perf_counter() - start < 10


# Preferences

ASKED, GOOD, BAD = (
    {"role": role, "content": said} for role, said in (("user", "Q"), ("assistant", "A"), ("assistant", "B"))
)
CANONICAL_PAIR = {"messages": [ASKED], "chosen": GOOD, "rejected": BAD}
HH = "\n\nHuman: Q\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, CANONICAL_PAIR),
        ({"instruction": "Q", "input": "", "chosen": "A", "rejected": "B"}, CANONICAL_PAIR),
        (
            {"instruction": "Q", "input": "1", "chosen": "A", "rejected": "B"},
            CANONICAL_PAIR | {"messages": [{"role": "user", "content": "Q\n1"}]},
        ),
        (
            {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
            CANONICAL_PAIR | {"messages": [{"role": "system", "content": "S"}, ASKED]},
        ),
        ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, CANONICAL_PAIR),
        ({"prompt": "Q", "messages": [ASKED, GOOD], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, CANONICAL_PAIR),
        ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, CANONICAL_PAIR),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}],
                "chosen": {"from": "gpt", "value": "A"},
                "rejected": {"from": "gpt", "value": "B"},
            },
            CANONICAL_PAIR,
        ),
        ({"chosen": f"{HH}A", "rejected": f"{HH}B"}, CANONICAL_PAIR),
        (
            {"chosen": [ASKED, GOOD, ASKED, BAD], "rejected": [ASKED, GOOD, ASKED, GOOD]},
            {"messages": [ASKED, GOOD, ASKED], "chosen": BAD, "rejected": GOOD},
        ),
    ],
)
def test_pairs_become_conversations_with_two_answers(
    tmp_path: Path, row: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = jsonl(tmp_path / "in.jsonl", [row, row])
    assert recognise(path).format == "preference"
    prepared = write(recognise(path), tmp_path / "prepared")
    assert (prepared.stages, prepared.dataset("dpo"), prepared.dataset("sft")) == (
        ("sft", "dpo"),
        ("train", 2),
        ("supervised", 2),
    )
    files = [tmp_path / f"prepared/{name}.jsonl" for name in ("train", "supervised", "longest")]
    pairs, learned, longest = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert pairs == longest == [expected] * 2
    assert learned == [{"messages": [*expected["messages"], expected["chosen"]]}] * 2
    info = json.loads((tmp_path / "prepared/dataset_info.json").read_text())
    assert info["train"]["ranking"] is True
    assert info["train"]["columns"] == {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}
    assert info["supervised"]["columns"] == {"messages": "messages"}
    assert {entry["formatting"] for entry in info.values()} == {"sharegpt"}
    if "system" not in row:
        assert written(parquet(tmp_path / "in.parquet", [row]), tmp_path / "p") == [expected]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q", "chosen": "A", "rejected": " "},
        {"prompt": "", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": "A", "rejected": "A"},
        {"prompt": "Q", "chosen": "A"},
        {"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [{"role": "user", "content": "another"}, BAD]},
        {"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [ASKED]},
        {"prompt": "Q", "chosen": {"role": "tool", "content": "A"}, "rejected": BAD},
        {"prompt": "Q", "chosen": [ASKED, GOOD, ASKED], "rejected": [ASKED, GOOD, {"role": "user", "content": "R"}]},
        {"prompt": {"a": 1}, "chosen": "A", "rejected": "B"},
    ],
)
def test_pairs_without_two_answers_to_one_question_are_dropped(tmp_path: Path, row: dict[str, Any]) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"prompt": "Q", "chosen": "A", "rejected": "B"}, row])
    prepared = write(recognise(path), tmp_path / "prepared")
    assert (prepared.rows, prepared.dropped) == (1, 1)


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "Q", "completion": "A", "label": True}, {"prompt": "Q", "completion": "B", "label": False}],
        [{"prompt": "Q", "completion": "A", "label": "true"}, {"prompt": "Q", "completion": "B", "label": "False"}],
        [{"instruction": "Q", "output": "A", "kto_tag": True}, {"instruction": "Q", "output": "B", "kto_tag": False}],
        [{"messages": [ASKED, GOOD], "label": True}, {"messages": [ASKED, BAD], "label": False}],
        [
            {"prompt": [ASKED], "completion": [GOOD], "label": True},
            {"prompt": [ASKED], "completion": [BAD], "label": False},
        ],
    ],
)
def test_labels_stay_beside_their_answers(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    rows = [*rows, dict(rows[0]) | {name: None for name in rows[0] if name in ("label", "kto_tag")}]
    path = jsonl(tmp_path / "in.jsonl", rows)
    assert recognise(path).format == "labelled"
    prepared = write(recognise(path), tmp_path / "prepared")
    assert (prepared.rows, prepared.dropped, prepared.stages) == (2, 1, ("sft", "kto"))
    assert prepared.dataset("sft") == ("supervised", 1)
    lines = (tmp_path / "prepared/train.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [
        {"messages": [ASKED, GOOD], "label": True},
        {"messages": [ASKED, BAD], "label": False},
    ]
    learned = (tmp_path / "prepared/supervised.jsonl").read_text()
    assert json.loads(learned) == {"messages": [ASKED, GOOD]}
    info = json.loads((tmp_path / "prepared/dataset_info.json").read_text())
    assert info["train"]["columns"] == {"messages": "messages", "kto_tag": "label"}


def test_labels_of_one_kind_teach_no_preference(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "completion": "A", "label": True} for n in range(3)]
    prepared = write(recognise(jsonl(tmp_path / "good.jsonl", rows)), tmp_path / "good")
    assert (prepared.stages, prepared.dataset("sft")) == (("sft",), ("supervised", 3))
    bad = jsonl(tmp_path / "bad.jsonl", [row | {"label": False} for row in rows])
    with pytest.raises(UsageError, match="every answer is labelled false"):
        write(recognise(bad), tmp_path / "bad")


def test_other_labels_are_no_verdicts(tmp_path: Path) -> None:
    rows = [{"question": "Q", "answer": "A", "label": 1}, {"question": "Q", "answer": "A", "label": "positive"}]
    assert recognise(jsonl(tmp_path / "in.jsonl", rows)).format == "question/answer"


def test_pairs_are_named_by_hand_too(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "in.jsonl", [{"a": "Q", "b": "A", "c": "B"}])
    assert written(path, tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}) == [CANONICAL_PAIR]
    assert written(path, tmp_path / "sft", {"prompt": "a", "response": "b"}) == [{"prompt": "Q", "response": "A"}]


def test_the_longest_pair_is_that_with_the_longest_sequence(tmp_path: Path) -> None:
    two = {"prompt": "Q", "chosen": "A" * 60, "rejected": "B" * 60}
    one = {"prompt": "Q", "chosen": "A" * 100, "rejected": "B"}
    prepared = write(recognise(jsonl(tmp_path / "in.jsonl", [two, one])), tmp_path / "prepared")
    first = json.loads(prepared.longest.read_text().splitlines()[0])
    assert first["chosen"]["content"] == "A" * 100


def test_rows_that_are_taken_out_are_learned_nowhere(tmp_path: Path) -> None:
    rows = [{"prompt": f"Q{n}", "chosen": "A", "rejected": "B"} for n in range(4)]
    prepared = write(recognise(jsonl(tmp_path / "in.jsonl", rows)), tmp_path / "prepared")
    found = Contamination(key="k", rows=4, found={"b": 1}, flagged=1, action="removed")
    left = without(prepared, {2}, found)
    assert (left.rows, left.supervised) == (3, 3)
    assert "Q2" not in (tmp_path / "prepared/supervised.jsonl").read_text()
    assert write(recognise(tmp_path / "in.jsonl"), tmp_path / "prepared") == left, "kept as it is"
    (tmp_path / "prepared/supervised.jsonl").unlink()
    assert write(recognise(tmp_path / "in.jsonl"), tmp_path / "prepared").rows == 4, "written again"


def test_data_prepared_by_an_earlier_version_are_still_read(tmp_path: Path) -> None:
    prepared = write(recognise(jsonl(tmp_path / "in.jsonl", ROWS)), tmp_path / "prepared")
    record = json.loads((tmp_path / "prepared/prepared.json").read_text())
    del record["stages"], record["supervised"]
    (tmp_path / "prepared/prepared.json").write_text(json.dumps(record))
    assert write(recognise(tmp_path / "in.jsonl"), tmp_path / "prepared") == prepared
    assert prepared.stages == ("sft",)
