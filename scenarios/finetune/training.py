"""Recipe -> YAML -> `llamafactory-cli train` -> checkpoint, and the mini-run before it.

The harness's keys are laid over the recipe's, so whatever a recipe says, a training reads and writes only where the
plan tells it to.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from agent.errors import TrialFailed
from agent.records import Checkpoint, MiniRun, Recipe
from agent.resources import resource
from agent.run import Job, Mount, Outcome, written
from scenarios import Bench, Stop
from scenarios.finetune import outputs, preferences
from scenarios.finetune.arguments import Argument, canonical
from scenarios.finetune.broken import raise_if_broken
from scenarios.finetune.data import Prepared, info
from scenarios.finetune.files import sync, sync_tree
from scenarios.finetune.keys import STAGES, Bounds
from scenarios.finetune.models import ACTIVATIONS, ModelInfo, weights_hash
from scenarios.finetune.packages import installed

SMALL = 50_000_000  # parameters; below, one thread is faster than two, and memory is no concern
RATES = {"lora": 1e-4, "full": 1e-5, "freeze": 1e-5}  # as in LLaMA-Factory's examples
PREFERENCE_RATES = {"lora": 5e-6, "full": 5e-7, "freeze": 5e-7}
"""Of stages dpo and kto: as in LLaMA-Factory's examples, and for full tuning as in those of Zephyr and SimPO."""
POINTS = 100  # of the loss history
MOST_MINI_ROWS = 20_000
CHARACTERS_A_TOKEN = 6  # more than any usual text has, so that packed sequences are surely filled
NEUTRAL = frozenset(  # keys that change neither what fits into memory nor whether a training runs at all
    [
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "warmup_ratio",
        "warmup_steps",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "num_train_epochs",
        "max_grad_norm",
        "lora_alpha",
        "eaft_alpha",
        "disable_shuffling",
        "pref_beta",
        "simpo_gamma",
        "kto_chosen_weight",
        "kto_rejected_weight",
    ]
)
ADAM = 16  # bytes a parameter: float32 weights, gradients and two moments
DEEPSPEED = "deepspeed.json"
MANY_ROWS = 50_000  # from here on, several processes tokenize faster than they start


class TrainingPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for all trainings of a study.

    Attributes:
        cutoff_len: Longest sequence in tokens, unless a recipe sets another.
        template: LLaMA-Factory's template name; None parses the tokenizer's own chat template.
        default_epochs: Passes over the data, unless a recipe sets another number, up to `max_epochs`.
        debug_timeout: Seconds for a mini-run (FT_DEBUG_TIMEOUT). full_timeout: for a training (FT_FULL_TIMEOUT).
        threads: CPU threads of the training, all its processes together. cores: of the machine, for tokenizing.
        mini_steps: Steps of a mini-run. device: What is trained on.
        gpus: How many GPUs one training uses, all that its job sees. gpu_memory: bytes of the smallest; 0 if unknown.
        memory: Bytes that a training may hold on each device, its libraries included; None if unknown.
        disk: Bytes that one job may write (FT_TRIAL_DISK); None for any number.
        arguments: Those of the LLaMA-Factory that trains; None for the pinned one.
        by_hand: Keys that a person has set over the harness's (by_hand.py). program: What trains from `train.yaml`.
        reads: What else its job may read.
    """

    model: ModelInfo
    data: Prepared
    cutoff_len: int
    template: str | None
    default_epochs: float
    max_epochs: float
    debug_timeout: float
    full_timeout: float
    threads: int = 1
    cores: int = 1
    mini_steps: int = 3
    device: Literal["cpu", "cuda"] = "cpu"
    gpus: int = 1
    gpu_memory: int = 0
    memory: int | None = None
    disk: int | None = None
    arguments: dict[str, Argument] | None = None
    by_hand: dict[str, Any] = {}
    program: tuple[str, ...] = ("llamafactory-cli", "train", "train.yaml")
    reads: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """Processes that tokenize."""
        return self.cores if self.data.rows >= MANY_ROWS else 1

    @property
    def bounds(self) -> Bounds:
        """What a recipe may ask for."""
        return Bounds(
            context=self.model.context or self.cutoff_len,
            epochs=self.max_epochs,
            layers=self.model.layers or None,
            rows=self.data.supervised or self.data.rows,
            device=self.device,
            stages=self.data.stages,
            packages=installed(self.device),
        )

    def bounds_of(self, recipe: Recipe) -> Bounds:
        """The same for one recipe: what its own data work gives may allow stages that the study's data do not."""
        return msgspec.structs.replace(self.bounds, stages=STAGES, rows=None) if recipe.prepares else self.bounds


def threads_for(model: ModelInfo, cores: int) -> int:
    """CPU threads to train with: one for tiny models (faster, and repeatable to the bit)."""
    return 1 if model.parameters < SMALL else max(1, cores)


def defaults(recipe: Recipe, plan: TrainingPlan) -> dict[str, Any]:
    """What holds where a recipe says nothing: LLaMA-Factory's own defaults, and those of its examples."""
    method = str(recipe.train.get("finetuning_type", "lora"))
    stage = str(recipe.train.get("stage", "sft"))
    found: dict[str, Any] = {
        "stage": stage,
        "finetuning_type": method,
        "learning_rate": (RATES if stage == "sft" else PREFERENCE_RATES).get(method, 1e-5),
        "lr_scheduler_type": "cosine",
        "num_train_epochs": plan.default_epochs,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "cutoff_len": plan.cutoff_len,
        "disable_gradient_checkpointing": plan.model.parameters < SMALL,
    }
    if "warmup_steps" not in recipe.train:
        found["warmup_ratio"] = 0.1
    if plan.device == "cuda" and not recipe.train.keys() & {"bf16", "fp16", "pure_bf16"}:
        found["bf16"] = True
    if recipe.train.get("use_galore") or recipe.train.get("use_apollo"):
        found["optim"] = "adamw_torch"  # they do not take transformers' own default
    return found


def deepspeed(recipe: Recipe, plan: TrainingPlan) -> Literal["zero2", "zero3"] | None:
    """The DeepSpeed configuration (docker/train/deepspeed) that a training on several GPUs uses; no recipe chooses it.

    Full tuning: ZeRO-2 splits gradients and optimizer over the GPUs, at no cost in speed; ZeRO-3 splits the weights
    too, where all of it does not fit into one GPU. LoRA and freezing have little of what could be split, and often no
    parameter without weight decay: DeepSpeed drops that empty group, and torch's schedulers then refuse to step.
    Pure bfloat16 cannot be combined with it. Those train with plain data parallelism.
    """
    if plan.gpus < 2 or recipe.train.get("finetuning_type") != "full" or recipe.train.get("pure_bf16"):
        return None
    return "zero2" if plan.model.parameters * ADAM + ACTIVATIONS <= plan.gpu_memory else "zero3"


def config(recipe: Recipe, plan: TrainingPlan, output_dir: Path, *, mini: bool) -> dict[str, Any]:
    """The whole YAML: defaults, under the recipe, under what the harness owns.

    Args:
        recipe: One without problems.
        plan: The study's.
        output_dir: Receives the final weights, once. A mini-run's data lies beside it in `data/`.
        mini: For a few steps on the longest rows.
    """
    chosen = defaults(recipe, plan) | canonical(recipe.train, plan.arguments)
    owned: dict[str, Any] = {
        "model_name_or_path": plan.model.path,
        "trust_remote_code": False,
        "do_train": True,
        "dataset": "mini" if mini else plan.data.dataset(chosen["stage"])[0],
        "dataset_dir": str(output_dir.parent / "data") if mini else plan.data.directory,
        "overwrite_cache": True,
        "preprocessing_num_workers": plan.workers if plan.workers > 1 and not mini else None,
        "output_dir": str(output_dir),
        "overwrite_output_dir": True,
        "save_strategy": "no",  # the final weights are written by the program's end
        "save_only_model": True,
        "save_safetensors": True,
        "plot_loss": False,
        "report_to": "none",
        "push_to_hub": False,
        "logging_steps": 1 if mini else 1 / POINTS,  # below 1: a share of all steps
        "logging_nan_inf_filter": False,  # else a diverged loss is shown as the mean of the others
        "seed": recipe.seed,
        "data_seed": recipe.seed,
    }
    if plan.template is not None:
        owned["template"] = plan.template
    if plan.device == "cpu":
        owned["use_cpu"] = True
    if deepspeed(recipe, plan):
        owned["deepspeed"] = str(output_dir.parent / DEEPSPEED)
    owned |= plan.by_hand
    if mini:
        # Memory is the same from two summed steps on, so that a mini-run stays short.
        steps = min(2, int(chosen["gradient_accumulation_steps"]))
        owned |= {"max_steps": plan.mini_steps, "gradient_accumulation_steps": steps}
    return {key: value for key, value in sorted((chosen | owned).items()) if value is not None}


def job(bench: Bench, plan: TrainingPlan, *, deadline: float) -> Job:
    """The program run of the stage in `bench`, whose directory holds `train.yaml`."""
    stage = str(bench.directory)
    variables = {
        "HF_HOME": f"{stage}/cache",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "disabled",
        "DISABLE_VERSION_CHECK": "1",  # of LLaMA-Factory; the versions are those of the lock file
        "OMP_NUM_THREADS": str(max(1, plan.threads // plan.gpus)),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }
    if plan.gpus > 1:  # one process a GPU, on this machine alone, whose loopback may be all its network
        variables |= {
            "FORCE_TORCHRUN": "1",
            "NNODES": "1",
            "NPROC_PER_NODE": str(plan.gpus),
            "MASTER_ADDR": "127.0.0.1",
            "NCCL_SOCKET_IFNAME": "lo",
            "GLOO_SOCKET_IFNAME": "lo",
        }
    return Job(
        name=bench.name,
        environment="train",
        argv=plan.program,
        cwd=stage,
        log=f"{stage}/train.log",
        deadline=deadline,
        mounts=(*map(Mount, (plan.model.path, plan.data.directory, *plan.reads)), Mount(stage, writable=True)),
        variables=variables,
    )


def train(bench: Bench, recipe: Recipe, plan: TrainingPlan, stop: Stop | None = None) -> Checkpoint:
    """Train; the weights end in `<stage directory>/model`.

    Args:
        bench: The stage's. recipe: One without problems. plan: The study's.
        stop: Why a training that runs cannot end in time.

    Raises:
        TrialFailed: "train:oom", "train:timeout" or "train:exit"; the reason is the log's most telling line.
        MachineError: The job was lost, or failed for what no recipe can cause.
    """
    settings = config(recipe, plan, bench.directory / "model", mini=False)
    outcome = _run(bench, recipe, settings, plan, plan.full_timeout, stop)
    model = bench.directory / "model"
    _raise_unless_ok(outcome, "train:exit", "train:timeout", "FT_FULL_TIMEOUT")
    _require_plain(model, outcome, "train:exit")
    history = _finite(outputs.history(model), outcome, "train:exit")
    weights = "adapter_model*.safetensors" if settings["finetuning_type"] == "lora" else "model*.safetensors"
    if not any(model.glob(weights)):
        raise TrialFailed("train:exit", f"the training ended normally but wrote no {weights}", outcome.tail)
    sync_tree(model)  # the journal will say that these weights exist
    sync(model.parent)
    return Checkpoint(
        path=str(model),
        weights=weights_hash(model),
        adapter=settings["finetuning_type"] == "lora",
        losses=history.losses,
        steps=history.steps,
        seconds=outcome.seconds,
        versions=outputs.versions(model),
    )


def mini_run(bench: Bench, recipe: Recipe, plan: TrainingPlan, earlier: Sequence[tuple[int, MiniRun]]) -> MiniRun:
    """A few steps on the longest rows: does it start, fit into memory, and stay finite?

    Reused from an earlier mini-run of the same shape.

    Raises:
        TrialFailed: "train:oom", or "mini-run" for any other failure.
        MachineError: As for `train`.
    """
    key, summed = shape(recipe, plan), accumulation(recipe, plan)
    for number, run in earlier:
        if run.shape == key and (run.steps or run.reused_from):
            origin = run.reused_from or number
            step = None if run.step_seconds is None else run.step_seconds * summed / run.accumulation
            return msgspec.structs.replace(
                run, steps=0, seconds=0.0, step_seconds=step, accumulation=summed, reused_from=origin
            )
    settings = config(recipe, plan, bench.directory / "model", mini=True)
    _write_mini_data(bench.directory / "data", settings, plan)
    outcome = _run(bench, recipe, settings, plan, plan.debug_timeout)
    _raise_unless_ok(outcome, "mini-run", "mini-run", "FT_DEBUG_TIMEOUT")
    _require_plain(bench.directory / "model", outcome, "mini-run")
    history = _finite(outputs.history(bench.directory / "model"), outcome, "mini-run")
    run_summed = settings["gradient_accumulation_steps"]
    shutil.rmtree(bench.directory / "model")
    return MiniRun(
        shape=key,
        steps=history.steps,
        seconds=outcome.seconds,
        step_seconds=history.seconds / history.steps * summed / run_summed if history.steps else None,
        accumulation=summed,
        startup=max(0.0, outcome.seconds - history.seconds),
    )


def accumulation(recipe: Recipe, plan: TrainingPlan) -> int:
    """Batches that are summed before an update."""
    return int((defaults(recipe, plan) | canonical(recipe.train, plan.arguments))["gradient_accumulation_steps"])


def shape(recipe: Recipe, plan: TrainingPlan) -> str:
    """Equal for recipes that need the same memory and run the same code: all keys but rates, schedule and the like."""
    keys = defaults(recipe, plan) | canonical(recipe.train, plan.arguments)
    decisive = {key: value for key, value in keys.items() if key not in NEUTRAL}
    decisive["gradient_accumulation_steps"] = min(2, int(keys["gradient_accumulation_steps"]))
    study = [plan.model.path, plan.model.parameters, plan.data.fingerprint, plan.template, plan.device, plan.mini_steps]
    study += [plan.gpus, deepspeed(recipe, plan)] if plan.gpus > 1 else []
    return hashlib.sha256(json.dumps([study, decisive], sort_keys=True).encode()).hexdigest()[:16]


def _run(
    bench: Bench,
    recipe: Recipe,
    settings: dict[str, Any],
    plan: TrainingPlan,
    deadline: float,
    stop: Stop | None = None,
) -> Outcome:
    bench.directory.mkdir(parents=True, exist_ok=True)
    if name := deepspeed(recipe, plan):
        shutil.copyfile(resource(f"docker/train/deepspeed/{name}.json"), bench.directory / DEEPSPEED)
    (bench.directory / "train.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    try:
        return bench.run(job(bench, plan, deadline=deadline), lambda: outputs.progress(bench.directory / "model"), stop)
    finally:
        shutil.rmtree(bench.directory / "cache", ignore_errors=True)


def _write_mini_data(directory: Path, settings: dict[str, Any], plan: TrainingPlan) -> None:
    """The longest rows, repeated until every batch is full (and every packed sequence, where rows are packed)."""
    text = plan.data.longest.read_text(encoding="utf-8")
    longest = [f"{line}\n" for line in text.split("\n") if line]  # splitlines would cut at U+2028 inside a text
    if settings["stage"] == "sft" and plan.data.supervised:
        longest = [json.dumps(preferences.supervised(json.loads(line))) + "\n" for line in longest]
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] * plan.gpus
    sequences = batch * plan.mini_steps
    if settings.get("packing") or settings.get("neat_packing"):
        shortest = len(longest[-1])
        sequences *= math.ceil(settings["cutoff_len"] * CHARACTERS_A_TOKEN / shortest)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "mini.jsonl").open("w", encoding="utf-8") as target:
        target.writelines(islice(cycle(longest), min(sequences, MOST_MINI_ROWS)))
    columns = {role: role for role in json.loads(longest[0])}
    (directory / "dataset_info.json").write_text(json.dumps(info(columns, "mini")), encoding="utf-8")


def _raise_unless_ok(outcome: Outcome, failed: str, timeout: str, setting: str) -> None:
    if outcome.kind == "ok":
        return
    telling = outputs.telling_line(outcome.tail)
    if outcome.kind == "disk":
        raise TrialFailed(failed, outcome.reason, outcome.tail)
    if outcome.kind == "timeout":
        raise TrialFailed(timeout, f"not finished after {outcome.seconds:.0f} s ({setting})", outcome.tail)
    if outcome.kind == "stopped":
        raise TrialFailed(timeout, outcome.reason, outcome.tail)
    if outcome.kind == "oom" or "out of memory" in telling.lower():
        raise TrialFailed("train:oom", telling or outcome.reason, outcome.tail)
    raise_if_broken("the training", "train", outcome, telling)
    raise TrialFailed(failed, telling or outcome.reason, outcome.tail)


def _require_plain(model: Path, outcome: Outcome, failed: str) -> None:
    """What a training leaves is copied, mounted and published: a link in it would lead to the host's own files."""
    if found := written.strange(model):
        raise TrialFailed(failed, f"the training wrote more than plain files: {found}", outcome.tail)


def _finite(history: outputs.History, outcome: Outcome, failed: str) -> outputs.History:
    if history.diverged is not None:
        reason = f"diverged: loss or gradient was no longer finite at step {history.diverged}; lower the learning rate"
        raise TrialFailed(failed, reason, outcome.tail)
    return history
