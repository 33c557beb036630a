"""Text, length and script of a cell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scenarios.finetune.cells import BYTES_PER_TOKEN, bytes_per_token, digest, normalised, script, text, tokens


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("as it is", "as it is"),
        (None, ""),
        (True, ""),
        (float("nan"), ""),
        (3, "3"),
        (1.5, "1.5"),
        ([{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}], "ask\nanswer"),
        ([{"from": "human", "value": "ask"}], "ask"),
        ({"text": "a", "tags": ["b", "c"]}, "a\nb\nc"),
        ([[[[[[[[[["too deep"]]]]]]]]]], ""),
    ],
)
def test_text(cell: object, said: str) -> None:
    assert text(cell) == said


def test_what_makes_no_difference_to_a_reader_makes_none() -> None:
    assert digest(normalised("  What IS\n２+2？ ")) == digest(normalised("what is 2+2?"))
    assert digest(normalised("what is 2+2?")) != digest(normalised("what is 2+3?"))
    assert digest("\ud800") != digest("")


def test_tokens_are_counted_in_bytes() -> None:
    assert tokens("") == 0
    assert tokens("a") == 1
    assert tokens("x" * 400) == 100
    assert tokens("漢" * 4) == 3, "three bytes each"
    assert tokens("x" * 400, 2.0) == 200


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("The quick brown fox", "Latin"),
        ("Größe, naïveté", "Latin"),
        ("Привет, world", "Cyrillic"),
        ("请问这道题怎么做", "Han"),
        ("この問題の答えは何ですか", "Kana"),
        ("안녕하세요", "Hangul"),
        ("مرحبا بالعالم", "Arabic"),
        ("नमस्ते", "Devanagari"),
        ("12 + 30 = 42 🙂", "none"),
        ("", "none"),
    ],
)
def test_script(said: str, name: str) -> None:
    assert script(said) == name


def test_a_vocabulary_says_how_long_its_tokens_are(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    byte_level = {entry: number for number, entry in enumerate(["the", "Ġthe", "Ġcat", "Ġ", "c", "a", "t"])}
    file.write_text(json.dumps({"model": {"vocab": byte_level}}))
    assert bytes_per_token(file, ["the cat the cat"]) == pytest.approx(15 / 4)
    file.write_text(json.dumps({"model": {"vocab": [["▁the", -1.0], ["▁c", -2.0], ["at", -2.0]]}}))
    assert bytes_per_token(file, [" the cat"]) == pytest.approx(8 / 3)
    characters = {letter: number for number, letter in enumerate("abc the")}
    file.write_text(json.dumps({"model": {"vocab": characters}}))
    assert bytes_per_token(file, ["the cat"]) == 1.0


@pytest.mark.parametrize("content", ["", "[]", '{"model": 3}', '{"model": {"vocab": {}}}', "[" * 100_000])
def test_a_strange_tokenizer_is_no_obstacle(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    assert bytes_per_token(tmp_path / "tokenizer.json", ["the cat"]) == BYTES_PER_TOKEN
    assert bytes_per_token(tmp_path / "missing.json", ["the cat"]) == BYTES_PER_TOKEN


@pytest.mark.slow
def test_lengths_are_near_those_of_a_real_tokenizer(environments: object, tmp_path: Path) -> None:
    """A byte-level BPE trained on real prose: the count by longest matches is within a tenth of its own."""
    import subprocess

    from agent.run.environments import Environments

    assert isinstance(environments, Environments)
    root = Path(__file__).resolve().parent.parent
    prose = [path.read_text() for path in sorted(root.glob("*.md")) + sorted(root.glob("docs/*.md"))]
    (tmp_path / "prose.json").write_text(json.dumps(prose))
    code = (
        "import json; from tokenizers import ByteLevelBPETokenizer as T\n"
        "prose = json.load(open('prose.json')); t = T()\n"
        "t.train_from_iterator(prose, vocab_size=4000); t.save('tokenizer.json')\n"
        "print(sum(len(p.encode()) for p in prose) / sum(len(t.encode(p).ids) for p in prose))"
    )
    argv = [str(environments.python("train")), "-c", code]
    exact = float(subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert bytes_per_token(tmp_path / "tokenizer.json", prose) == pytest.approx(exact, rel=0.1)
