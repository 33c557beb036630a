"""The command `ftloop`: one word for each thing to do, each with its own help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from agent import loop
from agent.errors import FtloopError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (see agent/errors.py)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] == "loop":
        return loop.main(words[1:])
    options = _parser().parse_args(words)
    from agent.wiring import report  # here, because --help has no need of it

    try:
        return report(options.study)
    except FtloopError as error:
        print(f"ftloop: {error}", file=sys.stderr)
        return error.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ftloop", description="An autonomous fine-tuning lab.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    commands.add_parser("loop", help="search for a better model (the same as python agent/loop.py)", add_help=False)
    report = commands.add_parser("report", help="what was tried, what was kept, why, with its uncertainty")
    report.add_argument(
        "study", nargs="?", help="a study's id, or the beginning of it; without it, the one last worked on"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
