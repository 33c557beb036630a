"""Training methods beyond imitation: what the data allow, what the YAML says, and the real programs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agent.records import Recipe, Value
from agent.run.environments import Environments
from scenarios.finetune.arguments import canonical, problems
from scenarios.finetune.data import Prepared, recognise, write
from scenarios.finetune.keys import NO_STAGES, Bounds
from scenarios.finetune.models import inspect
from scenarios.finetune.training import TrainingPlan, config, mini_run, shape, train
from tests.test_training import GPU, PLAN, Here, check_golden
from tests.tiny import make_tiny_model

ROOT = Path(__file__).resolve().parent.parent
PAIRS = Bounds(context=1024, epochs=10, layers=4, rows=100, stages=("sft", "dpo"))
LABELS = msgspec.structs.replace(PAIRS, stages=("sft", "kto"))
PLAIN = msgspec.structs.replace(PAIRS, stages=("sft",))
EVERY = frozenset({"galore-torch", "apollo-torch", "badam", "adam-mini", "bitsandbytes"})
FULL_GPU = msgspec.structs.replace(PLAIN, device="cuda", packages=EVERY)


def plan_for(data: Prepared, **more: Any) -> TrainingPlan:
    return msgspec.structs.replace(PLAN, data=data, **more)


PAIRED = msgspec.structs.replace(PLAN.data, format="preference", stages=("sft", "dpo"), supervised=2000)
LABELLED = msgspec.structs.replace(PLAN.data, format="labelled", stages=("sft", "kto"), supervised=1200)
RECIPES: dict[str, tuple[Prepared, dict[str, Value]]] = {
    "dpo_lora": (PAIRED, {"stage": "dpo", "pref_beta": 0.2, "pref_ftx": 0.1, "use_dora": True}),
    "orpo_full": (PAIRED, {"stage": "dpo", "pref_loss": "orpo", "finetuning_type": "full"}),
    "simpo_freeze": (
        PAIRED,
        {"stage": "dpo", "pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 1.0, "finetuning_type": "freeze"},
    ),
    "kto_lora": (LABELLED, {"stage": "kto", "kto_chosen_weight": 1.5}),
    "sft_of_preferences": (LABELLED, {"finetuning_type": "full"}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_the_yaml_is_exactly_this(name: str) -> None:
    data, keys = RECIPES[name]
    plan = plan_for(data)
    assert problems(keys, plan.bounds) == []
    output = Path("/files/studies/s/trials/1/train/model")
    check_golden(f"train_{name}.yaml", yaml.safe_dump(config(Recipe(train=keys), plan, output, mini=False)))


def test_no_stage_brings_a_second_model_with_it() -> None:
    for data, keys in RECIPES.values():
        settings = config(Recipe(train=keys), plan_for(data), Path("/x/model"), mini=True)
        assert not [key for key in settings if key.startswith(("ref_model", "reward_model"))]


ALLOWED: list[tuple[dict[str, Any], Bounds]] = [
    ({"stage": "dpo"}, PAIRS),
    ({"stage": "dpo", "dpo_label_smoothing": 0.1, "pref_bco_weight": 0.5, "ld_alpha": 0.5}, PAIRS),
    ({"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 1.2, "pref_beta": 2.5, "neftune_noise_alpha": 5}, PAIRS),
    ({"stage": "dpo", "use_rslora": True, "loraplus_lr_ratio": 16.0, "optim": "adafactor"}, PAIRS),
    ({"stage": "kto", "kto_rejected_weight": 2.0, "pref_ftx": 1.0, "pref_beta": 0.5}, LABELS),
    ({"stage": "sft", "packing": True}, LABELS),
    ({"quantization_bit": 4, "double_quantization": True, "use_dora": True}, FULL_GPU),
    ({"finetuning_type": "full", "use_galore": True, "galore_rank": 64, "optim": "adafactor"}, FULL_GPU),
    ({"finetuning_type": "freeze", "use_badam": True, "badam_switch_mode": "random"}, FULL_GPU),
]
REFUSED: list[tuple[dict[str, Any], Bounds, str]] = [
    ({"stage": "dpo"}, PLAIN, "stage: dpo needs pairs of a chosen and a rejected answer; these data can be trained"),
    ({"stage": "dpo"}, LABELS, "with sft, kto"),
    ({"stage": "kto"}, PAIRS, "stage: kto needs answers labelled true or false, some of each; these data can"),
    ({"stage": "ppo"}, PAIRS, "stage: 'ppo' is none of sft, dpo, kto: LLaMA-Factory's PPO needs TRL 0.9.6 or older"),
    ({"stage": "rm"}, PAIRS, "it makes a reward model, which answers no question"),
    ({"stage": "pt"}, PAIRS, "use sft"),
    ({"stage": "dpo", "pref_loss": "hinge"}, PAIRS, "pref_loss: 'hinge' is none of sigmoid, orpo, simpo"),
    ({"stage": "dpo", "pref_loss": "ipo"}, PAIRS, "pref_loss: 'ipo' is none of"),
    ({"stage": "dpo", "neat_packing": True}, PAIRS, "neat_packing: has no effect with stage: dpo; leave it out, or"),
    ({"stage": "dpo", "train_on_prompt": True}, PAIRS, "or train with stage: sft"),
    ({"stage": "dpo", "group_by_length": True}, PAIRS, "has no effect with stage: dpo"),
    ({"stage": "dpo", "use_dft_loss": True}, PAIRS, "has no effect with stage: dpo"),
    ({"stage": "dpo", "kto_chosen_weight": 2.0}, PAIRS, "kto_chosen_weight: has no effect with stage: dpo; leave it o"),
    ({"stage": "dpo", "simpo_gamma": 1.0}, PAIRS, "no effect with pref_loss: sigmoid; leave it out, or use simpo"),
    ({"stage": "dpo", "pref_loss": "orpo", "dpo_label_smoothing": 0.1}, PAIRS, "with pref_loss: orpo"),
    ({"stage": "dpo", "pref_beta": 0}, PAIRS, "pref_beta: must be more than 0"),
    ({"stage": "dpo", "dpo_label_smoothing": 0.5}, PAIRS, "must be less than 0.5"),
    ({"pref_beta": 0.1}, PAIRS, "no effect with stage: sft; leave it out, or train with stage: dpo"),
    ({"pref_beta": 0.1}, PLAIN, "pref_beta: has no effect with stage: sft; leave it out"),
    ({"stage": "dpo", "ref_model": "/etc"}, PAIRS, "ref_model: may not be set; the harness owns it"),
    ({"stage": "dpo", "reward_model": "http://x"}, PAIRS, "reward_model: may not be set"),
    ({"use_galore": True, "finetuning_type": "full"}, PLAIN, "use_galore: needs the package galore-torch, which"),
    ({"quantization_bit": 4}, PLAIN, "quantization_bit: needs the package bitsandbytes"),
    (
        {"quantization_bit": 4},
        msgspec.structs.replace(FULL_GPU, device="cpu"),
        "quantization_bit: needs a GPU, and this training runs on the CPU",
    ),
    ({"quantization_bit": 2}, FULL_GPU, "quantization_bit: 2 is none of 4, 8"),
    ({"quantization_bit": 4, "finetuning_type": "full"}, FULL_GPU, "has no effect with finetuning_type: full"),
    ({"use_galore": True}, FULL_GPU, "use_galore: has no effect with finetuning_type: lora"),
    ({"finetuning_type": "full", "galore_rank": 8}, FULL_GPU, "galore_rank: has no effect without use_galore: true"),
    (
        {"finetuning_type": "full", "use_galore": True, "use_badam": True},
        FULL_GPU,
        "use_badam: cannot be combined with use_galore",
    ),
    ({"finetuning_type": "full", "use_apollo": True, "optim": "sgd"}, FULL_GPU, "use_apollo needs adamw_torch or"),
    ({"double_quantization": True}, FULL_GPU, "has no effect without quantization_bit"),
]


@pytest.mark.parametrize(("keys", "bounds"), ALLOWED)
def test_what_data_and_packages_allow_has_no_problems(keys: dict[str, Any], bounds: Bounds) -> None:
    assert problems(keys, bounds) == []


@pytest.mark.parametrize(("keys", "bounds", "words"), REFUSED)
def test_what_they_do_not_is_refused_with_the_reason(keys: dict[str, Any], bounds: Bounds, words: str) -> None:
    found = problems(keys, bounds)
    assert len(found) == 1, found
    assert words in found[0]


def test_a_recipe_with_data_work_may_ask_for_what_only_that_gives() -> None:
    scripted = Recipe(train={"stage": "dpo"}, script="print()")
    assert problems(scripted.train, PLAN.bounds_of(scripted)) == []
    assert problems(scripted.train, PLAN.bounds_of(msgspec.structs.replace(scripted, script="")))
    assert problems(scripted.train, PLAN.bounds), "asked again once its data are made"


def test_what_decides_about_memory_needs_a_mini_run_of_its_own() -> None:
    plan = plan_for(PAIRED)
    dpo = shape(Recipe(train={"stage": "dpo"}), plan)
    assert dpo != shape(Recipe(train={}), plan)
    assert dpo != shape(Recipe(train={"stage": "dpo", "pref_loss": "orpo"}), plan)
    assert dpo == shape(Recipe(train={"stage": "dpo", "pref_beta": 0.5}), plan)


def test_defaults_are_those_of_the_method() -> None:
    rate = config(Recipe(train={"stage": "dpo"}), plan_for(PAIRED), Path("/x/model"), mini=False)["learning_rate"]
    assert rate == 5e-6
    galore = Recipe(train={"use_galore": True, "finetuning_type": "full"})
    assert config(galore, GPU, Path("/x/model"), mini=False)["optim"] == "adamw_torch"


# The real programs


def pair(number: int) -> dict[str, Any]:
    asked = [{"role": "user", "content": f"Reverse {number:08d}"}]
    right, wrong = ({"role": "assistant", "content": said} for said in (f"{number:08d}"[::-1], f"{number:08d}"))
    return {"prompt": asked[0]["content"], "chosen": [*asked, right], "rejected": [*asked, wrong]}


def labelled(number: int) -> dict[str, Any]:
    good = number % 2 == 0
    said = f"{number:08d}"
    return {"prompt": f"Reverse {said}", "completion": said[::-1] if good else said, "label": good}


@pytest.fixture(scope="module")
def real(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, TrainingPlan], Path]:
    """A plan for pairs and one for labels, with a tiny model, and where the program is."""
    directory = tmp_path_factory.mktemp("real")
    python = environments.python("train")
    make_tiny_model(python, directory / "tiny")
    plans = {}
    for name, made in (("pairs", pair), ("labels", labelled)):
        rows = [made(number) for number in range(1_000_001, 32_000_000, 999_999)]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepared = write(recognise(directory / f"{name}.jsonl"), directory / name)
        plans[name] = plan_for(prepared, model=inspect(directory / "tiny"), cutoff_len=64, default_epochs=1)
    return plans, python.parent


def trained(real: tuple[dict[str, TrainingPlan], Path], data: str, at: Path, **keys: Value) -> list[float]:
    """The losses of a real training whose mini-run went well."""
    plan, recipe = real[0][data], Recipe(train=keys)
    assert problems(keys, plan.bounds) == []
    assert mini_run(Here(at / "mini", real[1]), recipe, plan, []).steps == 3
    checkpoint = train(Here(at / "train", real[1]), recipe, plan)
    assert checkpoint.adapter == (keys.get("finetuning_type", "lora") == "lora")
    assert inspect(Path(checkpoint.path)).adapter == checkpoint.adapter
    return [loss.loss for loss in checkpoint.losses]


@pytest.mark.slow
def test_dpo_starts_at_its_reference_and_leaves_it(real: tuple[dict[str, TrainingPlan], Path], tmp_path: Path) -> None:
    losses = trained(real, "pairs", tmp_path, stage="dpo", use_dora=True, learning_rate=5e-3, num_train_epochs=3)
    assert losses[0] == pytest.approx(0.6931, abs=1e-3), "policy and reference are one model: ln 2"
    assert losses[-1] < 0.6


@pytest.mark.slow
def test_kto_of_all_weights(real: tuple[dict[str, TrainingPlan], Path], tmp_path: Path) -> None:
    keys: dict[str, Value] = {"finetuning_type": "full", "learning_rate": 5e-3, "num_train_epochs": 3, "pref_beta": 1.0}
    losses = trained(real, "labels", tmp_path, stage="kto", **keys)
    assert losses[0] == pytest.approx(0.5, abs=1e-3), "policy and reference are two models with the same weights"
    assert losses[-1] < 0.45


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("data", "keys"),
    [
        ("pairs", {"stage": "dpo", "finetuning_type": "full", "pref_bco_weight": 0.5, "dpo_label_smoothing": 0.1}),
        ("pairs", {"stage": "dpo", "pref_loss": "orpo", "finetuning_type": "full", "pref_ftx": 0.5, "bf16": True}),
        ("pairs", {"stage": "dpo", "pref_loss": "simpo", "pref_beta": 2.0, "simpo_gamma": 1.0, "ld_alpha": 0.5}),
        ("pairs", {"stage": "dpo", "finetuning_type": "freeze", "neftune_noise_alpha": 5.0, "optim": "adafactor"}),
        ("pairs", {"finetuning_type": "full", "packing": True}),
        ("labels", {"stage": "kto", "gradient_accumulation_steps": 2, "pref_ftx": 0.5, "use_rslora": True}),
        ("labels", {"mask_history": True}),
    ],
)
def test_further_methods(
    real: tuple[dict[str, TrainingPlan], Path], tmp_path: Path, data: str, keys: dict[str, Value]
) -> None:
    assert trained(real, data, tmp_path, **keys)


@pytest.mark.slow
@pytest.mark.long
def test_dpo_by_two_processes(real: tuple[dict[str, TrainingPlan], Path], tmp_path: Path) -> None:
    plan = msgspec.structs.replace(real[0]["pairs"], gpus=2)
    assert train(Here(tmp_path / "s", real[1]), Recipe(train={"stage": "dpo"}), plan).steps == 2


@pytest.mark.slow
@pytest.mark.long
def test_the_losses_that_are_not_offered_are_still_trained_as_another(
    real: tuple[dict[str, TrainingPlan], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hinge starts at 1 and ipo at 1 / (4 beta^2) where policy and reference are equal. Once they do: offer them."""
    monkeypatch.setattr("scenarios.finetune.training.canonical", lambda train, known: dict(train))
    for loss in ("hinge", "ipo"):
        recipe = Recipe(train={"stage": "dpo", "pref_loss": loss})
        checkpoint = train(Here(tmp_path / loss, real[1]), recipe, real[0]["pairs"])
        assert checkpoint.losses[0].loss == pytest.approx(0.6931, abs=1e-3), loss


@pytest.mark.slow
@pytest.mark.long
def test_ppo_still_contradicts_itself(real: tuple[dict[str, TrainingPlan], Path], tmp_path: Path) -> None:
    """Once it does not: open the stage, with a reward model trained before it (stage rm)."""
    plan = real[0]["pairs"]
    reward = config(Recipe(train={"stage": "dpo"}), plan, tmp_path / "reward/model", mini=False) | {"stage": "rm"}
    policy = config(Recipe(train={}), plan, tmp_path / "policy/model", mini=False) | {"stage": "ppo"}
    policy |= {"reward_model": str(tmp_path / "reward/model"), "reward_model_type": "lora"}
    ends = {}
    for name, settings in (("reward", reward), ("policy", policy)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.yaml").write_text(yaml.safe_dump(settings))
        done = subprocess.run(
            [real[1] / "llamafactory-cli", "train", "train.yaml"],
            cwd=tmp_path / name,
            env={"PATH": f"{real[1]}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", "DISABLE_VERSION_CHECK": "1"},
            capture_output=True,
            text=True,
        )
        ends[name] = (done.returncode, done.stderr)
    assert ends["reward"][0] == 0, ends["reward"][1][-2000:]
    assert (tmp_path / "reward/model/value_head.safetensors").exists(), "LoRA on tied weights does train"
    assert ends["policy"][0] == 1
    assert "ImportError: trl>=0.8.6,<=0.9.6 is required" in ends["policy"][1]
    assert "ImportError" in NO_STAGES["ppo"]


def test_the_checks_agree_with_canonical() -> None:
    for keys, _ in ALLOWED:
        assert canonical(canonical(keys)) == canonical(keys)
