import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.run.environments import Environments
from scenarios.finetune import arguments
from scenarios.finetune.arguments import canonical, nearest, problems
from scenarios.finetune.keys import OPEN, Bounds

ROOT = Path(__file__).resolve().parent.parent
CPU = Bounds(context=1024, epochs=10, layers=4, rows=100)
GPU = Bounds(context=1024, epochs=10, layers=4, rows=100, device="cuda")

GOOD: list[dict[str, Any]] = [
    {},
    {"learning_rate": 2e-3, "num_train_epochs": 2, "per_device_train_batch_size": 32},
    {"finetuning_type": "full", "optim": "adafactor", "lr_scheduler_type": "cosine", "warmup_ratio": 0.1},
    {"finetuning_type": "freeze", "freeze_trainable_layers": -2, "freeze_trainable_modules": "mlp,self_attn"},
    {"lora_rank": 16, "lora_alpha": None, "lora_target": "q_proj,v_proj", "use_dora": True, "lora_dropout": 0.1},
    {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": '{"min_lr_rate": 0.1}'},
    {"neat_packing": True, "cutoff_len": 512, "neftune_noise_alpha": 5.0, "loraplus_lr_ratio": 16.0},
]

REFUSED: list[tuple[dict[str, Any], str]] = [  # by the real parser too
    ({"learning_rat": 1e-3}, "'learning_rat': LLaMA-Factory has no such key; did you mean learning_rate?"),
    ({"lora-rank": 8}, "did you mean lora_rank?"),
    ({"LoRA_rank": 8}, "did you mean lora_rank?"),
    ({"zzzzzzzz": 8}, "leave it out"),
    ({"learning_rate": "fast"}, "learning_rate: wanted a number, found 'fast'"),
    ({"learning_rate": True}, "learning_rate: wanted a number, found True"),
    ({"learning_rate": [1e-3]}, "wanted a number"),
    ({"lora_rank": 8.5}, "lora_rank: wanted a whole number, found 8.5"),
    ({"lora_alpha": "x"}, "lora_alpha: wanted a whole number or null, found 'x'"),
    ({"train_on_prompt": "maybe"}, "train_on_prompt: wanted true or false, found 'maybe'"),
    ({"optim": "adamw"}, "(did you mean adamw_torch?)"),
    ({"train_on_prompt": True, "mask_history": True}, "mask_history: cannot be combined with train_on_prompt"),
    ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "is none of linear"),
    ({"lr_scheduler_kwargs": "{num_cycles: 2"}, "wanted a JSON object of numbers"),
]

LET_PASS: list[tuple[dict[str, Any], str]] = [  # by the real parser: the harness's to own, or wrong in silence or later
    ({"output_dir": "/etc"}, "output_dir: may not be set; the harness owns it"),
    ({"trust_remote_code": True}, "trust_remote_code: may not be set; forbidden"),
    ({"learning_rate": None}, "learning_rate: wanted a number, found None"),
    ({"learning_rate": float("nan")}, "wanted a number, found nan"),
    ({"learning_rate": "inf"}, "wanted a number, found 'inf'"),
    ({"learning_rate": 10**400}, "wanted a number"),
    ({"learning_rate": 0}, "learning_rate: must be more than 0, is 0"),
    ({"learning_rate": -1e-3}, "learning_rate: must be more than 0, is -0.001"),
    ({"use_dora": 1}, "use_dora: wanted true or false, found 1"),
    ({"finetuning_type": "oft"}, "finetuning_type: 'oft' is none of lora, full, freeze"),
    ({"lora_target": "q_proj; rm -rf /"}, "lora_target: wanted module names with commas"),
    ({"lora_target": "${oc.env:HOME}"}, "lora_target: wanted module names with commas"),
    ({"cutoff_len": 4096}, "cutoff_len: must be at most 1024, the model's context length, is 4096"),
    ({"num_train_epochs": 50}, "num_train_epochs: must be at most 10, the study's limit, is 50"),
    ({"finetuning_type": "full", "lora_rank": 8}, "lora_rank: has no effect with finetuning_type: full"),
    ({"freeze_trainable_layers": 2}, "has no effect with finetuning_type: lora"),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": 0}, "would train no layer"),
    ({"finetuning_type": "freeze", "freeze_trainable_layers": -5}, "must be at least -4, the model's layers"),
    ({"neat_packing": True, "packing": False}, "packing: neat_packing turns it on"),
    ({"packing": True, "group_by_length": True}, "group_by_length: has no effect with packing"),
    ({"fp16": True}, "fp16: needs a GPU"),
    ({"warmup_ratio": 0.1, "warmup_steps": 10}, "warmup_ratio: has no effect with warmup_steps"),
    ({"lr_scheduler_type": "constant", "warmup_steps": 10}, "use constant_with_warmup"),
    ({"lr_scheduler_type": "cosine_with_min_lr"}, "needs one of min_lr and min_lr_rate"),
    ({"lr_scheduler_kwargs": '{"cycles": 2}'}, "cosine has no 'cycles'; it takes num_cycles"),
    ({"lr_scheduler_type": "polynomial", "learning_rate": 1e-8}, "more than the polynomial scheduler's lr_end"),
    ({"dataloader_drop_last": True, "per_device_train_batch_size": 128}, "would drop the only batch"),
    ({f"key_{number}": 1 for number in range(101)}, "101 keys are too many"),
]


@pytest.mark.parametrize("train", GOOD)
def test_a_good_recipe_has_no_problems(train: dict[str, Any]) -> None:
    assert problems(train, CPU) == []


@pytest.mark.parametrize(("train", "words"), REFUSED + LET_PASS)
def test_a_bad_recipe_is_told_what_to_write(train: dict[str, Any], words: str) -> None:
    found = problems(train, CPU)
    assert len(found) == 1
    assert words in found[0]


def test_every_problem_is_named_at_once() -> None:
    found = problems({"learning_rat": 1, "seed": 2, "lora_rank": 0, "optim": 3}, CPU)
    assert [line.split(":")[0].strip("'") for line in found] == ["learning_rat", "lora_rank", "optim", "seed"]


def test_precisions_are_a_matter_of_the_device() -> None:
    assert problems({"fp16": True}, GPU) == []
    assert "cannot be combined" in problems({"fp16": True, "bf16": True}, GPU)[0]


def test_canonical_has_declared_types_and_a_fixed_order() -> None:
    train = {
        "warmup_steps": 10.0,
        "learning_rate": "1e-3",  # as PyYAML reads it
        "lora_target": ["q_proj", "v_proj"],
        "lora_rank": "8",
        "lora_alpha": None,
        "num_train_epochs": 2,
        "lr_scheduler_kwargs": {"num_cycles": 2},
    }
    found = canonical(train)  # type: ignore[arg-type]
    assert list(found.items()) == [
        ("learning_rate", 1e-3),
        ("lora_rank", 8),
        ("lora_target", "q_proj,v_proj"),
        ("lr_scheduler_kwargs", '{"num_cycles": 2}'),
        ("num_train_epochs", 2.0),
        ("warmup_steps", 10),
    ]
    assert [type(value) for value in found.values()] == [float, int, str, str, float, int]
    assert canonical(found) == found
    with pytest.raises(ValueError, match="no such key"):
        canonical({"lora_rnk": 8})


@given(
    st.dictionaries(
        st.sampled_from([*OPEN, *arguments.schema()]) | st.text(max_size=20),
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=20)
        | st.lists(st.text(), max_size=2),
        max_size=5,
    )
)
def test_whatever_a_model_writes_gets_an_answer(train: dict[str, Any]) -> None:
    if not problems(train, CPU):
        assert problems(canonical(train), CPU) == []
        yaml.safe_dump(canonical(train))


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("learnin_rate", "learning_rate"),
        ("batch_size", "per_device_train_batch_size"),
        ("epochs", "num_train_epochs"),
        ("scheduler", "lr_scheduler_type"),
        ("output_dirs", "output_dir"),
        ("zzzzzzzz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_one_that_may_be_set_if_any_is_near(written: str, meant: str | None) -> None:
    assert nearest(written) == meant


def test_a_check_takes_less_than_50_ms_with_loading_and_needs_no_torch() -> None:
    code = (
        "import sys, time, json, difflib, msgspec, agent.records\n"
        "start = time.perf_counter()\n"
        "from scenarios.finetune.arguments import problems\n"
        "from scenarios.finetune.keys import Bounds\n"
        "problems({'learning_rat': 1, 'lora_rank': 8, 'seed': 3}, Bounds(context=1024, epochs=3))\n"
        "print(time.perf_counter() - start, 'torch' in sys.modules)\n"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT) for _ in range(3)]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr
    assert min(float(run.stdout.split()[0]) for run in runs) < 0.05
    assert all("False" in run.stdout for run in runs)


def test_a_flood_of_unknown_keys_is_answered_fast() -> None:
    start = time.perf_counter()
    problems({f"unknown_key_number_{number}_{'x' * 1000}": 1 for number in range(100)}, CPU)
    assert time.perf_counter() - start < 2


REAL_PARSER = """
import json, sys
from transformers import HfArgumentParser
from llamafactory.hparams import get_train_args
from llamafactory.hparams.parser import _TRAIN_ARGS

verdicts = []
for train in json.load(sys.stdin):
    base = {"model_name_or_path": "m", "dataset": "d", "dataset_dir": ".", "output_dir": "o", "do_train": True,
            "use_cpu": True, "report_to": "none"}
    try:
        get_train_args(dict(base, **train))  # unknown keys, enums, combinations
        argv = [word for key, value in dict(base, **train).items() if value is not None
                for word in ("--" + key, str(value))]
        HfArgumentParser(_TRAIN_ARGS).parse_args_into_dataclasses(argv)  # types
        verdicts.append("")
    except (Exception, SystemExit) as error:
        verdicts.append(repr(error))
print("\\n" + json.dumps(verdicts))
"""


def _in_training_environment(environments: Environments, *argv: str, stdin: str = "") -> str:
    env = {"PATH": os.environ["PATH"], "DISABLE_VERSION_CHECK": "1", "OMP_NUM_THREADS": "1"}
    command = [str(environments.python("train")), *argv]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_the_schema_is_that_of_the_pinned_llama_factory(environments: Environments) -> None:
    made = _in_training_environment(environments, "docker/train/make_arguments.py")
    committed = (ROOT / "scenarios/finetune/arguments.json").read_text(encoding="utf-8")
    assert made == committed, "make it again: python docker/train/make_arguments.py > scenarios/finetune/arguments.json"


@pytest.mark.slow
def test_the_real_parser_agrees(environments: Environments) -> None:
    recipes = [canonical(train) for train in GOOD] + [train for train, _ in REFUSED]
    stdout = _in_training_environment(environments, "-c", REAL_PARSER, stdin=json.dumps(recipes))
    verdicts = json.loads(stdout.splitlines()[-1])
    for train, verdict in zip(recipes, verdicts, strict=True):
        assert bool(problems(train, CPU)) == bool(verdict), (train, verdict)


def test_another_version_is_checked_by_its_own_arguments() -> None:
    """The keys and choices of an update (FT_UPDATE_LLAMA_FACTORY), handed down; the pinned ones stay what they are."""
    pinned = arguments.schema()
    newer = {name: argument for name, argument in pinned.items() if name not in ("use_dora", "weight_decay")}
    newer["optim"] = msgspec.structs.replace(newer["optim"], choices=())
    newer["learning_rate"] = msgspec.structs.replace(newer["learning_rate"], types=("str",))
    assert problems({"use_dora": True}, CPU) == []
    assert problems({"use_dora": True}, CPU, newer)[0].startswith("'use_dora': LLaMA-Factory has no such key")
    assert nearest("weight_decy") == "weight_decay"
    assert nearest("weight_decy", newer) != "weight_decay", "not a key that this version lacks"
    assert canonical({"learning_rate": "1e-3"}) == {"learning_rate": 1e-3}
    assert canonical({"learning_rate": "1e-3"}, newer) == {"learning_rate": "1e-3"}
    declared = msgspec.structs.replace(newer["lora_target"], choices=("all", "q_proj"))
    assert problems({"lora_target": "k_proj"}, CPU, {**newer, "lora_target": declared})
    assert problems({"lora_target": "k_proj"}, CPU, newer) == []
