"""--confirm: the winner's recipe trained again from other seeds; what is kept, counted, pruned and survives a kill."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.accept import SINGLE
from agent.errors import MachineError
from agent.journal import Journal, events
from agent.loop import run_call
from agent.records import Checkpoint, Confirmation, MiniRun, Recipe, Scores, TrainingData
from agent.report.markdown import report_text
from agent.report.summary import summary
from agent.store import StudyPaths
from agent.study import study_report
from scenarios import Bench
from tests import toy
from tests.end_to_end.command import processes_below
from tests.toy import Listed, Toy

ROOT = Path(__file__).resolve().parent.parent


def call(root: Path, *skills: float | str, scenario: Toy | None = None, **options: Any) -> str:
    said = io.StringIO()
    scenario = scenario or Toy(spread=0.02)
    with toy.lab(root, proposer=Listed(skills or (0.6,)), scenario=scenario, out=said, **options) as lab:
        return run_call(lab) + "\n" + said.getvalue()


def paths(root: Path) -> StudyPaths:
    return StudyPaths(root / "studies" / "toy")


def journal(root: Path) -> Journal:
    return Journal(paths(root).journal)


def confirmations(root: Path) -> tuple[Confirmation, ...]:
    return journal(root).state.confirmations()


def endings(root: Path) -> Counter[tuple[int, str, str]]:
    lines = events(paths(root).journal)
    return Counter((e["trial"], e["stage"], e["ending"]) for e in lines if e["event"] == "stage ended")


def test_the_winners_recipe_is_trained_from_other_seeds_and_the_spread_is_reported(tmp_path: Path) -> None:
    said = call(tmp_path, 0.6, 0.2, loop_n=2, confirm=3)
    found = confirmations(tmp_path)
    assert [one.seed for one in found] == [43, 44, 45]
    means = [one.mean or 0.0 for one in found]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1], "another skill from each seed"
    assert all(one.comparison and one.comparison.against == "base" for one in found)
    assert {one.comparison.alpha for one in found if one.comparison} == {SINGLE}
    assert {score.split for one in found for score in one.scores} == {"search"}
    assert "seed 43: 0." in said
    report = study_report(journal(tmp_path), paths(tmp_path).root)
    spread = f"mean {sum(means) / 3:.3f}, from {means[-1]:.3f} to {means[0]:.3f}, of 3 more seeds; 3 of 3 better"
    assert spread in " ".join(summary(report).split())
    assert spread in report_text(report)
    assert "| 45 | 0." in report_text(report)


def test_the_seal_is_opened_once_and_before(tmp_path: Path) -> None:
    call(tmp_path, loop_n=1, confirm=2)
    stages = [e["stage"] for e in events(paths(tmp_path).journal) if e["event"] == "stage ended" and e["trial"] == 1]
    assert stages.count("test") == 1
    assert stages.index("test") < stages.index("confirm-1-train")
    assert journal(tmp_path).state.openings == [1]


def test_its_weights_are_pruned_and_the_winners_stay(tmp_path: Path) -> None:
    call(tmp_path, loop_n=1, confirm=2)
    assert paths(tmp_path).weights(1, "train").is_dir()
    assert not list(paths(tmp_path).trial(1).glob("confirm-*/model"))
    assert (tmp_path / "output/toy/weights").read_text() == "0.6"


def test_without_a_winner_nothing_is_trained_again(tmp_path: Path) -> None:
    call(tmp_path, 0.1, loop_n=1, confirm=2)
    assert not [stage for _, stage in journal(tmp_path).state.attempts if stage.startswith("confirm")]


def test_a_training_that_fails_is_recorded_and_the_next_goes_on_and_it_stays_failed(tmp_path: Path) -> None:
    scenario = Toy(spread=0.02, fails_from=43)
    call(tmp_path, loop_n=1, confirm=2, scenario=scenario)
    failed, good = confirmations(tmp_path)
    assert failed.failure is not None
    assert failed.failure.kind == "train:exit"
    assert failed.mean is None
    assert good.comparison is not None
    assert good.comparison.verdict == "better"
    assert [trial.verdict for trial in journal(tmp_path).state.trials] == ["better"], "the trial itself did not fail"
    report = study_report(journal(tmp_path), paths(tmp_path).root)
    assert "seed 43 failed: training failed: " in summary(report)
    assert "1 more seed; 1 of 1 better than base" in report_text(report)
    call(tmp_path, 0.6, 0.1, loop_n=1, confirm=2, scenario=scenario)
    assert endings(tmp_path)[(1, "confirm-1-train", "failed")] == 1, "it is not tried again in the next call"
    assert endings(tmp_path)[(1, "confirm-2-train", "done")] == 1


def test_more_of_them_add_to_those_there_are_and_a_new_winner_has_its_own(tmp_path: Path) -> None:
    call(tmp_path, loop_n=1, confirm=1)
    call(tmp_path, 0.6, 0.1, loop_n=1, confirm=2)
    assert endings(tmp_path)[(1, "confirm-1-train", "done")] == endings(tmp_path)[(1, "confirm-2-train", "done")] == 1
    call(tmp_path, 0.6, 0.1, 0.9, loop_n=1, confirm=1)
    assert journal(tmp_path).state.best == 3
    assert len(confirmations(tmp_path)) == 1
    assert endings(tmp_path)[(3, "confirm-1-accept", "done")] == 1


def test_its_stages_are_not_those_of_a_trial(tmp_path: Path) -> None:
    call(tmp_path, step_n=6, confirm=1, loop_n=1)
    assert len(confirmations(tmp_path)) == 1, "six stages are a trial; these come on top"


def test_a_broken_machine_is_no_finding(tmp_path: Path) -> None:
    class Broken(Toy):
        def rescore(self, bench: Bench, checkpoint: Checkpoint, fresh: int = 1) -> Scores:
            raise MachineError("the disk is full", "make room")

    with pytest.raises(MachineError):
        call(tmp_path, loop_n=1, confirm=1, scenario=Broken())
    assert confirmations(tmp_path) == ()
    assert paths(tmp_path).weights(1, "confirm-1-train").is_dir(), "they are still to be scored"
    call(tmp_path, 0.6, 0.1, loop_n=1, confirm=1)
    assert endings(tmp_path)[(1, "confirm-1-train", "done")] == 1
    assert len(confirmations(tmp_path)) == 1
    assert not paths(tmp_path).weights(1, "confirm-1-train").exists()


def test_time_is_kept_for_it(tmp_path: Path) -> None:
    """A search without a count ends early enough; a training of 0.5 s twice, and what scoring takes."""

    class Slow(Toy):
        def train(
            self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None
        ) -> Checkpoint:
            import msgspec

            return msgspec.structs.replace(super().train(bench, recipe, measured, data), seconds=2.0)

    reason = call(tmp_path, 0.6, 0.1, scenario=Slow(), confirm=2, timeout=6.5)
    assert "kept for the sealed test and --confirm" in reason
    assert len(confirmations(tmp_path)) == 2


def test_time_that_runs_out_is_said_and_it_goes_on_later(tmp_path: Path) -> None:
    class Endless(Toy):
        def train(
            self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None
        ) -> Checkpoint:
            return (Toy(30.0) if recipe.seed == 43 else Toy()).train(bench, recipe, measured, data)

    reason = call(tmp_path, loop_n=1, scenario=Endless(), confirm=1, timeout=3.0)
    assert "training from other seeds (--confirm) was not finished" in reason
    assert endings(tmp_path)[(1, "confirm-1-train", "stopped")] == 1
    assert endings(tmp_path)[(1, "test", "done")] == 1
    assert confirmations(tmp_path) == ()
    call(tmp_path, 0.6, 0.1, loop_n=1, confirm=1)
    assert len(confirmations(tmp_path)) == 1


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "tests/toy.py", str(root), "--skills", "0.6", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_kill_nine_in_the_middle_of_it_loses_nothing(tmp_path: Path) -> None:
    log = paths(tmp_path).stage(1, "confirm-2-train") / "job.log"
    process = start(tmp_path, "--loop_n", "1", "--seconds", "1.0", "--confirm", "2")
    wait_for(lambda: log.exists() and "training" in log.read_text())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not processes_below(tmp_path))
    assert len(confirmations(tmp_path)) == 1

    again = start(tmp_path, "--loop_n", "1", "--confirm", "2")
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0, output
    done = endings(tmp_path)
    assert done[(1, "confirm-2-train", "interrupted")] == 1
    assert all(done[(1, f"confirm-{i}-{stage}", "done")] == 1 for i in (1, 2) for stage in ("train", "bench", "accept"))
    assert done[(1, "test", "done")] == 1
    assert not list(paths(tmp_path).trial(1).glob("confirm-*/model"))
