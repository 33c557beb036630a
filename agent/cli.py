"""The command `ftloop`: one word for each thing to do, each with its own help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent import loop
from agent.errors import FtloopError
from agent.experiments import commands as experiments

_DOCTOR = """\
Checks this machine and prints one line a check: ok, warning or problem, and what to do. Shows no key. One tiny request
goes to each configured language model. Half a minute at most.
"""
_DOCTOR_CODES = """\
exit codes:
  0    a study can start; there may be warnings
  3    there is a problem
"""
_CLEAN = """\
Removes what killed calls left behind: their processes and containers, half-made downloads, temporary directories,
drafts of outputs. The options free more. What another process holds is kept and named; journals, scores, logs and
published winners are never removed.
"""
_CLEAN_CODES = """\
exit codes:
  0    what could go is gone (or, with --dry-run, is named); what is in use was kept
  2    a setting is wrong
  3    something could not be removed; the line says why
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see agent/errors.py)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "loop":
        return loop.main(words[1:])
    options = _parser().parse_args(words[:1] if words[:1] in (["train"], ["eval"]) else words)
    try:
        return _run(options, words[1:])
    except KeyboardInterrupt:
        return 130
    except FtloopError as error:
        print(f"ftloop: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace, words: Sequence[str]) -> int:
    """The command; its module is imported here, because --help has no need of it."""
    if options.command in ("train", "eval"):
        from agent.experiments import calls

        return calls.train(words) if options.command == "train" else calls.evaluate(words)
    if options.command == "doctor":
        from agent import doctor

        return doctor.run(options.config, as_json=options.json)
    if options.command == "clean":
        from agent import clean

        wanted = clean.Wanted(
            images=options.images,
            checkpoints=options.checkpoints,
            environments=options.environments,
            dry_run=options.dry_run,
        )
        return clean.run(options.config, wanted)
    if (code := experiments.run(options)) is not None:
        return code
    from agent.wiring import report

    return report(options.study)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ftloop", description="An autonomous fine-tuning lab.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("loop", help="search for a better model (the same as python agent/loop.py)", add_help=False)
    report = commands.add_parser("report", help="what was tried, what was kept, why, with its uncertainty")
    report.add_argument(
        "study", nargs="?", help="a study's id, or the beginning of it; without it, the one last worked on"
    )
    doctor = commands.add_parser("doctor", help="is this machine ready?", **_described(_DOCTOR, _DOCTOR_CODES))
    doctor.add_argument("--json", action="store_true", help="print the findings as a JSON array")
    clean = commands.add_parser("clean", help="give disk space back", **_described(_CLEAN, _CLEAN_CODES))
    clean.add_argument("--images", action="store_true", help="also remove ftloop's images from the Docker engine")
    clean.add_argument("--checkpoints", action="store_true", help="also remove weights that no study needs any more")
    clean.add_argument(
        "--environments", action="store_true", help="also remove virtual environments that this version does not use"
    )
    clean.add_argument("--dry-run", "--dry_run", action="store_true", help="say what would go, and remove nothing")
    commands.add_parser("train", help="train a model as a person says", add_help=False)
    commands.add_parser("eval", help="score a model on benchmarks", add_help=False)
    experiments.add(commands, _described)
    for command in (doctor, clean):
        command.add_argument("--config", metavar="FILE", type=Path, help="YAML file with settings")
    return parser


def _described(description: str, epilog: str) -> dict[str, Any]:
    """What a parser is made with so that its texts keep their lines."""
    return {
        "description": description,
        "epilog": epilog,
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }


if __name__ == "__main__":
    sys.exit(main())
