"""Training with the real LLaMA-Factory (slow), and with a stand-in program behind the same process boundary."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agent.errors import MachineError, TrialFailed
from agent.records import Loss, MiniRun, Recipe, Usage, Value
from agent.run import Job, Outcome
from agent.run.environments import Environments
from agent.run.logs import out_of_memory, tail
from scenarios import Progress, Stop
from scenarios.finetune import outputs
from scenarios.finetune.arguments import problems, schema
from scenarios.finetune.data import Prepared, recognise, write
from scenarios.finetune.models import ModelInfo, inspect, weights_hash
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.training import TrainingPlan, config, deepspeed, job, mini_run, shape, threads_for, train
from tests.tiny import make_tiny_model
from tests.unhurried import Unhurried

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden"
MODEL = ModelInfo(
    path="/files/models/tiny",
    architecture="Qwen2ForCausalLM",
    parameters=734_976,
    bytes=2_945_152,
    dtype="float32",
    context=1024,
    layers=4,
    chat_template=True,
)
DATA = Prepared(directory="/files/studies/s/data", name="train", rows=2000, dropped=0, fingerprint="f", format="alpaca")
PLAN = TrainingPlan(
    model=MODEL,
    data=DATA,
    cutoff_len=512,
    template=None,
    default_epochs=3,
    max_epochs=10,
    debug_timeout=60,
    full_timeout=3600,
)
GPU = msgspec.structs.replace(PLAN, device="cuda", template="qwen3_nothink", threads=8, cores=4)
RECIPES: dict[str, dict[str, Value]] = {
    "lora": {"lora_rank": 16, "lora_target": "q_proj,v_proj", "learning_rate": "2e-3", "warmup_steps": 10},
    "full": {"finetuning_type": "full", "num_train_epochs": 2, "per_device_train_batch_size": 32},
    "freeze": {"finetuning_type": "freeze", "freeze_trainable_layers": 2, "optim": "adafactor"},
}


class Here(Unhurried):
    """A bench that runs jobs as child processes of one interpreter's environment."""

    def __init__(self, directory: Path, binaries: Path, during: Callable[[int], None] | None = None) -> None:
        self.directory, self.name, self._binaries, self._during = directory, "trial-1-train", binaries, during
        self.seen: list[tuple[float, str]] = []
        self.jobs: list[Job] = []

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        raise AssertionError("no language model is asked here")

    def say(self, message: str) -> None:
        raise AssertionError(f"nothing is to be said here: {message}")

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        self.jobs.append(job)
        path = f"{self._binaries}{os.pathsep}{os.environ['PATH']}"
        start = time.monotonic()
        with Path(job.log).open("wb") as log:
            argv = (str(self._binaries / job.argv[0]), *job.argv[1:])
            env = {"PATH": path, "LANG": "C.UTF-8"} | job.variables
            process = subprocess.Popen(argv, cwd=job.cwd, env=env, stdout=log, stderr=subprocess.STDOUT)
        if self._during:
            threading.Timer(0.5, self._during, (process.pid,)).start()
        timed_out = False
        while process.poll() is None:
            time.sleep(0.02)
            if progress and (now := progress()) and now not in self.seen:
                self.seen.append(now)
            if time.monotonic() - start > job.deadline:
                timed_out = True
                process.kill()
        code, end = process.returncode, tail(Path(job.log))
        kind: Any = "timeout" if timed_out else "ok" if code == 0 else "killed" if code < 0 else "exit"
        if kind == "exit" and out_of_memory(end):
            kind = "oom"
        return Outcome(
            kind=kind, code=code, seconds=time.monotonic() - start, log=job.log, tail=end, reason=f"ended with {code}"
        )


def check_golden(name: str, text: str) -> None:
    """Compare with a golden file; FTLOOP_UPDATE_GOLDEN=1 writes it."""
    path = GOLDEN / name
    if os.environ.get("FTLOOP_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RECIPES)
def test_the_yaml_is_exactly_this(name: str) -> None:
    settings = config(Recipe(train=RECIPES[name]), PLAN, Path("/files/studies/s/trials/1/train/model"), mini=False)
    check_golden(f"train_{name}.yaml", yaml.safe_dump(settings))


def test_the_yaml_of_a_gpu_and_of_a_mini_run_is_exactly_this() -> None:
    recipe = Recipe(train={"gradient_accumulation_steps": 16}, seed=7)
    output = Path("/files/studies/s/trials/1/train/model")
    check_golden("train_gpu.yaml", yaml.safe_dump(config(recipe, GPU, output, mini=False)))
    check_golden("train_mini.yaml", yaml.safe_dump(config(recipe, PLAN, output, mini=True)))


def test_the_job_is_exactly_this() -> None:
    bench = Here(Path("/files/studies/s/trials/1/train"), Path("/nowhere"))
    text = msgspec.json.format(msgspec.json.encode(job(bench, PLAN, deadline=3600)), indent=2).decode()
    check_golden("train_job.json", text + "\n")
    assert "ALLOW_EXTRA_ARGS" not in text


@pytest.mark.parametrize(
    ("name", "gpus", "train"),
    [
        ("1_gpu_full", 1, {"finetuning_type": "full"}),
        ("4_gpus_lora", 4, {}),
        ("4_gpus_full", 4, {"finetuning_type": "full"}),
        ("4_gpus_full_large", 4, {"finetuning_type": "full"}),
    ],
)
def test_the_yaml_and_the_variables_of_several_gpus_are_exactly_these(
    name: str, gpus: int, train: dict[str, Value]
) -> None:
    model = msgspec.structs.replace(MODEL, parameters=8_030_000_000 if "large" in name else 1_720_000_000)
    plan = msgspec.structs.replace(GPU, model=model, gpus=gpus, gpu_memory=80 << 30)
    bench = Here(Path("/files/studies/s/trials/1/train"), Path("/nowhere"))
    settings = yaml.safe_dump(config(Recipe(train=train), plan, bench.directory / "model", mini=False))
    variables = job(bench, plan, deadline=3600).variables
    check_golden(f"train_{name}.txt", settings + "---\n" + yaml.safe_dump(variables))


@pytest.mark.parametrize(
    ("train", "gpus", "gpu_memory", "wanted"),
    [
        ({"finetuning_type": "full"}, 1, 24 << 30, None),
        ({"finetuning_type": "full"}, 2, 24 << 30, "zero2"),
        ({"finetuning_type": "full"}, 2, 8 << 30, "zero3"),
        ({"finetuning_type": "full"}, 2, 0, "zero3"),
        ({"finetuning_type": "full", "pure_bf16": True}, 2, 8 << 30, None),
        ({"finetuning_type": "lora"}, 2, 8 << 30, None),
        ({}, 8, 24 << 30, None),
        ({"finetuning_type": "freeze"}, 2, 8 << 30, None),
    ],
)
def test_deepspeed_is_chosen_by_what_fits(
    train: dict[str, Value], gpus: int, gpu_memory: int, wanted: str | None
) -> None:
    model = msgspec.structs.replace(MODEL, parameters=1_000_000_000)
    plan = msgspec.structs.replace(GPU, model=model, gpus=gpus, gpu_memory=gpu_memory)
    assert deepspeed(Recipe(train=train), plan) == wanted
    assert ("deepspeed" in config(Recipe(train=train), plan, Path("/x/model"), mini=True)) == (wanted is not None)


@pytest.mark.parametrize("stage", [2, 3])
def test_the_shipped_deepspeed_configurations_leave_the_recipe_its_say(stage: int) -> None:
    settings = json.loads((ROOT / f"docker/train/deepspeed/zero{stage}.json").read_text())
    assert settings["zero_optimization"]["stage"] == stage
    owned = ["train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"]
    assert {settings[key] for key in owned} == {"auto"}
    assert (settings["bf16"]["enabled"], settings["fp16"]["enabled"]) == ("auto", "auto")
    assert not {"optimizer", "scheduler", "offload_optimizer", "offload_param"} & (
        settings.keys() | settings["zero_optimization"].keys()
    )


def test_several_gpus_need_a_mini_run_of_their_own(tmp_path: Path, plan: TrainingPlan, stand_in: Path) -> None:
    many = msgspec.structs.replace(plan, gpus=3, gpu_memory=1)
    assert shape(recipe(), many) != shape(recipe(), plan)
    assert shape(recipe(), msgspec.structs.replace(plan, gpus=1, gpu_memory=5)) == shape(recipe(), plan)
    mini_run(Here(tmp_path / "stage", stand_in), recipe(finetuning_type="full"), many, [])
    assert len((tmp_path / "stage/data/mini.jsonl").read_text().splitlines()) == 8 * 3 * 3
    shipped = ROOT / "docker/train/deepspeed/zero3.json"
    assert (tmp_path / "stage/deepspeed.json").read_bytes() == shipped.read_bytes()


@pytest.mark.parametrize("plan", [PLAN, GPU])
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("mini", [False, True])
def test_the_yaml_has_only_arguments_of_llama_factory_with_their_types(
    plan: TrainingPlan, name: str, mini: bool
) -> None:
    assert problems(RECIPES[name], plan.bounds) == []
    settings = config(Recipe(train=RECIPES[name]), plan, Path("/x/model"), mini=mini)
    names = {bool: {"bool"}, int: {"int", "float"}, float: {"float"}, str: {"str"}}
    for key, value in settings.items():
        assert names[type(value)] & set(schema()[key].types), key


def test_the_harness_has_the_last_word_even_over_a_recipe_that_was_never_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hostile: dict[str, Value] = {"output_dir": "/etc", "report_to": "wandb", "trust_remote_code": True, "seed": 1}
    with pytest.raises(ValueError, match="may not be set"):
        config(Recipe(train=hostile), PLAN, Path("/x/model"), mini=False)
    monkeypatch.setattr("scenarios.finetune.training.canonical", lambda train, known: dict(train))
    settings = config(Recipe(train=hostile, seed=5), PLAN, Path("/x/model"), mini=False)
    owned = {key: settings[key] for key in hostile}
    assert owned == {"output_dir": "/x/model", "report_to": "none", "trust_remote_code": False, "seed": 5}


def test_large_data_is_tokenized_on_all_cores_and_small_data_on_one() -> None:
    assert (GPU.workers, PLAN.workers) == (1, 1)
    large = msgspec.structs.replace(GPU, data=msgspec.structs.replace(DATA, rows=50_000))
    settings = config(Recipe(train={}), large, Path("/x/model"), mini=False)
    assert settings["preprocessing_num_workers"] == 4
    assert "preprocessing_num_workers" not in config(Recipe(train={}), large, Path("/x/model"), mini=True)
    assert "preprocessing_num_workers" not in config(Recipe(train={}), GPU, Path("/x/model"), mini=False)


def test_tiny_models_get_one_thread() -> None:
    assert threads_for(MODEL, 8) == 1
    assert threads_for(msgspec.structs.replace(MODEL, parameters=10**9), 8) == 8


@pytest.mark.parametrize(
    "train", [{"learning_rate": 1e-2}, {"weight_decay": 0.1, "warmup_ratio": 0.0}, {"num_train_epochs": 1.0}]
)
def test_rates_and_schedules_share_a_mini_run(train: dict[str, Value]) -> None:
    assert shape(Recipe(train=train, seed=3), PLAN) == shape(Recipe(train={}), PLAN)


@pytest.mark.parametrize(
    "train",
    [
        {"per_device_train_batch_size": 16},
        {"finetuning_type": "full"},
        {"cutoff_len": 1024},
        {"lora_rank": 64},
        {"lora_target": "q_proj"},
        {"gradient_accumulation_steps": 2},
        {"packing": True},
        {"optim": "sgd"},
    ],
)
def test_what_changes_memory_or_validity_needs_its_own_mini_run(train: dict[str, Value]) -> None:
    assert shape(Recipe(train=train), PLAN) != shape(Recipe(train={}), PLAN)


def test_the_shape_is_that_of_the_model_and_the_data_too() -> None:
    other = msgspec.structs.replace(PLAN, data=msgspec.structs.replace(DATA, fingerprint="g"))
    assert shape(Recipe(train={}), other) != shape(Recipe(train={}), PLAN)


# A stand-in for llamafactory-cli: the seed says how it behaves.
STAND_IN = """#!{python}
import json, pathlib, sys, time, yaml
assert sys.argv[1] == "train"
settings = yaml.safe_load(open(sys.argv[2]))
model = pathlib.Path(settings["output_dir"]); model.mkdir(parents=True, exist_ok=True)
what = {behaviours}[settings["seed"]]
steps = settings.get("max_steps", 4)
loss = float("nan") if what == "nan" else 1.5
history = [{{"step": step, "loss": loss, "grad_norm": 1.0}} for step in range(1, steps + 1)]
for entry in history:
    with (model / "trainer_log.jsonl").open("a") as log:
        log.write(json.dumps({{"current_steps": entry["step"], "total_steps": steps, "loss": loss}}) + "\\n")
    time.sleep(0.1)
if what == "sleep": time.sleep(60)
if what in ("ValueError", "torch.OutOfMemoryError", "OSError", "ModuleNotFoundError"):
    message = {{"OSError": "[Errno 28] No space left on device", "torch.OutOfMemoryError": "CUDA out of memory"}}
    print("Traceback (most recent call last):", file=sys.stderr)
    print(f"  File x, line 1\\n{{what}}: {{message.get(what, 'no')}}", file=sys.stderr)
    sys.exit(1)
(model / "trainer_state.json").write_text(json.dumps({{"global_step": steps, "log_history": history}}))
(model / "all_results.json").write_text(json.dumps({{"train_runtime": 0.6}}))
(model / "README.md").write_text("- PEFT 0.18.1\\n- Transformers 4.57.6\\n- Pytorch 2.13.0+cpu\\n")
name = "adapter_model" if settings["finetuning_type"] == "lora" else "model"
if what != "nothing": (model / (name + ".safetensors")).write_bytes(b"weights")
(pathlib.Path("cache") / "deep").mkdir(parents=True)
"""
BEHAVIOURS = ["ok", "nan", "sleep", "nothing", "ValueError", "torch.OutOfMemoryError", "OSError", "ModuleNotFoundError"]


@pytest.fixture
def plan(tmp_path: Path) -> TrainingPlan:
    rows = [{"prompt": "reverse " + "1" * n, "completion": "1" * n} for n in range(1, 20)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = write(recognise(tmp_path / "in.jsonl"), tmp_path / "data")
    return msgspec.structs.replace(PLAN, data=prepared)


@pytest.fixture
def stand_in(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    program = directory / "llamafactory-cli"
    program.write_text(STAND_IN.format(python=sys.executable, behaviours=BEHAVIOURS))
    program.chmod(0o755)
    return directory


def recipe(behaviour: str = "ok", **keys: Value) -> Recipe:
    return Recipe(train=dict(keys), seed=BEHAVIOURS.index(behaviour))


def test_a_training_becomes_a_checkpoint(tmp_path: Path, plan: TrainingPlan, stand_in: Path) -> None:
    bench = Here(tmp_path / "stage", stand_in)
    start = time.perf_counter()
    checkpoint = train(bench, recipe(), plan)
    assert time.perf_counter() - start - checkpoint.seconds < 0.3
    assert checkpoint.adapter
    assert checkpoint.path == str(tmp_path / "stage/model")
    assert checkpoint.weights == weights_hash(tmp_path / "stage/model")
    assert checkpoint.losses == tuple(Loss(step, 1.5) for step in range(1, 5))
    assert (checkpoint.steps, checkpoint.versions) == (
        4,
        {"peft": "0.18.1", "transformers": "4.57.6", "torch": "2.13.0+cpu"},
    )
    assert bench.seen[0] == (0.25, "step 1/4, loss 1.5")
    assert not (tmp_path / "stage/cache").exists()
    assert not train(Here(tmp_path / "full", stand_in), recipe(finetuning_type="full"), plan).adapter


def test_weights_are_on_the_disk_before_anything_says_that_they_exist(
    tmp_path: Path, plan: TrainingPlan, stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = set(), os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr("os.fsync", spy)
    model = Path(train(Here(tmp_path / "stage", stand_in), recipe(), plan).path)
    assert {path.stat().st_ino for path in (*model.iterdir(), model, model.parent)} <= synced


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        ("nan", "train:exit", "diverged: loss or gradient was no longer finite at step 1"),
        ("nothing", "train:exit", "wrote no adapter_model"),
        ("ValueError", "train:exit", "ValueError: no"),
        ("torch.OutOfMemoryError", "train:oom", "CUDA out of memory"),
        ("sleep", "train:timeout", "FT_FULL_TIMEOUT"),
    ],
)
def test_a_failed_training_is_a_finding(
    tmp_path: Path, plan: TrainingPlan, stand_in: Path, behaviour: str, kind: str, words: str
) -> None:
    with pytest.raises(TrialFailed) as caught:
        train(Here(tmp_path / "stage", stand_in), recipe(behaviour), msgspec.structs.replace(plan, full_timeout=3))
    assert caught.value.kind == kind
    assert words in caught.value.reason


@pytest.mark.parametrize("behaviour", ["OSError", "ModuleNotFoundError"])
def test_what_no_recipe_can_cause_is_an_error(
    tmp_path: Path, plan: TrainingPlan, stand_in: Path, behaviour: str
) -> None:
    with pytest.raises(MachineError) as caught:
        train(Here(tmp_path / "stage", stand_in), recipe(behaviour), plan)
    assert "train.log" in caught.value.hint


def test_a_lost_job_is_an_error(tmp_path: Path, plan: TrainingPlan) -> None:
    class Lost(Here):
        def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
            return Outcome(kind="lost", code=None, seconds=1.0, log=job.log, tail="", reason="the engine went away")

    with pytest.raises(MachineError, match="the engine went away"):
        train(Lost(tmp_path / "stage", tmp_path), recipe(), plan)


def test_a_mini_run_fills_its_batches_with_the_longest_rows_and_leaves_no_weights(
    tmp_path: Path, plan: TrainingPlan, stand_in: Path
) -> None:
    found = mini_run(Here(tmp_path / "stage", stand_in), recipe(gradient_accumulation_steps=8), plan, [])
    assert (found.steps, found.reused_from) == (3, None)
    assert found.step_seconds == pytest.approx(0.6 / 3 * 8 / 2)
    rows = [json.loads(line) for line in (tmp_path / "stage/data/mini.jsonl").read_text().splitlines()]
    assert len(rows) == 8 * 2 * 3
    assert rows[0]["response"] == "1" * 19
    assert not (tmp_path / "stage/model").exists()


def test_a_mini_run_does_not_cut_rows_at_characters_that_only_look_like_line_ends(
    tmp_path: Path, plan: TrainingPlan, stand_in: Path
) -> None:
    (tmp_path / "odd.jsonl").write_text(json.dumps({"prompt": "one\u2028two\x85three", "completion": "c"}) + "\n")
    odd = msgspec.structs.replace(plan, data=write(recognise(tmp_path / "odd.jsonl"), tmp_path / "odd"))
    mini_run(Here(tmp_path / "stage", stand_in), recipe(), odd, [])
    lines = (tmp_path / "stage/data/mini.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line)["prompt"] for line in lines] == ["one\u2028two\x85three"] * (8 * 3)


def test_a_packed_mini_run_has_rows_to_fill_its_sequences(tmp_path: Path, plan: TrainingPlan, stand_in: Path) -> None:
    mini_run(Here(tmp_path / "stage", stand_in), recipe(packing=True, cutoff_len=64), plan, [])
    text = (tmp_path / "stage/data/mini.jsonl").read_text()
    assert len(text) >= 8 * 3 * 64 * 6


def test_a_mini_run_of_the_same_shape_is_reused(tmp_path: Path, plan: TrainingPlan) -> None:
    nowhere = Here(tmp_path / "stage", tmp_path / "no programs here")
    one = MiniRun(shape=shape(recipe(), plan), steps=3, seconds=9.0, step_seconds=0.5)
    reused = mini_run(nowhere, recipe(learning_rate=1e-2), plan, [(4, one)])
    assert reused == MiniRun(shape=one.shape, steps=0, seconds=0.0, step_seconds=0.5, reused_from=4)
    assert mini_run(nowhere, recipe(learning_rate=1e-3), plan, [(5, reused)]).reused_from == 4
    assert nowhere.jobs == []
    with pytest.raises(FileNotFoundError):
        mini_run(nowhere, recipe(lora_rank=64), plan, [(4, one)])


@pytest.mark.parametrize(
    ("behaviour", "kind", "words"),
    [
        ("ValueError", "mini-run", "ValueError: no"),
        ("nan", "mini-run", "diverged"),
        ("sleep", "mini-run", "FT_DEBUG_TIMEOUT"),
        ("torch.OutOfMemoryError", "train:oom", "out of memory"),
    ],
)
def test_a_failed_mini_run_is_a_finding(
    tmp_path: Path, plan: TrainingPlan, stand_in: Path, behaviour: str, kind: str, words: str
) -> None:
    with pytest.raises(TrialFailed) as caught:
        mini_run(Here(tmp_path / "s", stand_in), recipe(behaviour), msgspec.structs.replace(plan, debug_timeout=3), [])
    assert caught.value.kind == kind
    assert words in caught.value.reason


def test_progress_survives_a_torn_log(tmp_path: Path) -> None:
    assert outputs.progress(tmp_path) is None
    line = '{"current_steps": 40, "total_steps": 200, "loss": 1.3234}\n'
    (tmp_path / "trainer_log.jsonl").write_text("x" * 9000 + "\n" + line + '{"current_steps": 50, "tot')
    assert outputs.progress(tmp_path) == (0.2, "step 40/200, loss 1.32")
    (tmp_path / "trainer_log.jsonl").write_text("")
    assert outputs.progress(tmp_path) is None


def test_the_telling_line_is_the_programs_own_last_exception() -> None:
    log = "KeyError: 'first'\n\nDuring handling:\n[rank0]: ValueError: Target modules {'x'} not found\nchild exited\n"
    log += (
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\nsubprocess.CalledProcessError: Command\n"
    )
    assert outputs.telling_line(log) == "ValueError: Target modules {'x'} not found"
    assert outputs.telling_line("all is well\n") == ""


# The real thing.


@pytest.fixture(scope="module")
def real(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingPlan, Path]:
    """A tiny model and a small data set for the real program, and where that program is."""
    directory = tmp_path_factory.mktemp("real")
    python = environments.python("train")
    make_tiny_model(python, directory / "tiny")
    rows = [{"question": f"Reverse {n:08d}", "answer": f"{n:08d}"[::-1]} for n in range(0, 64_000_000, 1_000_000)]
    (directory / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = write(recognise(directory / "in.jsonl"), directory / "data")
    plan = msgspec.structs.replace(
        PLAN, model=inspect(directory / "tiny"), data=prepared, cutoff_len=64, default_epochs=1
    )
    return plan, python.parent


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_real_training(real: tuple[TrainingPlan, Path], tmp_path: Path, name: str) -> None:
    plan, binaries = real
    bench = Here(tmp_path / "stage", binaries)
    checkpoint = train(bench, Recipe(train=RECIPES[name]), plan)
    model = Path(checkpoint.path)
    assert checkpoint.adapter == (name == "lora")
    assert checkpoint.steps == {"lora": 8, "full": 4, "freeze": 8}[name]
    assert [loss.step for loss in checkpoint.losses] == list(range(1, checkpoint.steps + 1))
    assert all(0 < loss.loss < 20 for loss in checkpoint.losses)
    assert checkpoint.versions["transformers"].startswith("4.57")
    assert bench.seen
    assert not [path.name for path in model.iterdir() if path.is_dir() or path.suffix in (".png", ".pt")]
    written = inspect(model)
    assert written.adapter == checkpoint.adapter
    if not written.adapter:
        assert (written.parameters, written.layers) == (plan.model.parameters, plan.model.layers)
        assert written.chat_template


@pytest.mark.slow
def test_real_training_is_repeatable(real: tuple[TrainingPlan, Path], tmp_path: Path) -> None:
    plan, binaries = real
    recipe = Recipe(train={"lora_rank": 4, "learning_rate": 1e-3})
    one, two = (train(Here(tmp_path / name, binaries), recipe, plan) for name in ("one", "two"))
    assert (one.weights, one.losses) == (two.weights, two.losses)
    other = train(Here(tmp_path / "three", binaries), Recipe(train=recipe.train, seed=43), plan)
    assert other.weights != one.weights


@pytest.mark.slow
@pytest.mark.parametrize(
    "keys",
    [
        {
            "neat_packing": True,
            "use_muon": True,
            "use_eaft_loss": True,
            "eaft_alpha": 0.5,
            "gradient_accumulation_steps": 4,
        },
        {"use_dora": True, "use_rslora": True, "loraplus_lr_ratio": 16.0, "neftune_noise_alpha": 5.0, "packing": True},
        {
            "finetuning_type": "full",
            "use_dft_loss": True,
            "bf16": True,
            "group_by_length": True,
            "train_on_prompt": True,
        },
        {
            **{"finetuning_type": "freeze", "freeze_trainable_modules": "mlp", "freeze_extra_modules": "norm"},
            **{"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'},
            **{"label_smoothing_factor": 0.1, "upcast_lmhead_output": True, "optim": "rmsprop", "mask_history": True},
        },
    ],
)
def test_real_mini_runs_of_what_a_proposal_may_combine(
    real: tuple[TrainingPlan, Path], tmp_path: Path, keys: dict[str, Value]
) -> None:
    plan, binaries = real
    assert problems(keys, plan.bounds) == []
    found = mini_run(Here(tmp_path / "stage", binaries), Recipe(train=keys), plan, [])
    assert found.steps == 3
    assert found.step_seconds


@pytest.mark.slow
def test_a_bad_lora_target_fails_with_the_programs_own_words(real: tuple[TrainingPlan, Path], tmp_path: Path) -> None:
    plan, binaries = real
    with pytest.raises(TrialFailed) as caught:
        mini_run(Here(tmp_path / "stage", binaries), Recipe(train={"lora_target": "no_such_module"}), plan, [])
    assert caught.value.kind == "mini-run"
    assert "no_such_module" in caught.value.reason
    assert "not found in the base model" in caught.value.reason


@pytest.mark.slow
def test_a_killed_training_is_a_finding(real: tuple[TrainingPlan, Path], tmp_path: Path) -> None:
    plan, binaries = real
    bench = Here(tmp_path / "stage", binaries, during=lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(TrialFailed) as caught:
        train(bench, Recipe(train={}), plan)
    assert caught.value.kind == "train:exit"


@pytest.mark.slow
def test_a_real_training_by_two_processes(real: tuple[TrainingPlan, Path], tmp_path: Path) -> None:
    """What several GPUs run, but on the CPU: torchrun, one process each, joined over loopback."""
    plan, binaries = real
    checkpoint = train(Here(tmp_path / "s", binaries), Recipe(train={}), msgspec.structs.replace(plan, gpus=2))
    assert checkpoint.steps == 4, "64 rows, 2 processes, 8 rows each"


@pytest.mark.slow
def test_real_conversations_train(real: tuple[TrainingPlan, Path], tmp_path: Path) -> None:
    plan, binaries = real
    turns = [{"role": "user", "content": "Reverse 12"}, {"role": "assistant", "content": "21"}]
    rows = [{"messages": turns * 2}, {"messages": [{"role": "system", "content": "Be brief."}, *turns]}] * 8
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = write(recognise(tmp_path / "in.jsonl"), tmp_path / "data")
    found = mini_run(Here(tmp_path / "s", binaries), Recipe(train={}), msgspec.structs.replace(plan, data=prepared), [])
    assert found.steps == 3


def test_a_training_is_checked_by_the_arguments_of_the_version_that_trains() -> None:
    newer = {name: argument for name, argument in schema().items() if name != "use_dora"}
    recipe = Recipe(train={"use_dora": True})
    assert config(recipe, PLAN, Path("/x/model"), mini=False)["use_dora"] is True
    updated = msgspec.structs.replace(PLAN, arguments=newer)
    with pytest.raises(ValueError, match="no such key"):
        config(recipe, updated, Path("/x/model"), mini=False)
    scenario = FineTune(plan=updated, benchmarks=(), limit=None, timeout=1.0, cache=Path("/x"), weights="w")
    assert "no such key" in scenario.problems(recipe)[0]
    with pytest.raises(TrialFailed, match="no such key"):
        scenario.check(recipe)
