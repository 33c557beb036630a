"""The journal: what it promises about kills, torn lines and corruption."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from agent.errors import StudyError
from agent.journal import (
    CallEnded,
    CallStarted,
    Event,
    Journal,
    StageEnded,
    StageStarted,
    StudyOpened,
    TrialEnded,
    encode,
)
from agent.records import (
    Checked,
    Checkpoint,
    Comparison,
    Failure,
    FileRef,
    Loss,
    MiniRun,
    Proposal,
    Recipe,
    Score,
    Scores,
    Usage,
    Verdict,
)
from agent.study import allowance
from tests.records_factory import make_identity

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = make_identity()


def opened() -> list[Event]:
    return [
        StudyOpened(at=0, format=1, study="s", identity=IDENTITY),
        CallStarted(at=0, call=1, pid=1, runner="local", proposer="tpe", loop_n=3, step_n=None, timeout=None),
    ]


def stage(trial: int, name: str, result: msgspec.Struct) -> list[Event]:
    return [
        StageStarted(at=0, call=1, trial=trial, stage=name, attempt=1),
        StageEnded(at=0, trial=trial, stage=name, ending="done", seconds=1.0, result=encode(result)),
    ]


def score(mean: float = 0.5) -> Score:
    return Score(
        benchmark="reverse",
        split="search",
        n=100,
        mean=mean,
        stderr=0.05,
        low=0.4,
        high=0.6,
        unscored=0,
        questions=FileRef(path="questions.jsonl", sha256="0" * 64),
        settings={"fewshot": 0},
        key="k" * 64,
    )


def whole_trial(number: int, verdict: Verdict = "tie") -> list[Event]:
    recipe = Recipe(train={"learning_rate": 1e-3, "finetuning_type": "lora", "lora_rank": 8})
    results: dict[str, msgspec.Struct] = {
        "propose": Proposal(hypothesis="h" * 80, change="c" * 40, recipe=recipe, author="tpe", usage=Usage(calls=1)),
        "check": Checked(),
        "mini-run": MiniRun(shape="a" * 16, steps=3, seconds=1.0),
        "train": Checkpoint(
            path="/x/model", weights="0" * 64, adapter=True, losses=tuple(Loss(i, 1.0) for i in range(50))
        ),
        "bench": Scores(scores=(score(),)),
        "accept": Comparison(
            verdict=verdict,
            difference=0.1,
            low=0.0,
            high=0.2,
            wins=9,
            losses=1,
            n=100,
            p_value=0.5,
            alpha=0.003,
            detectable=0.1,
            against="base",
        ),
    }
    lines = [event for name, result in results.items() for event in stage(number, name, result)]
    return [*lines, TrialEnded(at=0, call=1, trial=number, lesson="l" * 100)]


def write(path: Path, events: list[Event]) -> bytes:
    data = b"".join(msgspec.json.encode(event) + b"\n" for event in events)
    path.write_bytes(data)
    return data


def test_replay_gives_back_what_was_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "study" / "journal.jsonl")
    for event in [*opened(), *stage(0, "bench", Scores(scores=(score(),))), *whole_trial(1, "better")]:
        journal.append(event)
    again = Journal(journal.path).state
    assert again.trials == journal.state.trials
    assert again.best == 1
    assert again.result(0, "bench", Scores) == Scores(scores=(score(),))
    assert again.calls[-1].trials == 1
    assert again.calls[-1].ended is None
    assert again.trials[0].seconds == 6.0


def test_a_torn_last_line_is_forgiven_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = write(path, [*opened(), *whole_trial(1)])
    for cut in (1, 2, 30):
        path.write_bytes(data[:-cut])
        journal = Journal(path)
        assert journal.torn
        assert not journal.state.trials
        journal.append(TrialEnded(at=0, call=1, trial=1, lesson="again"))
        journal.close()
        assert [trial.lesson for trial in Journal(path).state.trials] == ["again"]


def test_every_cut_of_the_file_can_be_continued(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    data = write(path, [*opened(), *whole_trial(1)])
    for cut in range(0, len(data), 7):
        path.write_bytes(data[:cut])
        state = Journal(path).state
        assert len(state.stages) <= 6


def test_a_corrupt_middle_line_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path, [*opened(), *whole_trial(1)]).splitlines(keepends=True)
    lines[4] = b'{"event": "stage ended", "at": tru\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(StudyError, match=r"journal\.jsonl, line 5") as error:
        Journal(path)
    assert error.value.exit_code == 4
    assert path.read_bytes() == b"".join(lines), "nothing is lost by looking"


def test_a_trial_out_of_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [*opened(), *whole_trial(2), *whole_trial(1)])
    with pytest.raises(StudyError, match="trial 2 ended after trial 0"):
        Journal(path)


def test_a_failed_trial_keeps_its_failure(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    failure = Failure(kind="train:oom", reason="out of memory", tail="...")
    events = whole_trial(1)[:6]
    for event in [*opened(), *events]:
        journal.append(event)
    journal.append(StageStarted(at=0, call=1, trial=1, stage="train", attempt=1))
    journal.append(StageEnded(at=0, trial=1, stage="train", ending="failed", seconds=2.0, failure=failure))
    journal.append(TrialEnded(at=0, call=1, trial=1, lesson=""))
    trial = Journal(journal.path).state.trial(1)
    assert trial.failure == failure
    assert trial.verdict == "failed (train:oom)"
    assert trial.mean is None


def test_a_killed_call_still_owes_its_trials(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for event in [*opened(), *whole_trial(1)]:
        journal.append(event)
    assert allowance(journal.state.calls, 1, None) == (3, None)
    assert allowance(journal.state.calls, None, 4) == (None, 4)
    journal.append(CallEnded(at=0, call=1, reason="done", seconds=1.0))
    assert allowance(journal.state.calls, 1, None) == (1, None)


def test_ten_thousand_trials_load_quickly(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write(path, [*opened(), *(event for n in range(1, 10_001) for event in whole_trial(n))])
    started = time.perf_counter()
    assert len(Journal(path).state.trials) == 10_000
    assert time.perf_counter() - started < 3.0  # the goal is 1 s on a quiet machine: see `make bench`


def test_a_full_disk_leaves_no_half_line(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond a limit."""
    path = tmp_path / "journal.jsonl"
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from agent.errors import MachineError\n"
        "from agent.journal import Journal\n"
        "from tests.test_journal import opened, whole_trial\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for event in opened(): journal.append(event)\n"
        "size = Path(sys.argv[1]).stat().st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, size + 100))\n"
        "for event in whole_trial(1)[:2]:\n"
        "    try: journal.append(event)\n"
        "    except MachineError as error: sys.exit(error.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    before = path.stat().st_size
    assert path.read_bytes().endswith(b"\n")
    journal = Journal(path)
    assert not journal.torn
    journal.append(CallEnded(at=0, call=1, reason="", seconds=0))
    assert path.stat().st_size > before
