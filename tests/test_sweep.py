"""`ftloop sweep`, by its command line: real processes and files; the trainer is a stand-in, but for the slow test."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.errors import UsageError
from agent.experiments.cells import CONFIG, METRICS, STATUS, metrics
from agent.experiments.sweep import worker_runners
from agent.hardware import Hardware
from agent.run import Job
from agent.run.environments import Environments
from agent.settings import load
from tests.sweeps import COPA, LLAMA, ROOT, Workshop, until, workshop

NAMES = ["Copa_fo_lora_copa_mezo_v1_1_6", "Copa_fo_lora_copa_mezo_v1_5_7"]
NAMES += ["Copa_fo_lora_copa_mezo_v1_2_7", "Copa_fo_lora_copa_mezo_v1_1_7"]
TWO = ["1e-6", "5e-7"]


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return workshop(tmp_path)


def two_cells(shop: Workshop, **changes: Any) -> str:
    return str(shop.config(hyperparameters=shop.hyperparameters(learning_rate=TWO), **changes))


def second_begun(shop: Workshop) -> bool:
    """Whether the first cell is done, and the second one runs."""
    return shop.states() == ["done", "running"]


def test_the_learning_rate_scan_makes_the_four_documented_directories(shop: Workshop) -> None:
    said = shop.run("sweep", str(shop.config()))
    model = shop.directory / "Results_v2/hyperparameter_tuning" / LLAMA
    assert [path.relative_to(model).parts[0] for path, _, _ in shop.cells()] == NAMES
    assert len({path.name for path, _, _ in shop.cells()}) == 1
    assert "all 4 cells are done" in said
    for name, rate in zip(NAMES, ("1_6", "5_7", "2_7", "1_7"), strict=True):
        (directory,) = (model / name).iterdir()
        assert re.fullmatch(r"\d{8}_\d{6}", directory.name)
        files = {path.name for path in directory.iterdir()}
        assert files >= {CONFIG, STATUS, METRICS, f"{rate}_train.out", f"{rate}_train.err", "model"}
        assert (directory / f"{rate}_train.out").read_text() == "***** train metrics *****\n"
        assert (directory / f"{rate}_train.err").read_text() == "loading weights\n"


def test_the_commands_of_the_readme_go_together(shop: Workshop) -> None:
    shop.config()
    commands = {
        "ftloop sweep training_config.yaml --dry-run": "4 cells: fo_lora of meta-llama/Llama-3.2-1B",
        "ftloop sweep training_config.yaml": "all 4 cells are done",
        "ftloop list": "Total: 1 experiment purpose, 4 training experiments",
        "ftloop list --detail --purpose hyperparameter_tuning": f"[4] {NAMES[3]}",
        "ftloop trace Data_v2/synthetic/prompt_engineering/copa_mezo_v1/Copa": "4 results trained on it",
    }
    for command, said in commands.items():
        assert said in shop.run(*command.split()[1:])


def test_the_sample_is_the_documented_scan(shop: Workshop) -> None:
    said = shop.run("sweep", str(ROOT / "docs/examples/training_config.yaml"), "--dry-run")
    assert all(f"hyperparameter_tuning/{LLAMA}/{name}/" in said for name in NAMES)


def test_each_cell_records_what_it_is_with_its_own_scalars(shop: Workshop) -> None:
    shop.run("sweep", str(shop.config()))
    path, _, status = shop.cells()[1]
    assert status is not None
    assert status.state == "done"
    written = yaml.safe_load((path / CONFIG).read_text())
    assert written["timestamp"] == path.name
    assert written["experiment_purpose"] == "hyperparameter_tuning"
    assert (written["model"], written["task"], written["method"]) == (LLAMA, "Copa", "fo_lora")
    assert written["data"]["path"] == COPA
    assert written["hyperparameters"] == {"learning_rate": 5e-7, "batch_size": 16, "steps": 3, "seed": 0}
    info = written["training_info"]
    assert info["command"] == "llamafactory-cli train train.yaml"
    assert (info["out_file"], info["err_file"]) == ("5_7_train.out", "5_7_train.err")
    assert info["env_vars"]["HF_HUB_OFFLINE"] == "1"
    trained = yaml.safe_load((path / "train.yaml").read_text())
    assert (trained["max_steps"], trained["seed"], trained["finetuning_type"]) == (3, 0, "lora")
    assert (trained["per_device_train_batch_size"], trained["learning_rate"]) == (16, 5e-7)
    found = metrics(path)
    assert found is not None
    assert found.train_loss == pytest.approx(2.0, abs=1e-5)
    assert found.checkpoint.path == str(path / "model")


def test_a_dry_run_prints_cells_and_directories_and_writes_nothing(shop: Workshop) -> None:
    file = str(shop.config())
    before = sorted(shop.directory.rglob("*"))
    said = shop.run("sweep", file, "--dry-run")
    assert sorted(shop.directory.rglob("*")) == before
    for number, name in enumerate(NAMES, start=1):
        assert f"[{number}] Results_v2/hyperparameter_tuning/{LLAMA}/{name}/{{time}}" in said
    assert "learning_rate 5e-07" in said


def test_without_a_purpose_results_are_uncategorized_and_a_warning_says_so(shop: Workshop) -> None:
    said = shop.run("sweep", two_cells(shop, experiment=None))
    assert "experiment.purpose is not set" in said
    assert {path.parents[3].name for path, _, _ in shop.cells()} == {"uncategorized"}
    assert not (shop.directory / "Results_v2/prompt_engineering").exists()


def test_a_method_that_comes_later_is_refused_before_anything_runs(shop: Workshop) -> None:
    said = shop.run("sweep", str(shop.config(method="zo")), code=2)
    assert "zo (zeroth-order training) is not there yet" in said
    assert "fo_full or fo_lora" in said
    assert not (shop.directory / "Results_v2").exists()


def test_a_file_of_which_no_cell_can_be_trained_is_refused(shop: Workshop) -> None:
    changed = shop.hyperparameters(stage="dpo")
    said = shop.run("sweep", str(shop.config(hyperparameters=changed)), code=2)
    assert "training_config.yaml: no cell can be trained: stage: dpo needs pairs of a chosen and a rejected" in said
    changed["stage"] = ["sft", "dpo"]
    changed["learning_rate"] = "1e-6"
    shop.run("sweep", str(shop.config(hyperparameters=changed)), code=6)
    assert shop.states() == ["done", "failed"], "one that can be trained is"


def test_preferences_are_trained_on_in_a_grid_too(shop: Workshop) -> None:
    (shop.directory / "pairs.jsonl").write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 9)
    changed = shop.hyperparameters(learning_rate="1e-6", stage="dpo", pref_beta=[0.1, 0.2])
    shop.run("sweep", str(shop.config(data={"path": "pairs.jsonl"}, hyperparameters=changed)))
    trained = [yaml.safe_load((path / "train.yaml").read_text()) for path, _, _ in shop.cells()]
    assert [(one["stage"], one["pref_beta"]) for one in trained] == [("dpo", 0.1), ("dpo", 0.2)]


def test_the_old_data_type_still_works_with_a_warning(shop: Workshop) -> None:
    said = shop.run("sweep", two_cells(shop, data={"type": "synthetic_copa_mezo_v1"}))
    assert "data.type is deprecated; write data.path: " + COPA in said
    path, experiment, _ = shop.cells()[0]
    assert path.parent.name == "Copa_fo_lora_synthetic_copa_mezo_v1_1_6"
    assert experiment.data.path == COPA


def test_a_failed_cell_stops_no_other_and_the_same_command_runs_only_that_one_again(shop: Workshop) -> None:
    file = str(shop.config(hyperparameters=shop.hyperparameters(learning_rate=["1e-6", 0.9, "1e-7"])))
    said = shop.run("sweep", file, code=6)
    assert shop.states() == ["done", "failed", "done"]
    assert "2 of 3 cells are done; failed: [2] Copa_fo_lora_copa_mezo_v1_9_1" in said
    assert "train:exit: RuntimeError: the learning rate is absurd" in said
    again = shop.run("sweep", file, code=6)
    assert "2 of 3 cells are done" in again
    assert shop.states() == ["done", "failed", "done", "failed"]


def test_a_sweep_that_is_done_begins_anew_and_overwrites_nothing(shop: Workshop) -> None:
    file = two_cells(shop)
    shop.run("sweep", file)
    before = {path: path.read_bytes() for path in shop.directory.glob("Results_v2/*/**/*") if path.is_file()}
    shop.run("sweep", file)
    assert len(shop.cells()) == 4
    assert len({experiment.sweep for _, experiment, _ in shop.cells()}) == 2
    assert {path: path.read_bytes() for path in before} == before


def test_a_killed_sweep_is_continued_by_the_same_command(shop: Workshop) -> None:
    file = str(shop.config())
    shop.slow(0.7)
    process = shop.start("sweep", file)
    until(lambda: second_begun(shop), 300.0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert shop.states() == ["done", "killed"]
    killed, kept = shop.cells()[1][0], shop.cells()[0][0]
    shop.slow(None)
    said = shop.run("sweep", file)
    assert "1 of 4 cells are done" in said
    assert f"{killed.relative_to(shop.directory)} was killed" in said
    assert sorted(shop.states()) == ["done"] * 4 + ["killed"]
    assert len(list(kept.parent.iterdir())) == 1, "a cell that was done is not trained again"
    assert len({experiment.sweep for _, experiment, _ in shop.cells()}) == 1
    assert not (killed / METRICS).exists()


def test_a_cell_that_was_renamed_by_hand_still_counts_as_done(shop: Workshop) -> None:
    file = str(shop.config(hyperparameters=shop.hyperparameters(learning_rate=["1e-6", 0.9])))
    shop.run("sweep", file, code=6)
    done = shop.cells()[0][0]
    moved = shop.directory / "Results_v2/the good one"
    done.rename(moved)
    said = shop.run("sweep", file, code=6)
    assert "1 of 2 cells are done" in said
    assert not done.exists()
    assert sorted(shop.states()) == ["done", "failed", "failed"]


def test_a_broken_machine_ends_the_sweep_and_is_no_finding(shop: Workshop) -> None:
    file = str(shop.config(hyperparameters=shop.hyperparameters(learning_rate=["1e-6", 0.8, "1e-7"])))
    said = shop.run("sweep", file, code=3)
    assert "the train environment lacks what the program needs" in said
    assert shop.states() == ["done", "broken"]


def test_a_root_that_cannot_be_written_is_named(shop: Workshop) -> None:
    (shop.directory / "Results_v2").write_text("a file in the way")
    said = shop.run("sweep", two_cells(shop), code=3)
    assert "Results_v2/.sweeps cannot be read or written: Not a directory" in said


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_records_the_cell_as_stopped(shop: Workshop, sent: signal.Signals) -> None:
    shop.slow(60)
    process = shop.start("sweep", str(shop.config()))
    until(lambda: shop.states() == ["running"])
    os.kill(process.pid, sent)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert shop.states() == ["stopped"]


def test_two_sweeps_at_once_into_one_root_do_not_collide(shop: Workshop) -> None:
    """They share every name, and most likely the second, too: only the number of steps differs."""
    files = [
        str(shop.config(f"{n}.yaml", hyperparameters=shop.hyperparameters(learning_rate=TWO, steps=n))) for n in (3, 4)
    ]
    shop.slow(0.3)
    processes = [shop.start("sweep", file) for file in files]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert shop.states() == ["done"] * 4
    assert sorted(str(experiment.hyperparameters["steps"]) for _, experiment, _ in shop.cells()) == ["3", "3", "4", "4"]
    assert {path.parent.name for path, _, _ in shop.cells()} == set(NAMES[:2])


def test_the_same_sweep_twice_at_once_is_refused(shop: Workshop) -> None:
    file = two_cells(shop)
    shop.slow(60)
    first = shop.start("sweep", file)
    until(lambda: shop.states() == ["running"])
    said = shop.run("sweep", file, code=4)
    assert f"is being worked on by process {first.pid}" in said
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()


def test_several_cells_at_once(shop: Workshop) -> None:
    shop.slow(1.0)
    shop.run("sweep", str(shop.config()), "--parallel", "4")
    starts = [status.started for _, _, status in shop.cells() if status]
    ends = [status.ended or 0.0 for _, _, status in shop.cells() if status]
    assert max(starts) < min(ends)
    assert shop.states() == ["done"] * 4


def test_cells_at_once_each_see_gpus_of_their_own(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    settings = load({}, None, shop.environment, shop.directory)
    machine = Hardware(cores=8, memory=1 << 34, gpus=(1 << 34,) * 4)
    seen = []
    for number, runner in enumerate(worker_runners(settings, machine, 2, lambda _: None)):
        log = str(shop.directory / f"{number}.log")
        argv = ("sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
        job = Job(name=f"j{number}", environment="train", argv=argv, cwd=str(shop.directory), log=log, deadline=30)
        assert runner.run(job).kind == "ok"
        seen.append(Path(log).read_text().strip())
    assert seen == ["0,1", "2,3"]
    with pytest.raises(UsageError, match=r"--parallel 5: there is no GPU for each, only 4"):
        worker_runners(settings, machine, 5, lambda _: None)


def test_the_environment_has_no_say_in_what_is_trained(shop: Workshop) -> None:
    file = str(shop.config(hyperparameters=shop.hyperparameters(learning_rate="1e-6")))
    shop.environment.update(FT_CUTOFF_LEN="16", FT_TEMPLATE="qwen", FT_MAX_EPOCHS="1")
    shop.run("sweep", file)
    trained = yaml.safe_load((shop.cells()[0][0] / "train.yaml").read_text())
    assert trained["cutoff_len"] == 1024, "what the model has, or 2048 where it has more"
    assert "template" not in trained


def test_cells_that_share_a_name_are_kept_apart_and_said_to_share_it(shop: Workshop) -> None:
    file = str(shop.config(hyperparameters=shop.hyperparameters(learning_rate="1e-6", batch_size=[8, 16])))
    said = shop.run("sweep", file)
    assert "2 cells are called Copa_fo_lora_copa_mezo_v1_1_6: their experiment_config.yaml tells them apart" in said
    (first, one, _), (second, two, _) = shop.cells()
    assert (one.hyperparameters["batch_size"], two.hyperparameters["batch_size"]) == (8, 16)
    assert first.parent == second.parent
    assert second.name == f"{first.name}_2"


def test_data_without_metadata_are_trained_on(shop: Workshop) -> None:
    shop.lay_data("plain/my_rows", metadata=False)
    shop.run("sweep", two_cells(shop, data={"path": "plain/my_rows"}))
    path, experiment, _ = shop.cells()[0]
    assert path.parent.name == "Copa_fo_lora_my_rows_1_6"
    assert experiment.data.metadata == ""
    assert len(experiment.data.files) == 1


def test_data_that_are_not_there_end_the_sweep_before_it_begins(shop: Workshop) -> None:
    said = shop.run("sweep", two_cells(shop, data={"path": "no/such/data/here"}), code=2)
    assert "data.path 'no/such/data/here' is neither a directory" in said
    assert not (shop.directory / "Results_v2").exists()


def test_a_cell_and_a_run_by_hand_are_listed_traced_and_compared_alike(shop: Workshop) -> None:
    shop.run("sweep", str(shop.config(hyperparameters=shop.hyperparameters(learning_rate="1e-6"))))
    arguments = {"run_name": "first", "model_name_or_path": LLAMA, "dataset": COPA, "max_steps": "4", "seed": "0"}
    words = [word for name, value in arguments.items() for word in (f"--{name}", value)]
    shop.run("train", *words, "--learning_rate", "1e-6", "--per_device_train_batch_size", "16")
    assert "Total: 1 experiment purpose, 1 training experiment, 1 single run" in shop.run("list")
    assert "2 results trained on it" in shop.run("trace", COPA)
    sweep = shop.cells()[0][1].sweep
    said = shop.run("compare", f"{sweep}:1", "outputs/llama-3.2-1b/first/lora")
    assert "recipes differ in\n  max_steps: 3 -> 4\n\n" in said


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_that_is_evaluated_can_be_compared(tmp_path: Path, environments: Environments) -> None:
    shop = workshop(tmp_path, environments.python("train").parent.parent.parent)
    file = shop.config(
        model="demo/tiny",
        method="fo_full",
        data={"path": "demo/reverse"},
        hyperparameters={"learning_rate": ["1e-6", "2e-3"], "batch_size": 32, "epochs": 2},
        evaluation={"benchmarks": ["reverse"], "limit": 40},
    )
    shop.run("sweep", str(file))
    sweep = shop.cells()[0][1].sweep
    assert "B is better than A" in shop.run("compare", f"{sweep}:1", f"{sweep}:2")


@pytest.mark.slow
def test_the_scan_with_real_trainings_killed_and_continued(tmp_path: Path, environments: Environments) -> None:
    shop = workshop(tmp_path, environments.python("train").parent.parent.parent)
    name = "demo/tiny"
    file = str(shop.config(model=name, hyperparameters=shop.hyperparameters(batch_size=4)))
    process = shop.start("sweep", file)
    until(lambda: second_begun(shop), 300.0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    shop.run("sweep", file, "--parallel", "2")
    assert sorted(shop.states()) == ["done"] * 4 + ["killed"]
    model = tmp_path / "Results_v2/hyperparameter_tuning" / name
    assert sorted(path.name for path in model.iterdir()) == sorted(NAMES)
    weights = set()
    for path, _, status in shop.cells():
        if status is None or status.state != "done":
            continue
        found = metrics(path)
        assert found is not None
        assert found.checkpoint.steps == 3
        assert (path / "model/adapter_model.safetensors").stat().st_size > 0
        weights.add(found.checkpoint.weights)
    assert len(weights) == 4
