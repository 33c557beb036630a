"""The command lines of `ftloop sweep`, `list`, `trace` and `compare`. Imports nothing heavy: --help answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SWEEP = """\
Trains every cell of a grid. FILE says what (experiment.purpose, model, task, method, data.path, hyperparameters); lists
among the hyperparameters span the grid. Each cell gets a directory of its own, and nothing is ever written over:

  Results_v2/{purpose}/{Model}/{Task}_{Method}_{DataType}_{LR}/{time}/experiment_config.yaml

The same command continues a sweep that lacks cells (killed, stopped, failed) and trains only these; once all of them
are done, it begins a new one. Methods: fo_full (all weights) and fo_lora; zo comes with a later version.
"""
_SWEEP_CODES = """\
exit codes:
  0    every cell is done
  2    the file, a setting or the data is wrong; nothing was trained
  3    the machine cannot: engine gone, disk full; the cell in hand is recorded as broken
  4    another process works on the same sweep
  6    all cells were tried, and some have no result; the others do
  130  interrupted with Ctrl-C; the cells in hand are recorded as stopped
"""
_LIST = """\
Shows what was ever trained: sweeps below Results_v2, runs below outputs, agent studies of FT_FILE_PATH, and whatever
the index of FT_FILE_PATH knows elsewhere. What an experiment is, its own files say: a directory that was renamed stays
what it was.
"""
_TRACE = """\
RESULT: the data that it was trained on, with their hashes, how they were made, the recipe and the model.
DATA: every result that was trained on it, also where the files have changed since, which is said.
A result is a directory, or an id as `ftloop list --detail` shows it (STUDY:TRIAL for an agent's trial).
"""
_COMPARE = """\
What differs between two recipes, and how their scores do: paired, question by question, where both were asked the same
questions. A and B are directories or ids as `ftloop list --detail` shows them (STUDY:TRIAL for an agent's trial).
"""
_FOUND_CODES = """\
exit codes:
  0    shown
  2    there is no such result, data or purpose; the message names those that there are
"""

Described = Callable[[str, str], dict[str, Any]]


def add(commands: Any, described: Described) -> None:
    """Give the command `ftloop` these sub-commands.

    Args:
        commands: What `argparse.ArgumentParser.add_subparsers` returned.
        described: Makes a sub-parser's keywords from its description and epilog.
    """
    sweep = commands.add_parser("sweep", help="train a grid of experiments", **described(_SWEEP, _SWEEP_CODES))
    sweep.add_argument("file", metavar="FILE", type=Path, help="a training_config.yaml")
    sweep.add_argument(
        "--dry-run", "--dry_run", action="store_true", help="say which cells and directories; write nothing"
    )
    sweep.add_argument("--parallel", metavar="N", type=_count, default=1, help="cells at once (default: 1)")
    sweep.add_argument("--anew", action="store_true", help="begin a new sweep though the last equal one lacks cells")
    sweep.add_argument("--runner", choices=("auto", "local", "docker"), help="where jobs run (default: auto)")
    sweep.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings (FT_...)")
    listing = commands.add_parser(
        "list", help="what was trained, in sweeps, runs and studies", **described(_LIST, _FOUND_CODES)
    )
    listing.add_argument("--detail", action="store_true", help="every experiment, with its hyper-parameters and scores")
    listing.add_argument("--purpose", metavar="P", help="only the experiments of this purpose")
    listing.add_argument("--json", action="store_true", help="print a JSON array")
    trace = commands.add_parser(
        "trace", help="which data a result was trained on, and back", **described(_TRACE, _FOUND_CODES)
    )
    trace.add_argument("what", metavar="RESULT|DATA")
    compare = commands.add_parser(
        "compare", help="two results: recipes and scores", **described(_COMPARE, _FOUND_CODES)
    )
    compare.add_argument("a", metavar="A")
    compare.add_argument("b", metavar="B")
    for command in (trace, compare):
        command.add_argument("--json", action="store_true", help="print a JSON object")
    for command in (listing, trace, compare):
        command.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings")
    for command in (sweep, listing, trace, compare):
        command.add_argument(
            "--results", metavar="DIR", type=Path, default=Path("Results_v2"), help="the sweeps' root (Results_v2)"
        )


def run(options: argparse.Namespace) -> int | None:
    """Run the command if it is one of these; None for another one. Raises FtloopError as agent/errors.py says."""
    if options.command == "sweep":
        from agent.experiments import sweep

        wanted = sweep.Options(
            file=options.file,
            root=options.results,
            parallel=options.parallel,
            dry_run=options.dry_run,
            anew=options.anew,
            runner=options.runner,
            settings=options.config,
        )
        return sweep.run(wanted)
    if options.command not in ("list", "trace", "compare"):
        return None
    from agent.experiments.gather import every

    found = every(options.config, options.results)
    if options.command == "list":
        from agent.experiments import listing

        return listing.run(found, detail=options.detail, purpose=options.purpose, as_json=options.json)
    if options.command == "trace":
        from agent.experiments import trace

        return trace.run(found, options.what, as_json=options.json)
    from agent.experiments import compare

    return compare.run(found, options.a, options.b, as_json=options.json)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)
