"""`ftloop doctor`: is this machine ready? Makes the checks of `agent.checks` and prints what they found.

Those that wait for somebody wait side by side, all within half a minute; one that does not come back is itself a
finding.
"""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

from agent import checks, hardware
from agent.checks import Finding, Status
from agent.errors import FtloopError, MachineError, UsageError
from agent.report.words import clean, count
from agent.run.gpus import environment_of_jobs
from agent.settings import PREFIX, load

Checks = Iterable[tuple[str, Callable[[], Iterable[Finding]]]]

LIMIT = 14.0
"""Seconds after which no check is waited for any more. (nvidia-smi, asked before, has 20 of its own.)"""
_COLORS: dict[Status, str] = {"ok": "32", "warning": "33", "problem": "1;31"}


def run(config: Path | None, *, as_json: bool) -> int:
    """Make all checks and print what they found; 0 where a study can start, 3 where there is a problem."""
    found = examine(config, os.environ, Path.cwd())
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        print(render(found, color=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
    return MachineError.exit_code if any(finding.status == "problem" for finding in found) else 0


def examine(config: Path | None, environ: Mapping[str, str], cwd: Path) -> list[Finding]:
    """Everything that can be said before a study is named, in the order in which it is read."""
    settings, first = None, None
    try:
        settings = load({}, config, environ, cwd)
    except UsageError as error:
        first = error
    machine = hardware.look(environment_of_jobs(environ, settings.gpus if settings else None))
    always: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", checks.versions),
        ("GPUs", lambda: checks.gpus(machine, settings.gpus if settings else None)),
    ]
    if settings is None:
        assert first is not None
        wrong = [_problem("settings", error) for error in bad_settings(first, environ, cwd)]
        unseen = Finding(name="the rest", status="warning", found="not checked, because it depends on the settings")
        return [*wrong, *at_once(always), unseen]
    whole = dict(environ)
    settings.export(whole)
    all_of_them: Checks = [
        *always,
        ("settings", lambda: checks.described_settings(settings)),
        ("keys", lambda: checks.keys(settings, environ, whole)),
        ("workspace", lambda: checks.workspace(settings)),
        ("engine", lambda: checks.places(settings, machine)),
        ("data set", lambda: checks.data_set(settings)),
        ("model", lambda: checks.model(settings, machine)),
        ("benchmark", lambda: checks.benchmarks(settings)),
        ("proposer", lambda: checks.proposer(settings)),
        ("judge", lambda: checks.judge(settings)),
        ("hub", lambda: checks.huggingface(whole)),
    ]
    return at_once(all_of_them)


def at_once(wanted: Checks, limit: float = LIMIT) -> list[Finding]:
    """Make the checks side by side; their findings in the order of the checks. A check that fails is a finding."""
    running: list[tuple[str, queue.SimpleQueue[Finding | None]]] = []
    for name, check in wanted:
        found: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()
        running.append((name, found))
        # Daemons: a check that hangs in the kernel or in a name server must not hold up the end of the program.
        threading.Thread(target=_make, args=(name, check, found.put), name=name, daemon=True).start()
    end = time.monotonic() + limit
    return [finding for name, found in running for finding in _collect(name, found, end, limit)]


def _make(name: str, check: Callable[[], Iterable[Finding]], put: Callable[[Finding | None], None]) -> None:
    """One check, in its thread; None says that it is through."""
    try:
        for finding in check():
            put(finding)
    except FtloopError as error:
        put(_problem(name, error))
    except Exception as error:
        # Only where it happened: its text may hold what it was working on, a key for one.
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"the check itself failed: {type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        put(Finding(name=name, status="problem", found=found, advice="a defect of ftloop: please report it"))
    put(None)


def _collect(name: str, found: queue.SimpleQueue[Finding | None], end: float, limit: float) -> Iterator[Finding]:
    while True:
        try:
            finding = found.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            late = f"no result within {limit:.0f} s"
            yield Finding(name=name, status="problem", found=late, advice="something hangs there; see to it first")
            return
        if finding is None:
            return
        yield finding


def render(findings: list[Finding], *, color: bool = False) -> str:
    """One aligned line a finding, with what to do below it, and what it comes to."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = f"{finding.status:<7}"
        mark = f"\x1b[{_COLORS[finding.status]}m{mark}\x1b[0m" if color else mark
        lines.append(f"{mark}  {finding.name:<{width}}  {clean(finding.found, 500)}")
        if finding.advice:
            lines.append(f"{'':7}  {'':<{width}}  -> {clean(finding.advice, 500)}")
    problems, warnings = (sum(f.status == status for f in findings) for status in ("problem", "warning"))
    ending = f"{count(problems, 'problem')} to mend before a study can run" if problems else "ready"
    return "\n".join([*lines, "", f"{ending}; {count(warnings, 'warning')}" if warnings else ending])


# Settings


def bad_settings(first: UsageError, environ: Mapping[str, str], cwd: Path) -> list[UsageError]:
    """`first`, which `load` raised, and whatever else of the environment and of .env is refused by itself."""
    nowhere = cwd / ".env" / "none"  # no directory: each setting is read alone, without the .env that lies here
    wrong = []
    for name, (value, origin) in _given(environ, cwd).items():
        try:
            load({}, None, {name: value}, nowhere)
        except UsageError as error:
            wrong.append(UsageError(re.sub("^environment", origin, error.message), error.hint))
    return wrong if first.message in [error.message for error in wrong] else [first, *wrong]


def _given(environ: Mapping[str, str], cwd: Path) -> dict[str, tuple[str, str]]:
    """FT_ name -> its value and where that stands; a line of .env that the environment outranks is left out."""
    from dotenv.parser import parse_stream

    given: dict[str, tuple[str, str]] = {}
    try:
        with (cwd / ".env").open(encoding="utf-8-sig") as file:
            for line in parse_stream(file):
                if line.key and line.key.startswith(PREFIX):
                    number = line.original.line + len(re.match(r"\s*", line.original.string)[0].split("\n")) - 1  # type: ignore[index]
                    given[line.key] = (line.value or "", f".env:{number}")
    except (OSError, UnicodeDecodeError):
        pass  # `load` says so
    return given | {
        name: (value, "environment") for name, value in environ.items() if name.startswith(PREFIX) and value.strip()
    }


def _problem(name: str, error: FtloopError) -> Finding:
    return Finding(name=name, status="problem", found=error.message, advice=error.hint)
