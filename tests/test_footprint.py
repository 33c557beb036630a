"""What a training will write is known before it starts: a recipe that cannot fit is refused, a full disk is found."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import MachineError, TrialFailed, UsageError
from agent.records import MiniRun, Recipe, Usage, Value
from agent.run import Job, Outcome
from scenarios import Progress, Stop
from scenarios.finetune import data
from scenarios.finetune.footprint import footprint, problem, require_possible
from scenarios.finetune.models import inspect
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.training import TrainingPlan, train
from tests.test_training import PLAN, Here
from tests.test_training import real as real  # the fixture: a tiny model and rows for it
from tests.unhurried import Unhurried

GB = 10**9
LARGE = msgspec.structs.replace(PLAN.model, parameters=8 * GB, layers=32, linear=6_000_000, dtype="bfloat16")
GPU = msgspec.structs.replace(
    PLAN, model=LARGE, device="cuda", data=msgspec.structs.replace(PLAN.data, bytes=100_000_000)
)


class Voiceless(Unhurried):
    """A bench of which nothing may be asked but its directory: no job may start."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.name = directory, "trial-1-train"

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        raise AssertionError("no language model is asked here")

    def say(self, message: str) -> None:
        raise AssertionError(message)

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        raise AssertionError(f"{job.name} was started")


def scenario(plan: TrainingPlan, tmp_path: Path) -> FineTune:
    return FineTune(plan=plan, benchmarks=(), limit=None, timeout=1.0, cache=tmp_path, weights="w")


@pytest.mark.parametrize(
    ("train", "plan", "weights"),
    [
        ({"finetuning_type": "full"}, GPU, 32 * GB),
        ({"finetuning_type": "full", "pure_bf16": True}, GPU, 16 * GB),
        ({"finetuning_type": "full"}, msgspec.structs.replace(GPU, gpus=8, gpu_memory=80 << 30), 16 * GB),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 8}, GPU, 20 * GB),
        ({"finetuning_type": "freeze", "freeze_trainable_layers": 99}, GPU, 32 * GB),
        ({"finetuning_type": "freeze", "freeze_extra_modules": "embed_tokens"}, GPU, 32 * GB),
        ({"finetuning_type": "freeze"}, msgspec.structs.replace(PLAN, model=LARGE), 32 * GB),
        ({}, GPU, 8 * 6_000_000 * 4),
        ({"lora_rank": "64"}, GPU, 64 * 6_000_000 * 4),
        ({"lora_rank": 64, "pure_bf16": True}, GPU, 64 * 6_000_000 * 2),
    ],
)
def test_the_weights_of_each_method(train: dict[str, Value], plan: TrainingPlan, weights: int) -> None:
    assert footprint(Recipe(train=train), plan).weights == weights


def test_what_cannot_stay_within_the_limit_fails_its_check_with_both_sizes_and_the_key(tmp_path: Path) -> None:
    limited = msgspec.structs.replace(GPU, disk=20 * GB)
    full = Recipe(train={"finetuning_type": "full"})
    with pytest.raises(TrialFailed) as caught:
        scenario(limited, tmp_path).check(full)
    assert caught.value.kind == "check"
    assert caught.value.reason == (
        "finetuning_type full: the training would write about 32.8 GB, 32 GB of them weights, "
        "and a job may write 20 GB (FT_TRIAL_DISK); choose lora"
    )
    assert scenario(limited, tmp_path).problems(Recipe(train={})) == []
    assert scenario(msgspec.structs.replace(GPU, disk=None), tmp_path).problems(full) == []
    assert problem(full, msgspec.structs.replace(GPU, disk=footprint(full, GPU).training)) is None


def test_an_adapter_that_is_too_large_names_its_rank() -> None:
    limited = msgspec.structs.replace(GPU, disk=2 * GB)
    found = problem(Recipe(train={"lora_rank": 1024}), limited)
    assert found is not None
    assert found.startswith("lora_rank 1024: ")
    assert "choose a smaller lora_rank" in found


def test_a_limit_that_no_training_can_keep_is_told_before_anything_runs() -> None:
    require_possible(msgspec.structs.replace(GPU, disk=None))
    require_possible(msgspec.structs.replace(GPU, disk=GB))
    with pytest.raises(UsageError, match="FT_TRIAL_DISK") as caught:
        require_possible(msgspec.structs.replace(GPU, disk=GB // 2))
    assert "none" in caught.value.hint


def test_a_disk_without_room_stops_the_call_before_a_job_starts(tmp_path: Path) -> None:
    """The real free space of this disk; the model is what is larger than any disk."""
    huge = msgspec.structs.replace(GPU, model=msgspec.structs.replace(LARGE, parameters=10**18))
    made = scenario(huge, tmp_path)
    full = Recipe(train={"finetuning_type": "full"})
    with pytest.raises(MachineError, match="a mini-run may need") as mini:
        made.mini_run(Voiceless(tmp_path), full, [], [])
    assert str(tmp_path) in mini.value.message
    with pytest.raises(MachineError, match="a training and the copy of its weights may need") as caught:
        made.train(Voiceless(tmp_path), full, MiniRun(shape="", steps=0, seconds=0.0))
    assert "FT_FILE_PATH" in caught.value.hint


def test_the_matrices_of_a_model_are_counted_and_its_embeddings_are_not(tmp_path: Path) -> None:
    tensors = {
        "model.embed_tokens.weight": [1000, 64],
        "model.layers.0.self_attn.q_proj.weight": [64, 64],
        "model.layers.0.mlp.up_proj.weight": [256, 64],
        "model.layers.0.input_layernorm.weight": [64],
        "lm_head.weight": [1000, 64],
    }
    header: dict[str, Any] = {
        name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in tensors.items()
    }
    text = json.dumps(header).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (tmp_path / "tokenizer.json").write_text("{}")
    assert inspect(tmp_path).linear == (64 + 64) + (256 + 64)


def test_the_size_of_the_data_is_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 10)
    prepared = data.write(data.recognise(tmp_path / "rows.jsonl"), tmp_path / "data")
    assert prepared.bytes == (tmp_path / "data" / "train.jsonl").stat().st_size > 0


class Weighing(Here):
    """Counts what a job has written before anything of it is deleted, and keeps the weights' own size apart."""

    written = weights = 0

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        outcome = super().run(job, progress, stop)
        files = [path for path in self.directory.rglob("*") if path.is_file()]
        self.written = sum(path.stat().st_size for path in files)
        self.weights = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
        return outcome


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full", pytest.param("freeze", marks=pytest.mark.long)])
def test_a_real_training_writes_what_was_expected(real: tuple[TrainingPlan, Path], tmp_path: Path, method: str) -> None:
    plan, binaries = real
    recipe = Recipe(train={"finetuning_type": method, "num_train_epochs": 0.2})
    bench = Weighing(tmp_path / "train", binaries)
    train(bench, recipe, plan)
    expected = footprint(recipe, plan)
    print(f"{method}: expected {expected}; written: {bench.weights} of weights, {bench.written} in all")
    assert bench.weights == pytest.approx(expected.weights, rel=0.05)
    assert bench.written <= expected.training
