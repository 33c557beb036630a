"""The command line of `python agent/loop.py` and `ftloop loop`, parsed into one frozen record.

Imports nothing heavy: `--help` must answer at once.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.records import STAGES

RUNNERS = ("auto", "local", "docker")
PROPOSERS = ("auto", "llm", "tpe", "random", "hybrid")

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST = 10 * 365 * 86400  # ten years: more is a typing mistake, and would overflow clocks further down

_DESCRIPTION = """\
Proposes fine-tuning recipes, trains them, scores them and keeps only what is provably better than the best so far,
until the budget ends. The same command again continues the same study.
"""

_EPILOG = f"""\
what is counted:
  --loop_n counts trials and --step_n counts stages, each those that this call adds. The stages of a trial are
  {", ".join(STAGES)}.
  Scoring the base model comes first and is neither a trial nor a stage. An interrupted trial is finished first.

settings:
  Everything else is set by FT_* names, listed in .env.example. The command line outranks the environment, which
  outranks .env in the working directory, which outranks --config FILE, which outranks the defaults.

exit codes:
  0    the budget ended, or the study was paused, with everything recorded
  1    a defect of ftloop itself
  2    what was typed, set or laid on disk is wrong
  3    the machine cannot: engine gone, disk full, hub or endpoint out of reach
  4    the study cannot be continued: corrupt journal, or in use by another process
  5    five proposals in a row stayed invalid
  130  interrupted with Ctrl-C
"""


class LoopOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line said; None where it said nothing.

    Attributes:
        dataset: Hub name, directory, or a built-in `demo/...` name; None chooses one of the workspace.
        loop_n, step_n: Trials and stages that this call may add; None means unlimited.
        timeout: Seconds of active time of this call; None means unlimited.
        confirm: How often the winner's recipe is trained again, from other seeds.
        config: YAML file with settings.
        seed: Seed of the proposer.
        columns: Role -> column of the data set ("prompt" -> "problem").
        llm: "replay:FILE": a study's transcript takes the place of the language model.
        unsafe_local: The local runner may run code that a language model wrote, with all of the user's rights.
    """

    dataset: str | None = None
    model: str | None = None
    loop_n: int | None = None
    step_n: int | None = None
    timeout: float | None = None
    confirm: int = 0
    config: str | None = None
    runner: str | None = None
    proposer: str | None = None
    seed: int | None = None
    columns: dict[str, str] | None = None
    llm: str | None = None
    unsafe_local: bool = False
    dry_run: bool = False

    def settings(self) -> dict[str, Any]:
        """The settings given on the command line, by field name of `agent.settings.Settings`."""
        given = {
            "runner": self.runner,
            "proposer": self.proposer,
            "proposer_seed": self.seed,
            "columns": self.columns,
        }
        return {name: value for name, value in given.items() if value is not None}

    @property
    def replay(self) -> Path | None:
        """The transcript that is replayed; None where a model is asked."""
        return Path(self.llm.removeprefix("replay:")).expanduser() if self.llm else None


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> LoopOptions:
    """Parse the arguments of one call; prints usage and exits with 2 where they are wrong."""
    parser = argparse.ArgumentParser(
        prog=prog, description=_DESCRIPTION, epilog=_EPILOG, formatter_class=_HelpFormatter, allow_abbrev=False
    )
    add_arguments(parser)
    return options(parser, parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the loop's arguments; `options` turns what it parsed into the record."""
    add = parser.add_argument
    add(
        "--dataset",
        metavar="NAME",
        help="Hugging Face data set, directory with data files, or demo/reverse "
        "(default: of those in the workspace, the one most like the benchmarks)",
    )
    add("--model", metavar="NAME", help="base model: Hugging Face name or directory (default: chosen, with the reason)")
    add(*_spellings("--loop_n"), type=_count, metavar="N", help="trials to add in this call (default: unlimited)")
    add(*_spellings("--step_n"), type=_count, metavar="N", help="stages to add in this call (default: unlimited)")
    add("--timeout", type=duration, metavar="TIME", help="active time of this call: 3600, 90s, 15m, 12h, 1d")
    add(
        "--confirm",
        type=_whole(0),
        default=0,
        metavar="N",
        help="at the end, train the winner's recipe from N other seeds and report the spread (default: 0)",
    )
    add("--config", metavar="FILE", help="YAML file with settings")
    add("--runner", choices=RUNNERS, help="where jobs run (default: auto: docker if an engine answers, else local)")
    add(
        "--proposer",
        choices=PROPOSERS,
        help="who proposes; hybrid: a language model for data and method, TPE for numbers "
        "(default: auto: llm if an endpoint is configured, else tpe)",
    )
    add(
        "--llm",
        type=_replay,
        metavar="replay:FILE",
        help="propose what the language model of another study said, from its transcript.jsonl; no network is used",
    )
    add("--seed", type=_seed, metavar="N", help="seed of the proposer (default: 0)")
    add(
        "--columns",
        type=_columns,
        metavar="ROLE=COLUMN,...",
        help="columns of the data: prompt=problem,response=answer",
    )
    add(
        *_spellings("--unsafe_local")[::-1],
        action="store_true",
        help="without Docker, let code that a language model wrote run too, with all your rights (default: refuse it)",
    )
    add(*_spellings("--dry_run")[::-1], action="store_true", help="say what would be done and stop")


def options(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> LoopOptions:
    """The record of what `parser` parsed; ends the program as `parser.error` does where a name is empty."""
    for name in ("dataset", "model"):
        if getattr(parsed, name) == "":
            parser.error(f"--{name} is empty: leave it out to have one chosen, or give a name")
    return LoopOptions(**{name: getattr(parsed, name) for name in LoopOptions.__struct_fields__})


def duration(text: str) -> float:
    """Seconds in "3600", "90s", "15m", "1.5h" or "1d"; ArgumentTypeError for anything else."""
    matched = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)\s*([smhd]?)", text.strip(), re.ASCII)
    if matched is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration: write seconds (3600), or 90s, 15m, 12h, 1d")
    seconds = float(matched[1]) * _SECONDS[matched[2]]
    if not 0 < seconds <= _LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} must be more than 0 and at most ten years")
    return seconds


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the epilog's lines and gives long options room."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=118)


def _spellings(option: str) -> tuple[str, str]:
    return option, "--" + option.removeprefix("--").replace("_", "-")


def _whole(lowest: int) -> Callable[[str], int]:
    def parse_whole(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,18}", text.strip(), re.ASCII) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {lowest}")
        return int(text)

    return parse_whole


def _replay(text: str) -> str:
    if not text.removeprefix("replay:") or not text.startswith("replay:"):
        raise argparse.ArgumentTypeError(f"{text!r} is not replay:FILE, as in replay:studies/NAME/transcript.jsonl")
    return text


_count = _whole(1)
_seed = _whole(0)


def _columns(text: str) -> dict[str, str]:
    """The map in "prompt=problem,response=answer"."""
    columns: dict[str, str] = {}
    for pair in text.split(","):
        role, equals, column = (part.strip() for part in pair.partition("="))
        if not (role and equals and column):
            raise argparse.ArgumentTypeError(f"{pair!r} is not ROLE=COLUMN, as in prompt=problem,response=answer")
        if role in columns:
            raise argparse.ArgumentTypeError(f"the role {role!r} is given twice")
        columns[role] = column
    return columns
