"""What a killed call spent on the stage that it left unfinished: not in the journal, but in transcripts and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent.journal import Journal, StageEnded, StageStarted
from agent.records import Usage
from agent.report import View
from agent.store import StudyPaths


class _Line(msgspec.Struct):
    """What the transcripts of agent, data scripts and judge have in common."""

    time: float = 0.0
    usage: Usage | None = None


def end_interrupted(journal: Journal, paths: StudyPaths, view: View) -> None:
    """Record that a killed call's stage is over, with what it cost, so that no budget forgets it."""
    if (running := journal.state.running) is None:
        return
    usage, seconds = spent(paths, running), lasted(paths, running)
    journal.append(
        StageEnded(
            at=journal.now(),
            trial=running.trial,
            stage=running.stage,
            ending="interrupted",
            seconds=seconds,
            usage=usage if usage.calls else None,
        )
    )
    view.stage_ended(running.trial, running.stage, "interrupted", seconds)
    where = f"trial {running.trial}" if running.trial else "base"
    view.say(f"{where}: {running.stage} was interrupted and runs again")


def spent(paths: StudyPaths, running: StageStarted) -> Usage:
    """What language models consumed since the stage began."""
    lines = (line for file in _transcripts(paths, running) for line in _lines(file))
    return sum((line.usage for line in lines if line.usage and line.time >= running.at), Usage())


def lasted(paths: StudyPaths, running: StageStarted) -> float:
    """Seconds from the stage's start to the last sign of life in its directory; 0 where there is none."""
    files = [file for file in paths.stage(running.trial, running.stage).rglob("*") if file.is_file()]
    return max(0.0, max((file.lstat().st_mtime for file in files), default=0.0) - running.at)


def _transcripts(paths: StudyPaths, running: StageStarted) -> Iterator[Path]:
    known = (paths.transcript, paths.work / "transcript.jsonl")
    yield from (file for file in known if file.is_file())
    yield from paths.stage(running.trial, running.stage).rglob("judge.jsonl")


def _lines(file: Path) -> Iterator[_Line]:
    decoder = msgspec.json.Decoder(_Line)
    with file.open("rb") as source:
        for line in source:
            try:
                yield decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                continue  # torn by the kill
