"""The memory and time estimator: sizes of known models, what grows with what, refusals and their advice, the rules."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.records import Recipe, Value
from agent.run.environments import Environments
from scenarios.finetune.arguments import problems
from scenarios.finetune.data import Prepared
from scenarios.finetune.estimate import Device, estimate
from scenarios.finetune.estimate_keys import read_keys, trained
from scenarios.finetune.estimate_rules import after_oom, longest_tokens, needed, problem
from scenarios.finetune.estimate_shapes import Shapes, read_shapes, shapes
from scenarios.finetune.estimate_time import affordable_steps, hopeless, projected_seconds, steps_of, verdict
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan
from tests.estimates import CASES, measure, right, summary

GIB = 1 << 30
QWEN_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
QWEN_HALF_B = QWEN_7B | {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QWEN3_1_7B: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 2048,
    "num_hidden_layers": 28,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}
QWEN3_30B_A3B = QWEN3_1_7B | {
    "model_type": "qwen3_moe",
    "num_hidden_layers": 48,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
FULL: dict[str, Value] = {
    "finetuning_type": "full",
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "disable_gradient_checkpointing": True,
}


def total(keys: dict[str, Any], device: Device = "cuda", **more: Any) -> int:
    return estimate(
        shapes(QWEN_HALF_B), {"bf16": device == "cuda", "cutoff_len": 512} | keys, device=device, **more
    ).total


@pytest.mark.parametrize(
    ("config", "parameters"),
    [  # as their model cards and safetensors headers have them
        (QWEN_7B, 7_615_616_512),
        (QWEN_HALF_B, 494_032_768),
        (LLAMA_8B, 8_030_261_248),
        (QWEN3_1_7B, 1_720_574_976),
        (QWEN3_30B_A3B, 30_532_122_624),
    ],
)
def test_parameters_are_counted_to_the_last_one(config: dict[str, Any], parameters: int) -> None:
    assert shapes(config).parameters == parameters


def test_lora_on_all_linear_layers_trains_as_many_as_peft_says() -> None:
    # peft prints "trainable params: 20,185,088" for Qwen2.5-7B with rank 8 on all linear layers
    assert trained(shapes(QWEN_7B), read_keys({"lora_rank": 8})).parameters == 20_185_088


def test_a_config_without_sizes_is_named() -> None:
    with pytest.raises(ValueError, match="hidden_size"):
        shapes({"model_type": "qwen2"})


def test_weights_on_disk_count_rather_than_the_config() -> None:
    assert shapes(QWEN_HALF_B, parameters=500).parameters == 500


@pytest.mark.parametrize(
    ("keys", "published"),
    [  # GB for a 7B model, from LLaMA-Factory's own table of hardware requirements
        ({"finetuning_type": "full", "bf16": True}, 120),
        ({"finetuning_type": "full", "pure_bf16": True}, 60),
        ({"finetuning_type": "lora", "bf16": True}, 16),
        ({"finetuning_type": "lora", "bf16": True, "quantization_bit": 4}, 6),
    ],
)
def test_a_7b_model_needs_about_what_llama_factory_publishes(keys: dict[str, Any], published: int) -> None:
    """Its table names no batch and no length; with short ones the sizes must be of that order."""
    keys |= {"per_device_train_batch_size": 1, "cutoff_len": 256}
    assert 0.75 < estimate(shapes(QWEN_7B), keys, device="cuda").total / 1e9 / published < 1.4


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"per_device_train_batch_size": 1}, {"per_device_train_batch_size": 2}),
        ({"cutoff_len": 256}, {"cutoff_len": 512}),
        ({"lora_rank": 8}, {"lora_rank": 256}),
        ({"lora_target": "q_proj,v_proj"}, {"lora_target": "all"}),
        ({}, {"use_dora": True}),
        ({}, {"disable_gradient_checkpointing": True}),
        ({}, {"flash_attn": "disabled", "disable_gradient_checkpointing": True}),
        ({}, {"stage": "dpo"}),
        ({"stage": "dpo", "pref_loss": "orpo"}, {"stage": "dpo", "pref_loss": "sigmoid"}),
        ({"finetuning_type": "lora", "stage": "dpo"}, {"finetuning_type": "full", "stage": "dpo"}),
        ({"finetuning_type": "full"}, {"finetuning_type": "full", "stage": "kto"}),
        ({"finetuning_type": "lora"}, {"finetuning_type": "full"}),
        ({"finetuning_type": "freeze"}, {"finetuning_type": "full"}),
        ({"finetuning_type": "freeze"}, {"finetuning_type": "freeze", "freeze_trainable_layers": 12}),
        ({"finetuning_type": "full", "optim": "adafactor"}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "optim": "sgd"}, {"finetuning_type": "full", "optim": "adagrad"}),
        ({"finetuning_type": "full", "optim": "adamw_bnb_8bit"}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "use_galore": True}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "use_badam": True}, {"finetuning_type": "full"}),
        ({"finetuning_type": "full", "pure_bf16": True}, {"finetuning_type": "full"}),
    ],
)
def test_what_needs_more_is_estimated_at_more(less: dict[str, Any], more: dict[str, Any], device: Device) -> None:
    assert total(less, device) < total(more, device)


def test_accumulated_gradients_are_there_while_the_next_batch_is_run() -> None:
    keys = {"finetuning_type": "full", "per_device_train_batch_size": 16}
    assert total(keys) < total(keys | {"gradient_accumulation_steps": 2})
    assert total(keys | {"gradient_accumulation_steps": 2}) == total(keys | {"gradient_accumulation_steps": 8})


def test_quantized_weights_are_smaller() -> None:
    model = shapes(QWEN_7B)
    plain = estimate(model, {"bf16": True}, device="cuda")
    four, eight = (estimate(model, {"bf16": True, "quantization_bit": bits}, device="cuda") for bits in (4, 8))
    assert four.weights < eight.weights < plain.weights
    assert four.weights < 6 * GIB


def test_zero_splits_over_gpus_what_it_says() -> None:
    keys = {"finetuning_type": "full", "bf16": True, "per_device_train_batch_size": 1, "cutoff_len": 512}
    plain, two, three = (
        estimate(shapes(QWEN_7B), keys, device="cuda", gpus=8, zero=zero) for zero in (None, "zero2", "zero3")
    )
    assert three.total < two.total < plain.total
    assert three.weights < two.weights
    assert two.optimizer == three.optimizer < plain.optimizer / 4


def test_the_data_bound_the_length_unless_rows_are_packed() -> None:
    assert total({"cutoff_len": 2048}, tokens=100) < total({"cutoff_len": 2048})
    assert total({"cutoff_len": 2048}, tokens=4096) == total({"cutoff_len": 2048})
    packed = {"cutoff_len": 2048, "packing": True}
    assert total(packed, tokens=100) == total(packed)


def test_parts_add_up() -> None:
    found = estimate(shapes(QWEN_HALF_B), {"finetuning_type": "full", "bf16": True}, device="cuda")
    parts = ("weights", "optimizer", "gradients", "activations", "logits", "reference", "workspace", "process")
    assert found.total == sum(getattr(found, part) for part in parts)


# refusals


def plan_for(tmp_path: Path, device: Device = "cpu", config: dict[str, Any] | None = None, **more: Any) -> TrainingPlan:
    """A plan for a model directory that holds a config alone; its data's longest row is long."""
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model/config.json").write_text(json.dumps(config or QWEN_HALF_B))
    (tmp_path / "longest.jsonl").write_text(json.dumps({"prompt": "a" * 9000, "response": "b"}) + "\n")
    counted = shapes(QWEN_HALF_B).parameters
    model = ModelInfo(
        path=str(tmp_path / "model"),
        architecture="Qwen2ForCausalLM",
        parameters=counted,
        bytes=2 * counted,
        dtype="bfloat16",
        context=32768,
        layers=24,
        chat_template=True,
    )
    data = Prepared(directory=str(tmp_path), name="t", rows=100, dropped=0, fingerprint="f", format="alpaca")
    plan = TrainingPlan(
        model=model,
        data=data,
        cutoff_len=1024,
        template=None,
        default_epochs=3,
        max_epochs=10,
        debug_timeout=60,
        full_timeout=600,
        device=device,
    )
    return msgspec.structs.replace(plan, **more)


def need(recipe: Recipe, plan: TrainingPlan) -> int:
    found = needed(recipe, plan)
    assert found is not None
    return found.total


def changed(said: str, recipe: Recipe) -> Recipe:
    """The recipe with the changes that a refusal advises, read from its words."""
    advice = said.rsplit("; ", 1)[1].rsplit(" needs ", 1)[0]
    train: dict[str, Value] = dict(recipe.train)
    for change in advice.split(" and "):
        key, value = change.split(" ")[0], change.rsplit(" -> ", 1)[1]
        try:
            train[key] = json.loads(value)
        except ValueError:
            train[key] = value
    return Recipe(train=train)


def test_what_fits_is_no_problem_and_one_byte_less_is_one(tmp_path: Path) -> None:
    plan, recipe = plan_for(tmp_path), Recipe(train=FULL)
    exactly = need(recipe, plan)
    assert problem(recipe, plan, exactly) is None
    said = problem(recipe, plan, exactly - 1)
    assert said
    assert "GiB of memory (most: " in said


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.4])
def test_the_advice_fits_and_is_a_valid_recipe(tmp_path: Path, device: Device, share: float) -> None:
    plan, recipe = plan_for(tmp_path, device), Recipe(train=FULL)
    available = int(share * need(recipe, plan))
    said = problem(recipe, plan, available)
    assert said
    better = changed(said, recipe)
    assert problems(better.train, plan.bounds) == []
    assert problem(better, plan, available) is None


def test_half_the_batch_is_advised_first_with_as_many_rows_an_update(tmp_path: Path) -> None:
    plan, recipe = plan_for(tmp_path), Recipe(train=FULL)
    said = problem(recipe, plan, int(0.95 * need(recipe, plan)))
    assert said
    assert "; per_device_train_batch_size 4 -> 2 and gradient_accumulation_steps 2 -> 4 needs " in said


def test_a_smaller_model_is_advised_where_nothing_helps(tmp_path: Path) -> None:
    said = problem(Recipe(train=FULL), plan_for(tmp_path), GIB)
    assert said
    assert said.endswith("no batch, length or method makes it fit: a smaller model is needed")


@pytest.mark.parametrize("content", ["{}", "[]", "not JSON", '{"hidden_size": "much"}'])
def test_nobody_is_refused_for_a_config_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    plan = plan_for(tmp_path)
    (tmp_path / "model/config.json").write_text(content)
    assert problem(Recipe(train=FULL), plan, 1) is None


def test_short_rows_are_not_refused_for_a_long_cutoff(tmp_path: Path) -> None:
    plan, recipe = plan_for(tmp_path, cutoff_len=8192), Recipe(train=FULL)
    long = need(recipe, plan)
    (tmp_path / "longest.jsonl").write_text(json.dumps({"prompt": "short", "response": "row"}) + "\n")
    assert need(recipe, plan) < long


def test_tokens_are_bounded_by_bytes(tmp_path: Path) -> None:
    rows = tmp_path / "longest.jsonl"
    rows.write_text(json.dumps({"prompt": "ü" * 100}) + "\n")
    found = longest_tokens(rows)
    assert found is not None
    assert found >= 200
    assert longest_tokens(tmp_path / "absent") is None


def test_an_out_of_memory_halves_the_batch_and_keeps_the_rows_of_an_update() -> None:
    recipe = Recipe(train={"per_device_train_batch_size": "8", "learning_rate": 1e-4}, seed=7)
    after = after_oom(recipe)
    assert after == Recipe(
        train={"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 1e-4}, seed=7
    )


@pytest.mark.parametrize(
    ("batch", "summed", "after"),
    [(2, 4, (1, 8)), (3, 2, (1, 6)), (9, 1, (3, 3)), (1, 4, None), (4, 1024, None)],
)
def test_odd_batches_single_rows_and_the_bound(batch: int, summed: int, after: tuple[int, int] | None) -> None:
    found = after_oom(Recipe(train={"per_device_train_batch_size": batch, "gradient_accumulation_steps": summed}))
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps")
    assert (None if found is None else tuple(found.train[key] for key in keys)) == after


# time


def test_a_training_that_ends_in_time_runs() -> None:
    found = verdict(step_seconds=2, steps=100, epochs=3, seconds=250, startup=10)
    assert (found.action, found.steps, found.epochs, found.seconds) == ("run", 100, 3, 210)
    assert projected_seconds(2, 100, 10) == 210
    assert affordable_steps(2, 210, 10) == 100


def test_a_training_that_nearly_ends_in_time_is_shortened_so_that_it_does() -> None:
    found = verdict(step_seconds=2, steps=100, epochs=3, seconds=150, startup=10)
    assert found.action == "shorten"
    assert found.seconds <= 150
    assert found.epochs == 2.1
    assert "num_train_epochs 3 -> 2.1" in found.reason


@pytest.mark.parametrize("seconds", [100, 10, 0, -5])
def test_a_training_of_which_less_than_half_fits_is_stopped(seconds: float) -> None:
    found = verdict(step_seconds=2, steps=100, epochs=3, seconds=seconds, startup=10)
    assert (found.action, found.steps) == ("stop", 0)
    assert "100 steps" in found.reason


@pytest.mark.parametrize("rows", [1, 7, 100, 2001])
@pytest.mark.parametrize("epochs", [0.5, 1, 3])
def test_shortened_epochs_take_no_more_steps_than_fit(rows: int, epochs: float) -> None:
    steps = steps_of(rows, 8, epochs)
    found = verdict(step_seconds=1, steps=steps, epochs=epochs, seconds=0.7 * steps)
    if found.action == "shorten":
        assert steps_of(rows, 8, found.epochs) <= found.steps


def test_a_running_training_is_given_up_only_once_that_is_sure() -> None:
    assert hopeless(5, 100, elapsed=500, seconds_left=10) is None  # too early to tell
    assert hopeless(50, 100, elapsed=50, seconds_left=48) is None  # within the tolerance
    said = hopeless(50, 100, elapsed=50, seconds_left=40)
    assert said
    assert "after 50 of 100 steps the rest would take 50 s, and 40 s are left" in said
    assert hopeless(100, 100, elapsed=50, seconds_left=0) is None  # it has ended


# against real trainings


def test_the_judge_can_fail() -> None:
    assert right(100, 100) == (4, 4)
    assert right(200, 100) == (2, 4)
    assert summary([("a", 110, 100), ("b", 900, 1000)]) == {
        "cases": 2,
        "mean_error": 0.1,
        "worst_error": 0.1,
        "right": 0.875,
        "range": 10.0,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "2M lora",
        pytest.param("11M llama full", marks=pytest.mark.long),
        pytest.param("65M qwen3 freeze", marks=pytest.mark.long),
    ],
)
def test_the_peak_of_a_real_training_is_foreseen(name: str, tmp_path: Path, environments: Environments) -> None:
    """The whole table is made by tests/estimates.py."""
    case = CASES[name]
    measured = measure(case, tmp_path, environments.python("train"))
    assert abs(case.estimate().above_imports / measured - 1) < 0.25


def test_read_shapes_takes_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"text_config": QWEN_7B, "model_type": "some_vl"}))
    found = read_shapes(tmp_path)
    assert isinstance(found, Shapes)
    assert found.hidden == 3584
    assert found.half


def test_a_pair_is_as_long_as_its_longer_answer(tmp_path: Path) -> None:
    said = {"messages": [{"role": "user", "content": "Q"}]}
    answers = {
        role: {"role": "assistant", "content": "a" * length} for role, length in (("chosen", 900), ("rejected", 800))
    }
    (tmp_path / "longest.jsonl").write_text(json.dumps(said | answers) + "\n")
    tokens = longest_tokens(tmp_path / "longest.jsonl")
    assert tokens is not None
    assert 900 < tokens < 1300, "and not of both"


def test_a_reference_costs_what_the_method_makes_of_it() -> None:
    """Full tuning holds a copy of the model; adapters are switched off instead; ORPO and SimPO need none."""

    def reference(**keys: object) -> int:
        return estimate(shapes(QWEN_HALF_B), {"per_device_train_batch_size": 1, **keys}, device="cuda").reference

    counted = shapes(QWEN_HALF_B).parameters
    assert reference(stage="dpo", finetuning_type="full") >= 2 * counted
    assert reference(stage="kto", finetuning_type="freeze") >= 2 * counted
    assert reference(stage="dpo", finetuning_type="lora") == 0
    assert reference(stage="dpo", finetuning_type="full", pref_loss="orpo") == 0
    assert reference(finetuning_type="full") == 0
