"""training_config.yaml: the grid, the names, and what is refused before anything runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import UsageError
from agent.experiments import names
from agent.experiments.grid import Grid, read
from tests.knots import KNOTTED
from tests.sweeps import COPA, SCAN


def grid(tmp_path: Path, **changes: Any) -> Grid:
    file = tmp_path / "training_config.yaml"
    content = {key: value for key, value in (SCAN | changes).items() if value is not None}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return read(file, tmp_path / "Data_v2")


def hyperparameters(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (SCAN["hyperparameters"] | changes).items() if value is not None}


def problem(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(UsageError) as caught:
        grid(tmp_path, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (1e-7, "1_7"),
        (5e-7, "5_7"),
        (2.5e-7, "2p5_7"),
        (1e-6, "1_6"),
        (0.00015, "1p5_4"),
        (0.01, "1_2"),
        (1.0, "1_0"),
        (1.25e-5, "1p25_5"),
    ],
)
def test_learning_rates_are_written_as_documented(value: float, written: str) -> None:
    assert names.rate(value) == written


@pytest.mark.parametrize(
    ("path", "called"),
    [
        (COPA, "copa_mezo_v1"),
        ("Data_v2/original/Copa", "original"),
        ("/abs/Data_v2/synthetic/few_shot_study/b_1/CB/", "b_1"),
        ("rows/my data.jsonl", "my-data"),
        ("HuggingFaceH4/aime_2024", "aime_2024"),
        ("demo/reverse", "reverse"),
        ("Data_v2/synthetic/lonely", "lonely"),
    ],
)
def test_data_are_called_by_their_experiment(path: str, called: str) -> None:
    assert names.data_type(path) == called


@pytest.mark.parametrize(
    ("model", "directory"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("gpt2", "gpt2"),
        ("/models/org/tiny", "tiny"),
        ("./tiny", "tiny"),
        ("a/b/c", "c"),
    ],
)
def test_a_hub_name_keeps_its_slash_and_a_path_its_last_part(model: str, directory: str) -> None:
    assert str(names.model_directory(model)) == directory


def test_names_with_underscores_everywhere_can_be_read_in_several_ways() -> None:
    assert names.readings("Copa_zo_copa_mezo_v1_1_6") == [("Copa", "zo", "copa_mezo_v1", "1_6")]
    assert names.readings("a_fo_full_b_zo_c_1_6") == [
        ("a", "fo_full", "b_zo_c", "1_6"),
        ("a_fo_full_b", "zo", "c", "1_6"),
    ]
    assert names.readings("somewhere_else") == []


@given(
    task=st.from_regex(r"[A-Za-z]\w{0,8}", fullmatch=True),
    data=st.from_regex(r"[a-z0-9]\w{0,8}", fullmatch=True),
    digits=st.integers(1, 999),
    power=st.integers(0, 9),
)
def test_what_a_name_was_made_of_is_among_its_readings(task: str, data: str, digits: int, power: int) -> None:
    rate = digits * 10.0**-power
    name = names.experiment(task, "fo_lora", data, rate)
    written = names.rate(rate)
    if "m" not in written:
        assert (task, "fo_lora", data, written) in names.readings(name)


def test_an_ambiguous_name_says_so(tmp_path: Path) -> None:
    assert list(grid(tmp_path).shared()) == []
    (said,) = grid(tmp_path, task="a_zo_b").shared()
    assert "the name a_zo_b_fo_lora_copa_mezo_v1_1_6 is ambiguous" in said
    assert "task a, method zo, data b_fo_lora_copa_mezo_v1" in said
    assert "experiment_config.yaml says what it is" in said


def test_lists_span_the_grid_in_the_files_order(tmp_path: Path) -> None:
    found = grid(tmp_path, hyperparameters=hyperparameters(learning_rate=["1e-6", "5e-7"], batch_size=[8, 16]))
    assert [(cell.hyperparameters["learning_rate"], cell.hyperparameters["batch_size"]) for cell in found.cells] == [
        (1e-6, 8),
        (1e-6, 16),
        (5e-7, 8),
        (5e-7, 16),
    ]
    assert found.varied == ("learning_rate", "batch_size")
    assert [cell.number for cell in found.cells] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("purpose", "model", "data", "rate", "directory"),
    [
        ("hyperparameter_tuning", "meta-llama/Llama-3.2-1B", COPA, "2e-7", "Copa_fo_full_copa_mezo_v1_2_7"),
        ("model_comparison", "mistralai/Mistral-Nemo-Base-2407", COPA, "5e-7", "Copa_fo_full_copa_mezo_v1_5_7"),
        (
            "baseline_comparison",
            "meta-llama/Llama-3.2-1B",
            "Data_v2/original/Copa",
            "5e-7",
            "Copa_fo_full_original_5_7",
        ),
    ],
)
def test_the_three_documented_scenarios_lie_where_they_are_documented(
    tmp_path: Path, purpose: str, model: str, data: str, rate: str, directory: str
) -> None:
    """What the data were generated for (prompt_engineering) plays no part."""
    found = grid(
        tmp_path,
        experiment={"purpose": purpose},
        model=model,
        method="fo_full",
        data={"path": data},
        hyperparameters={"learning_rate": rate, "batch_size": 16, "steps": 20000, "seed": 0},
    )
    assert str(found.directory(found.cells[0])) == f"{purpose}/{model}/{directory}"


def test_a_cell_is_a_recipe(tmp_path: Path) -> None:
    found = grid(tmp_path, method="fo_full", hyperparameters=hyperparameters(weight_decay="1e-2", seed=7))
    recipe = found.cells[0].recipe(found.method)
    assert recipe.seed == 7
    assert recipe.train == {
        "finetuning_type": "full",
        "learning_rate": 1e-6,
        "per_device_train_batch_size": 16,
        "weight_decay": 0.01,
    }
    assert found.cells[0].by_hand == {"max_steps": 3}


def test_data_of_an_old_type_are_found_or_named(tmp_path: Path) -> None:
    root = tmp_path / "Data_v2"
    assert "there is neither" in problem(tmp_path, data={"type": "synthetic_a"})
    (root / "synthetic/p/a/Copa").mkdir(parents=True)
    found = grid(tmp_path, data={"type": "synthetic_a"})
    assert (found.data, found.data_type) == (str(root / "synthetic/p/a/Copa"), "synthetic_a")
    assert "deprecated" in found.warnings[0]
    (root / "synthetic/q/a/Copa").mkdir(parents=True)
    assert "could be" in problem(tmp_path, data={"type": "synthetic_a"})
    (root / "original/Copa").mkdir(parents=True)
    assert grid(tmp_path, data={"type": "original"}).data == str(root / "original/Copa")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "zo"}, "method: zo (zeroth-order training) is not there yet"),
        ({"method": "zo_lora"}, "method: zo_lora (zeroth-order training) is not there yet"),
        ({"method": "fo_lra"}, "use fo_lora"),
        ({"method": None}, "method: is missing"),
        ({"model": ["a", "b"]}, "model: only hyper-parameters may be lists"),
        ({"task": "a/b"}, "cannot be a directory's name"),
        ({"experiment": {"purpose": "../x"}}, "experiment.purpose: '../x' cannot be a directory's name"),
        ({"experiment": {"porpose": "x"}}, "did you mean purpose?"),
        ({"experiment": ["x"]}, "must hold keys and values"),
        ({"data": {}}, "data.path is not set"),
        ({"data": {"path": "a", "columns": ["x"]}}, "data.columns: wanted roles"),
        ({"hyperparams": {}}, "did you mean hyperparameters?"),
        ({"hyperparameters": None}, "learning_rate is missing"),
        ({"evaluation": {"benchmarks": [1]}}, "evaluation.benchmarks: wanted a list"),
        ({"evaluation": {"limit": 0}}, "evaluation.limit: wanted a whole number, found 0"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problem(tmp_path, **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": None}, "learning_rate is missing"),
        ({"learning_rate": []}, "an empty list spans no grid"),
        ({"learning_rate": ["1e-6", 1e-6]}, "1e-06 is there twice"),
        ({"learning_rate": "fast"}, "learning_rate: wanted a number, found 'fast'"),
        ({"epochs": 2}, "steps and epochs contradict each other"),
        ({"steps": 0}, "steps: wanted a whole number from 1 on, found 0"),
        ({"seed": True}, "seed: wanted a whole number from 0 on, found True"),
        ({"bacth_size": 3}, "did you mean batch_size?"),
        ({"per_device_train_batch_size": 4}, "it is batch_size by another name"),
        ({"finetuning_type": "full"}, "the method says what is trained"),
        ({"weight_decay": None, "output_dir": "x"}, "there is no such hyper-parameter"),
        ({"learning_rate": [1e-6, 0]}, "learning_rate: must be more than 0, is 0"),
        ({"learning_rate": -1e-6}, "learning_rate: must be more than 0, is -1e-06"),
        ({"lora_dropout": 1}, "lora_dropout: must be less than 1, is 1"),
        ({"freeze_trainable_layers": 2}, "has no effect with finetuning_type: lora"),
        ({"seed": list(range(999)), "batch_size": [1, 2]}, "the grid has 7,992 cells"),
    ],
)
def test_wrong_hyperparameters_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in problem(tmp_path, hyperparameters=hyperparameters(**changes))


def test_errors_name_file_and_line(tmp_path: Path) -> None:
    assert f"{tmp_path}/training_config.yaml:9: hyperparameters.batch_size" in problem(
        tmp_path, hyperparameters={"batch_size": "x", "learning_rate": 1}
    )
    file = tmp_path / "twice.yaml"
    file.write_text("model: a\ntask: b\nmodel: c\n")
    with pytest.raises(UsageError, match=r"twice.yaml:3: model is there twice"):
        read(file)
    file.write_text("{: [")
    with pytest.raises(UsageError, match="is no YAML"):
        read(file)
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", KNOTTED)
def test_a_knotted_file_is_refused_at_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "knot.yaml").write_text(f"hyperparameters: {text}\n")
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"nested too deeply|holds more than|is longer than"):
        read(tmp_path / "knot.yaml")
    assert time.monotonic() - started < 10
