"""Near-duplicates are refused, with the trial that they repeat; what may teach something is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from agent.propose.duplicates import canonical, difference, twin
from agent.records import History, Recipe, TrainingData, Value
from tests.records_factory import make_failed, make_proposal, make_trial

SCRIPT = "import json\n\n# first\nfor line in open('x'):\n    print(json.loads(line))\n"


def defaults(train: Mapping[str, Value]) -> dict[str, Value]:
    return {"finetuning_type": "lora", "learning_rate": 0.0001, "lora_rank": 8}


def recipe(train: dict[str, Value] | None = None, script: str = "", data: Any = ()) -> Recipe:
    return Recipe(train=train or {}, script=script, data=tuple(data))


@pytest.mark.parametrize(
    ("new", "old", "said"),
    [
        (recipe(), recipe({"learning_rate": 1e-4}), ""),
        (recipe({"learning_rate": 1.001e-3}), recipe({"learning_rate": 1e-3}), "learning_rate 0.001 -> 0.001001"),
        (recipe({"learning_rate": 1.049e-3}), recipe({"learning_rate": 1e-3}), "learning_rate 0.001 -> 0.001049"),
        (recipe({"learning_rate": "9.6e-5"}), recipe(), "learning_rate 0.0001 -> 9.6e-05"),
        (recipe({"num_train_epochs": 3.1}), recipe({"num_train_epochs": 3}), "num_train_epochs 3 -> 3.1"),
        (
            recipe({"lora_rank": 65, "learning_rate": 2.05e-3}),
            recipe({"lora_rank": 64, "learning_rate": 2e-3}),
            "learning_rate 0.002 -> 0.00205, lora_rank 64 -> 65",
        ),
        (recipe(script=SCRIPT), recipe(script="# another comment\n" + SCRIPT.replace("\n\n# first", "")), ""),
        (recipe(script="not python ("), recipe(script="  not python (  \n\n"), ""),
        (
            recipe(data=[{"step": "limit", "n": 9}]),
            recipe(data=[{"n": 9, "step": "limit", "column": None}]),
            "",
        ),
    ],
)
def test_twins(new: Recipe, old: Recipe, said: str) -> None:
    assert difference(new, old, defaults) == said
    assert difference(old, new, defaults) is not None


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (recipe({"learning_rate": 1.06e-3}), recipe({"learning_rate": 1e-3})),
        (recipe({"learning_rate": 2e-3}), recipe({"learning_rate": 1e-3})),
        (recipe({"lora_rank": 9}), recipe({"lora_rank": 8})),
        (recipe({"weight_decay": 0.001}), recipe({"weight_decay": 0})),
        (recipe({"weight_decay": 0.001}), recipe()),
        (recipe({"freeze_trainable_layers": 2}), recipe({"freeze_trainable_layers": -2})),
        (recipe({"packing": True}), recipe({"packing": 1})),
        (recipe({"packing": True}), recipe({"packing": False})),
        (recipe({"finetuning_type": "full"}), recipe()),
        (recipe({"lora_target": ["q"]}), recipe({"lora_target": ["q", "k"]})),
        (recipe(script=SCRIPT), recipe()),
        (recipe(script=SCRIPT), recipe(script=SCRIPT.replace("'x'", "'y'"))),
        (recipe(data=[{"step": "limit", "n": 9}]), recipe(data=[{"step": "limit", "n": 10}])),
        (
            recipe(data=[{"step": "shuffle"}, {"step": "limit", "n": 9}]),
            recipe(data=[{"step": "limit", "n": 9}, {"step": "shuffle"}]),
        ),
        (recipe({"learning_rate": 1.001e-3}, script=SCRIPT), recipe({"learning_rate": 1e-3})),
        (recipe({"learning_rate": 1e300}), recipe({"learning_rate": -1e300})),
    ],
)
def test_no_twins(new: Recipe, old: Recipe) -> None:
    assert difference(new, old, defaults) is None
    assert difference(old, new, defaults) is None


def test_the_trial_is_named() -> None:
    tried = make_trial(1, 0.4, "tie", proposal=make_proposal(train={"learning_rate": 1e-3}))
    history = History(trials=(tried, make_failed(2)))
    near = twin(recipe({"learning_rate": 1.01e-3}), history, (), defaults)
    assert near == (
        "this recipe nearly equals that of trial 1 (tie): learning_rate 0.001 -> 0.00101 is too little to teach "
        "anything; propose another one"
    )
    assert twin(recipe({"learning_rate": 3e-3}), history, (), defaults) is None
    running = (make_proposal(train={"learning_rate": 3e-3}),)
    assert "nearly equals one that is still running" in str(
        twin(recipe({"learning_rate": 3.01e-3}), history, running, defaults)
    )


def test_a_mended_script_counts_as_tried() -> None:
    proposed = msgspec.structs.replace(make_proposal(), recipe=recipe(script="broken("))
    data = TrainingData(path="/d", rows=9, script=SCRIPT, repairs=1)
    history = History(trials=(make_trial(1, 0.4, "tie", proposal=proposed, data=data),))
    assert "equals that of trial 1" in str(twin(recipe(script=SCRIPT), history, (), defaults))
    assert "equals that of trial 1" in str(twin(recipe(script="broken("), history, (), defaults))
    assert twin(recipe(), history, (), defaults) is None


@pytest.mark.parametrize("script", ["(" * 5_000, "-" * 50_000 + "1", "\0", "\ud800", "x = '\\d'", "a" * 60_000])
def test_no_script_breaks_the_comparison(script: str) -> None:
    assert difference(recipe(script=script), recipe(script=script), defaults) == ""
    assert difference(recipe(script=script), recipe(), defaults) is None


def test_one_text_for_all_ways_to_write_a_recipe() -> None:
    assert canonical({"lora_rank": 8.0, "learning_rate": "1e-4"}, defaults) == canonical({}, defaults)
