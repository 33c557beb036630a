"""The loop's command line: what it accepts, what it refuses, and that it answers at once."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from agent.options import LoopOptions, duration, parse
from agent.records import STAGES
from agent.settings import Settings

HEAVY = ("pydantic", "openai", "optuna", "pyarrow", "matplotlib", "docker", "huggingface_hub", "rich", "yaml", "jinja2")


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as raised:
        parse(["--dataset", "x", *argv])
    assert raised.value.code == 2
    return capsys.readouterr().err


def test_the_guides_commands() -> None:
    assert parse(["--dataset", "HuggingFaceH4/aime_2024"]) == LoopOptions(dataset="HuggingFaceH4/aime_2024")
    options = parse(["--dataset", "HuggingFaceH4/aime_2024", "--model", "Qwen/Qwen3-1.7B", "--timeout", "12h"])
    assert (options.model, options.timeout) == ("Qwen/Qwen3-1.7B", 43200.0)


@pytest.mark.parametrize("dash", ["_", "-"])
def test_both_spellings(dash: str) -> None:
    options = parse(["--dataset", "d", f"--loop{dash}n", "2", f"--step{dash}n=3", f"--dry{dash}run"])
    assert (options.loop_n, options.step_n, options.dry_run) == (2, 3, True)


def test_everything_that_is_a_setting_reaches_the_settings() -> None:
    argv = ["--runner", "local", "--proposer", "tpe", "--seed", "7", "--columns", "prompt=problem, response=the answer"]
    given = parse(["--dataset", "d", *argv]).settings()
    assert given == {
        "runner": "local",
        "proposer": "tpe",
        "proposer_seed": 7,
        "columns": {"prompt": "problem", "response": "the answer"},
    }
    assert set(given) <= set(Settings.model_fields)
    assert parse(["--dataset", "d"]).settings() == {}


def test_a_name_that_is_left_out_is_chosen_and_an_empty_one_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse([]) == LoopOptions()
    for name in ("--dataset", "--model"):
        with pytest.raises(SystemExit) as raised:
            parse([name, ""])
        assert raised.value.code == 2
        assert f"{name} is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--loop_n", "0"], "at least 1"),
        (["--loop_n", "many"], "'many'"),
        (["--step-n", "1.5"], "whole number"),
        (["--seed", "-1"], "at least 0"),
        (["--timeout", "soon"], "90s, 15m, 12h, 1d"),
        (["--runner", "ray"], "ray"),
        (["--columns", "prompt"], "ROLE=COLUMN"),
        (["--columns", "prompt=a,prompt=b"], "twice"),
        (["--model", ""], "--model"),
        (["--data", "y"], "unrecognized"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str], words: str) -> None:
    assert words in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3600", 3600.0),
        ("90s", 90.0),
        ("15m", 900.0),
        ("12h", 43200.0),
        ("1d", 86400.0),
        ("1.5h", 5400.0),
        (" 2 m", 120.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "1w", "1h30m", "h", "1e3", "inf", "nan", "9" * 99, "99999d", "٣"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        duration(text)


def test_help_says_what_is_counted_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        parse(["--help"])
    assert raised.value.code == 0
    text = capsys.readouterr().out
    assert ", ".join(STAGES) in text
    assert "neither a trial nor a stage" in text
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert f"\n  {code} " in text


def test_nothing_heavy_is_imported() -> None:
    script = "import sys, agent.options; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    found = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}
    )
    assert not set(HEAVY) & set(found.stdout.split())
