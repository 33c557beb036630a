"""What a killed call spent on language models, and how long it worked, is part of every later budget."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import pytest

from agent.interrupted import end_interrupted
from agent.journal import CallStarted, Journal, StageStarted, StudyOpened
from agent.llm import Endpoint
from agent.llm.transcript import Transcript
from agent.records import Usage
from agent.report.plain import PlainView
from agent.store import StudyPaths
from tests.toy import IDENTITY

ASKED = Usage(calls=1, prompt_tokens=100, completion_tokens=20, cost=0.5)


@pytest.fixture
def paths(tmp_path: Path) -> StudyPaths:
    return StudyPaths(tmp_path / "study")


def killed(paths: StudyPaths, stage: str, at: float) -> Journal:
    """A journal whose last word is that a stage began."""
    journal = Journal(paths.journal)
    journal.append(StudyOpened(at=at - 9, format=1, study="toy", identity=IDENTITY))
    journal.append(
        CallStarted(
            at=at - 9, call=1, pid=1, runner="local", proposer="llm", loop_n=None, step_n=None, timeout=None, gpus=2
        )
    )
    journal.append(StageStarted(at=at, call=1, trial=1, stage=stage, attempt=1))
    return journal


def asked(file: Path, at: float, usage: Usage) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    told = {"calls": usage.calls, "prompt_tokens": usage.prompt_tokens, "cost": usage.cost}
    with file.open("a") as transcript:
        transcript.write(json.dumps({"time": at, "model": "m", "usage": told}) + "\n")


def test_what_the_agent_was_paid_for_an_unfinished_proposal_counts(paths: StudyPaths) -> None:
    began = time.time()
    journal = killed(paths, "propose", began)
    asked(paths.transcript, began - 5, Usage(calls=1, cost=100.0))  # of an earlier stage, which is journaled
    Transcript(paths.transcript, Endpoint(model="m", base_url="http://x")).write([], reply="so", usage=ASKED)
    with paths.transcript.open("a") as transcript:
        transcript.write('{"time": 99999999999, "usage": {"calls": 1, "co')  # the kill came here
    end_interrupted(journal, paths, PlainView(sys.stdout))
    assert journal.state.usage == ASKED
    assert Journal(paths.journal).state.usage == ASKED, "it is in the file"
    end_interrupted(journal, paths, PlainView(sys.stdout))
    assert journal.state.usage == ASKED, "once"


def test_so_does_what_scripts_and_judges_asked(paths: StudyPaths) -> None:
    began = time.time()
    journal = killed(paths, "data", began)
    asked(paths.work / "transcript.jsonl", began + 1, ASKED)
    end_interrupted(journal, paths, PlainView(sys.stdout))
    assert journal.state.usage.cost == 0.5
    journal.append(StageStarted(at=began + 1.5, call=1, trial=1, stage="bench", attempt=1))
    asked(paths.stage(1, "bench") / "aime" / "judge.jsonl", began + 2, ASKED)
    end_interrupted(journal, paths, PlainView(sys.stdout))
    assert (journal.state.usage.cost, journal.state.judging.cost) == (0.5, 0.5)


def test_gpu_time_is_counted_until_the_last_sign_of_life(paths: StudyPaths) -> None:
    began = time.time() - 1_000
    journal = killed(paths, "train", began)
    log = paths.stage(1, "train") / "train.log"
    log.parent.mkdir(parents=True)
    log.write_text("step 5")
    os.utime(log, (began + 60, began + 60))
    end_interrupted(journal, paths, PlainView(sys.stdout))
    assert journal.state.gpu_seconds == pytest.approx(120, abs=1), "two GPUs for a minute"
    assert journal.state.running is None


def test_nothing_is_made_up(paths: StudyPaths) -> None:
    journal = killed(paths, "train", time.time())
    end_interrupted(journal, paths, PlainView(sys.stdout))
    assert (journal.state.usage, journal.state.seconds) == (Usage(), 0.0)
