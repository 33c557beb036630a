"""Trials that prepare their own data, through the loop: what is mended, kept, dropped, published and trained again."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml

from agent.loop import run_call
from agent.records import Checkpoint, History, Lesson, MiniRun, Proposal, Recipe, TrainingData, Trial, Usage
from agent.report.markdown import report_text
from agent.study import Lab, study_report
from scenarios import Bench, Mend
from tests.toy import Toy, lab

STEPS = ({"step": "filter", "columns": "level", "contains": "hard"}, {"step": "limit", "n": 50})
MENDING = Usage(calls=1, prompt_tokens=1000, completion_tokens=100, cost=0.25)


@dataclass
class Scripted:
    """Proposes a script for each skill; implements `agent.propose.Author`."""

    skills: Sequence[float]
    scripts: Sequence[str]
    name: str = "scripted"

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        number = len(history.trials)
        recipe = Recipe(train={"skill": self.skills[number]}, script=self.scripts[number], data=STEPS)
        return Proposal(hypothesis="data", change=f"script {number}", recipe=recipe, author="scripted")

    def mend(self, proposal: Proposal, problem: str) -> Proposal:
        script = proposal.recipe.script.replace("broken", "good", 1)
        recipe = msgspec.structs.replace(proposal.recipe, script=script)
        return msgspec.structs.replace(proposal, recipe=recipe, usage=MENDING)

    def reflect(self, history: History, trial: Trial, found: str) -> Lesson:
        return Lesson(text=found)


@dataclass(frozen=True)
class Preparing(Toy):
    """Makes data by the content of the script, as the real scenario does, and notes what is trained on."""

    given: list[TrainingData | None] = field(default_factory=list)

    def prepare(self, bench: Bench, recipe: Recipe, mend: Mend) -> TrainingData:
        made = super().prepare(bench, recipe, mend)
        shared = bench.directory.parents[2] / "data-work" / made.script
        shared.mkdir(parents=True, exist_ok=True)
        return msgspec.structs.replace(made, path=str(shared))

    def train(self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None) -> Checkpoint:
        assert data is not None
        assert Path(data.path).is_dir()
        self.given.append(data)
        return super().train(bench, recipe, measured, data)


def play(root: Path, author: Scripted, trials: int, scenario: Preparing | None = None, confirm: int = 0) -> Lab:
    scenario = scenario or Preparing()
    with lab(root, proposer=author, scenario=scenario, loop_n=trials, confirm=confirm, out=io.StringIO()) as one:
        run_call(one)
    return one


def test_a_mended_script_is_what_is_published_and_trained_again(tmp_path: Path) -> None:
    scenario = Preparing()
    one = play(tmp_path, Scripted([0.9], ["broken broken"]), 1, scenario, confirm=1)
    (trial,) = one.study.history().trials
    assert trial.data is not None
    assert (trial.data.repairs, trial.data.script) == (2, "good good")
    published = yaml.safe_load((one.output / "recipe.yaml").read_text())
    assert published == {"skill": 0.9, "seed": 42, "data": list(STEPS), "script": "process_data.py"}
    assert (one.output / "process_data.py").read_text() == "good good"
    told = report_text(study_report(one.study.journal, tmp_path))
    assert "10 rows of its own, made by the script `process_data.py` (mended 2 times)" in told
    assert "skill 0.9, data by a script and filter and limit" in told
    assert scenario.given == [trial.data, trial.data], "the winner is trained again on the very same data"
    assert one.study.journal.state.usage.calls == 2, "mending is the agent's"
    assert one.study.budget.money.spent == 0.0, "and was charged where it was asked for"


def test_data_go_with_their_trials_but_not_while_another_one_needs_them(tmp_path: Path) -> None:
    scripts = ["best", "worse", "best", "better"]
    one = play(tmp_path, Scripted([0.7, 0.3, 0.6, 0.99], scripts), 4)
    assert one.study.journal.state.best == 4
    left = tmp_path / "studies" / "toy" / "data-work"
    assert sorted(path.name for path in left.iterdir()) == ["better"]
    again = play(tmp_path, Scripted([0.7, 0.3, 0.6, 0.99, 0.2, 0.1], [*scripts, "better", "other"]), 2)
    assert [trial.data is not None for trial in again.study.history().trials] == [True] * 6
    assert sorted(path.name for path in left.iterdir()) == ["better"], "the best's, though another trial made it too"
