"""What becomes of a training that memory or time do not allow as it was asked for; by processes that really run out."""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml

from agent.budget import Budget
from agent.errors import BudgetEnded, SettingError, TrialFailed
from agent.hardware import Hardware
from agent.journal import Journal, StudyOpened
from agent.loop import run_call, stop_if_no_recipe_helps
from agent.propose.digest import trials_text
from agent.records import Checkpoint, History, MiniRun, Recipe, TrainingData, Value
from agent.report.markdown import report_text
from agent.report.plain import PlainView
from agent.run import EnvironmentName, Say
from agent.run.local import LocalRunner
from agent.study import StageBench, study_report
from scenarios import Bench
from scenarios.finetune import adapt, data, estimate_rules
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.training import TrainingPlan, shape
from tests import toy
from tests.records_factory import make_failed
from tests.test_estimate import FULL, plan_for
from tests.test_training import PLAN, Here
from tests.test_training import real as real  # the fixture: a tiny model and rows for it

BATCH, SUMMED = "per_device_train_batch_size", "gradient_accumulation_steps"
UNMEASURED = MiniRun(shape="", steps=0, seconds=0.0)

# Stands in for llamafactory-cli: it holds 64 MiB a row in the memory that it may have, and sleeps a step's time.
STAND_IN = """#!{python}
import json, math, pathlib, resource, sys, time, yaml
behaviour = json.loads((pathlib.Path(__file__).parent / "behaviour.json").read_text())
settings = yaml.safe_load(open(sys.argv[2]))
model = pathlib.Path(settings["output_dir"]); model.mkdir(parents=True)
batch, summed = settings["per_device_train_batch_size"], settings["gradient_accumulation_steps"]
row, has = 64 << 20, int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (has + behaviour["fits"] * row + row // 2,) * 2)
held = bytearray(batch * row)
del held
rows = len(open(pathlib.Path(settings["dataset_dir"]) / (settings["dataset"] + ".jsonl")).readlines())
steps = settings.get("max_steps") or math.ceil(math.ceil(rows / (batch * summed)) * settings["num_train_epochs"])
for step in range(1, steps + 1):
    time.sleep(behaviour["step"])
    with (model / "trainer_log.jsonl").open("a") as log:
        log.write(json.dumps({{"current_steps": step, "total_steps": steps, "loss": 1.5}}) + "\\n")
history = [{{"step": step, "loss": 1.5, "grad_norm": 1.0}} for step in range(1, steps + 1)]
(model / "trainer_state.json").write_text(json.dumps({{"global_step": steps, "log_history": history}}))
(model / "all_results.json").write_text(json.dumps({{"train_runtime": steps * behaviour["step"]}}))
name = "adapter_model" if settings["finetuning_type"] == "lora" else "model"
(model / (name + ".safetensors")).write_bytes(b"weights")
"""


class Programs:
    """Environments whose one program is the stand-in; `behave` sets how it behaves."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        program = directory / "llamafactory-cli"
        program.write_text(STAND_IN.format(python=sys.executable))
        program.chmod(0o755)
        self.behave()

    def behave(self, *, fits: int = 1000, step: float = 0.0) -> None:
        """`fits`: rows of the largest batch that its memory holds. `step`: seconds of a step."""
        (self._directory / "behaviour.json").write_text(json.dumps({"fits": fits, "step": step}))

    def python(self, name: EnvironmentName) -> Path:
        return self._directory / "python"

    def ready(self, name: EnvironmentName, say: Say) -> None:
        return None


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "bin")


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    rows = [{"prompt": f"reverse {n:04d}", "completion": f"{n:04d}"[::-1]} for n in range(64)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = data.write(data.recognise(tmp_path / "in.jsonl"), tmp_path / "data")
    return msgspec.structs.replace(PLAN, data=prepared, default_epochs=1)


@pytest.fixture
def stage(tmp_path: Path, programs: Programs) -> Callable[..., StageBench]:
    """A stage's real bench, under a call's real budget."""

    def make(name: str = "train", seconds: float | None = None, spent: float = 0.0) -> StageBench:
        directory = tmp_path / name
        directory.mkdir()
        before = [0.0]
        budget = Budget(seconds=seconds, clock=lambda: time.monotonic() + before[0])
        before[0] = spent
        return StageBench(directory, name, {}, LocalRunner(programs), budget, PlainView(io.StringIO()))

    return make


def asked(**train: Value) -> Recipe:
    return Recipe(train={BATCH: 8, **train})


Stage = Callable[..., StageBench]
HALVED = "out of memory: per_device_train_batch_size 8 -> 4 and gradient_accumulation_steps 1 -> 2"


def test_what_fits_is_trained_as_asked(plan: TrainingPlan, programs: Programs, stage: Stage) -> None:
    made = adapt.train(stage(), asked(), plan, UNMEASURED)
    assert (made.changed, made.why, made.steps) == ({}, "", 8)


def test_a_training_out_of_memory_is_run_with_half_the_batch_and_says_so(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(fits=4)
    bench = stage()
    made = adapt.train(bench, asked(), plan, UNMEASURED)
    assert made.changed == {BATCH: 4, SUMMED: 2}
    assert made.why == HALVED
    assert made.steps == 8, "as many updates as were asked for"
    settings = yaml.safe_load((bench.directory / "train.yaml").read_text())
    assert (settings[BATCH], settings[SUMMED]) == (4, 2)
    assert "MemoryError" in (bench.directory / "train-out-of-memory.log").read_text()


def test_the_second_time_out_of_memory_is_the_trials_failure(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(fits=2)
    with pytest.raises(TrialFailed) as caught:
        adapt.train(stage(), asked(), plan, UNMEASURED)
    assert caught.value.kind == "train:oom"
    assert caught.value.reason == f"{HALVED}, and again: MemoryError"


def test_a_batch_of_one_has_no_half(plan: TrainingPlan, programs: Programs, stage: Stage) -> None:
    programs.behave(fits=0)
    with pytest.raises(TrialFailed) as caught:
        adapt.train(stage(), Recipe(train={BATCH: 1}), plan, UNMEASURED)
    assert (caught.value.kind, caught.value.reason) == ("train:oom", "MemoryError")


def test_a_mini_run_out_of_memory_halves_for_the_training_too(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(fits=4, step=0.01)
    measured = adapt.mini_run(stage("mini"), asked(), plan, [])
    assert measured.shape == shape(asked(), plan)
    assert (measured.changed, measured.why, measured.steps) == ({BATCH: 4, SUMMED: 2}, HALVED, 3)
    bench = stage()
    made = adapt.train(bench, asked(), plan, measured)
    assert (made.changed, made.why) == (measured.changed, HALVED)
    assert not (bench.directory / "train-out-of-memory.log").exists(), "it began with what fits"


def test_after_a_mini_run_out_of_memory_there_is_no_other_half(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(fits=4)
    measured = adapt.mini_run(stage("mini"), asked(), plan, [])
    programs.behave(fits=2)
    with pytest.raises(TrialFailed) as caught:
        adapt.train(stage(), asked(), plan, measured)
    assert caught.value.reason == f"{HALVED}, and again: MemoryError"


def test_a_mini_run_taken_over_halves_the_recipe_in_hand(plan: TrainingPlan, programs: Programs, stage: Stage) -> None:
    """Recipes with other accumulations share a mini-run; each keeps the rows of its own updates, and its own time."""
    programs.behave(fits=4, step=0.02)
    first = adapt.mini_run(stage("mini"), asked(**{SUMMED: 2}), plan, [])
    assert first.changed == {BATCH: 4, SUMMED: 4}
    second = adapt.mini_run(stage("other"), asked(**{SUMMED: 8}), plan, [(1, first)])
    assert (second.reused_from, second.steps) == (1, 0)
    assert second.changed == {BATCH: 4, SUMMED: 16}
    assert first.step_seconds
    assert second.step_seconds == pytest.approx(4 * first.step_seconds)


def measured(plan: TrainingPlan, step_seconds: float, startup: float = 0.0) -> MiniRun:
    """A mini-run whose steps, of which the first is slow, took twice as long."""
    return MiniRun(shape=shape(asked(), plan), steps=3, seconds=1.0, step_seconds=2 * step_seconds, startup=startup)


def test_a_training_that_nearly_ends_in_time_gets_fewer_epochs_which_are_recorded(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(step=0.02)
    slow = msgspec.structs.replace(plan, full_timeout=60)
    made = adapt.train(stage(), asked(num_train_epochs=4), slow, measured(plan, 2.5))
    assert made.steps < 32
    assert made.changed == {"num_train_epochs": pytest.approx(3.0, abs=0.1)}
    assert made.why.startswith("32 steps of 2.5 s would take 80 s, and 60 s are left: num_train_epochs 4 -> 3")
    assert made.why.endswith("(FT_FULL_TIMEOUT)")


def test_a_training_of_which_less_than_half_fits_is_never_started(plan: TrainingPlan, stage: Stage) -> None:
    bench = stage()
    with pytest.raises(TrialFailed) as caught:
        adapt.train(bench, asked(), msgspec.structs.replace(plan, full_timeout=60), measured(plan, 20))
    assert caught.value.kind == "train:timeout"
    assert "8 steps of 20 s would take 160 s, and 60 s are left: fewer than 50% of them fit" in caught.value.reason
    assert not list(bench.directory.iterdir())


def test_nothing_is_known_without_a_mini_run_or_of_packed_rows(plan: TrainingPlan, stage: Stage) -> None:
    slow, bench = msgspec.structs.replace(plan, full_timeout=1), stage()
    assert adapt.in_time(bench, asked(), slow, UNMEASURED) == (asked(), "")
    packed = asked(packing=True)
    assert adapt.in_time(bench, packed, slow, measured(plan, 100)) == (packed, "")


def test_a_mini_runs_long_rows_do_not_condemn_a_training_on_short_ones(
    tmp_path: Path, plan: TrainingPlan, stage: Stage
) -> None:
    rows = [{"prompt": "short", "completion": "row"}] * 2000 + [{"prompt": "x" * 20_000, "completion": "y"}] * 4
    (tmp_path / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    uneven = data.write(data.recognise(tmp_path / "uneven.jsonl"), tmp_path / "uneven")
    one, bench = msgspec.structs.replace(plan, data=uneven, full_timeout=60), stage()
    assert adapt.in_time(bench, asked(), one, measured(plan, 1.0)) == (asked(), "")
    with pytest.raises(TrialFailed):
        adapt.in_time(bench, asked(), msgspec.structs.replace(one, full_timeout=1), measured(plan, 1.0))


def test_what_another_call_has_the_time_for_is_left_to_it(plan: TrainingPlan, stage: Stage) -> None:
    late = stage("late", seconds=1000.0, spent=990.0)
    with pytest.raises(BudgetEnded, match=r"too little time for this training: .* 160 s, and 10 s are left"):
        adapt.in_time(late, asked(), plan, measured(plan, 20))
    with pytest.raises(TrialFailed, match="the time of this call"):
        adapt.in_time(late, asked(), plan, measured(plan, 2000))  # no call is long enough


def test_a_running_training_that_cannot_end_is_stopped_early(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(step=0.05)
    with pytest.raises(TrialFailed) as caught:
        adapt.train(stage(), asked(num_train_epochs=10), msgspec.structs.replace(plan, full_timeout=2.5), UNMEASURED)
    assert caught.value.kind == "train:timeout"
    assert " of 80 steps the rest would take " in caught.value.reason
    assert caught.value.reason.endswith("(FT_FULL_TIMEOUT)")


def test_a_running_training_that_nearly_ends_in_time_is_begun_anew_with_fewer_epochs(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(step=0.07)
    bench = stage()
    made = adapt.train(bench, asked(num_train_epochs=20), msgspec.structs.replace(plan, full_timeout=9.8), UNMEASURED)
    epochs = made.changed["num_train_epochs"]
    assert isinstance(epochs, float)
    assert 10 <= epochs < 20
    assert made.steps < 160
    assert " of 160 steps the rest would take " in made.why
    assert made.why.endswith(f"(FT_FULL_TIMEOUT): num_train_epochs 20 -> {epochs:g}")
    assert (bench.directory / "train-too-slow.log").exists()


def test_the_call_that_is_too_short_for_a_running_training_ends(
    plan: TrainingPlan, programs: Programs, stage: Stage
) -> None:
    programs.behave(step=0.05)
    bench = stage("short", seconds=6.0, spent=4.0)
    with pytest.raises(BudgetEnded, match="too little time for this training: after"):
        adapt.train(bench, asked(num_train_epochs=10), plan, UNMEASURED)
    assert bench.budget.over() is None, "before the time was over"


def test_a_pace_counts_from_the_first_step_seen(tmp_path: Path) -> None:
    now, left = [0.0], [100.0]
    pace = adapt.Pace(tmp_path, lambda: left[0], lambda: now[0])

    def at(seconds: float, step: int) -> str | None:
        now[0] = seconds
        (tmp_path / "trainer_log.jsonl").write_text(json.dumps({"current_steps": step, "total_steps": 101, "loss": 1}))
        return pace()

    assert pace() is None
    assert at(50.0, 1) is None, "the first step is slow, and not counted"
    assert at(52.0, 3) is None, "too early"
    assert at(60.0, 11) is None
    left[0] = 40.0
    now[0] = 80.0
    assert pace() is None, "nothing new was logged"
    assert at(80.0, 21) == "after 21 of 101 steps the rest would take 120 s, and 40 s are left"
    assert pace.slow is not None
    assert (pace.slow.step_seconds, pace.slow.startup, pace.slow.seconds) == (1.5, 50.0, 201.5)


def test_five_trainings_that_are_too_long_end_the_call_whatever_their_numbers() -> None:
    trials = tuple(make_failed(n, "train:timeout", reason=f"{n} s") for n in range(1, 6))
    with pytest.raises(SettingError, match="train:timeout"):
        stop_if_no_recipe_helps(History(trials=trials))
    stop_if_no_recipe_helps(History(trials=trials[:4]))
    stop_if_no_recipe_helps(History(trials=tuple(make_failed(n, "train:exit", reason=f"{n} s") for n in range(1, 6))))


# what is recorded, and who gets to see it


class Halving(toy.Toy):
    """The toy, whose trainings need half the batch."""

    def train(self, bench: Bench, recipe: Recipe, measured: MiniRun, data: TrainingData | None = None) -> Checkpoint:
        made = super().train(bench, recipe, measured, data)
        return msgspec.structs.replace(made, changed={BATCH: 4, SUMMED: 2}, why=HALVED)


def test_what_was_really_trained_is_journaled_published_reported_and_told_the_proposer(tmp_path: Path) -> None:
    with toy.lab(tmp_path, proposer=toy.Listed((0.9,)), scenario=Halving(), loop_n=1) as lab:
        run_call(lab)
        history = lab.study.history()
    published = (tmp_path / "output/toy/recipe.yaml").read_text()
    assert yaml.safe_load(published) == {"skill": 0.9, BATCH: 4, SUMMED: 2, "seed": 42}
    assert f"# {HALVED}\n" in published
    with toy.lab(tmp_path, proposer=toy.Listed((0.9,)), loop_n=0) as lab:  # read from the disk again
        trial = lab.study.journal.state.trial(1)
        text = report_text(study_report(lab.study.journal, tmp_path))
    assert trial.trained == Recipe(train={"skill": 0.9, BATCH: 4, SUMMED: 2})
    assert f"{SUMMED}: 2" in text
    assert text.count("out of memory: ") == 2, "beside the trial, and beside the winner's recipe"
    assert f"changed before the training: {HALVED}" in trials_text(history, lambda _: {}, 10_000)


def test_a_journal_from_before_still_loads(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(StudyOpened(at=journal.now(), format=1, study="toy", identity=toy.IDENTITY))
    old = b'{"shape":"s","steps":3,"seconds":9.0,"step_seconds":0.5}'
    assert msgspec.json.decode(old, type=MiniRun) == MiniRun(shape="s", steps=3, seconds=9.0, step_seconds=0.5)


# memory before a job


def fine_tune(plan: TrainingPlan) -> FineTune:
    return FineTune(plan=plan, benchmarks=(), limit=None, timeout=1.0, cache=Path("/x"), weights="w")


def test_a_recipe_that_cannot_fit_is_refused_with_what_would_fit(tmp_path: Path) -> None:
    plan, recipe = plan_for(tmp_path), Recipe(train=FULL)
    needed = estimate_rules.needed(recipe, plan)
    assert needed is not None
    tight = fine_tune(msgspec.structs.replace(plan, memory=int(0.95 * needed.total)))
    (said,) = tight.problems(recipe)
    assert "per_device_train_batch_size 4 -> 2" in said
    with pytest.raises(TrialFailed, match="the training needs about") as caught:
        tight.check(recipe)
    assert caught.value.kind == "check"
    assert fine_tune(msgspec.structs.replace(plan, memory=needed.total)).problems(recipe) == []
    assert fine_tune(plan).problems(recipe) == [], "nobody knows how much there is"


@pytest.mark.parametrize(
    ("machine", "memory"),
    [
        (Hardware(cores=2, memory=64 << 30, gpus=(80 << 30, 24 << 30), free=1 << 30), 24 << 30),
        (Hardware(cores=2, memory=16 << 30, free=9 << 30), 9 << 30),
        (Hardware(cores=2, memory=16 << 30, free=16 << 30), 15 << 30),  # a container gets no more
        (Hardware(cores=2, memory=4 << 30, free=300 << 20), 2 << 30),
        (Hardware(cores=2, memory=16 << 30), None),
    ],
)
def test_the_memory_that_a_training_may_have(machine: Hardware, memory: int | None) -> None:
    assert estimate_rules.memory_for_training(machine) == memory


@pytest.mark.slow
def test_the_demo_is_never_refused(real: tuple[TrainingPlan, Path]) -> None:
    """Whatever else runs on a machine: with the least memory that is ever assumed, and the largest of its batches."""
    plan = msgspec.structs.replace(real[0], memory=estimate_rules.UNREFUSED, cutoff_len=1024)
    for method in ("lora", "full", "freeze"):
        assert fine_tune(plan).problems(Recipe(train={"finetuning_type": method, BATCH: 64})) == []


class Confined(Here):
    """Programs that get no more than so many KiB of private memory."""

    def __init__(self, directory: Path, binaries: Path, limit: int) -> None:
        bounded = directory.parent / "bounded"
        bounded.mkdir()
        program = bounded / "llamafactory-cli"
        program.write_text(f'#!/bin/sh\nulimit -d {limit}\nexec "{binaries}/llamafactory-cli" "$@"\n')
        program.chmod(0o755)
        super().__init__(directory, bounded)
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.slow
def test_a_real_mini_run_out_of_memory_is_halved(real: tuple[TrainingPlan, Path], tmp_path: Path) -> None:
    """LLaMA-Factory on a tiny model: 512 rows need about 3.4 GB, of which 256 rows leave a third."""
    plan, binaries = real
    bench = Confined(tmp_path / "stage", binaries, 2_900_000)
    plan = msgspec.structs.replace(plan, debug_timeout=300)
    found = adapt.mini_run(bench, Recipe(train={BATCH: 512}), plan, [])
    assert found.changed == {BATCH: 256, SUMMED: 2}
    assert found.steps == 3
    assert len(bench.jobs) == 2
    assert "trying that" in bench.said[0]
