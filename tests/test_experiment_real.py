"""Runs by hand with the real trainers and the real scoring program, on the demo's tiny model."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.run.environments import Environments
from tests.end_to_end.command import ROOT, User

QUICK = ("--max_steps", "12", "--limit", "20", "--samples", "1", "--runner", "local")


def losses(run: Path) -> list[float]:
    state = json.loads((run / "train/trainer_state.json").read_text())
    return [entry["loss"] for entry in state["log_history"] if "loss" in entry]


@pytest.mark.slow
def test_a_run_by_hand_its_evaluation_and_the_same_again(tmp_path: Path, environments: Environments) -> None:
    user = User(tmp_path)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    user.run(*shlex.split("ftloop train --config docs/examples/train.yaml --run_name first"), *QUICK)
    run = tmp_path / "outputs/tiny/first/full"
    assert {path.name for path in run.iterdir()} == {
        *("train", "train_config.yaml", "eval_config.yaml", "eval.sh", ".ftloop")
    }
    output = user.run("outputs/tiny/first/full/eval.sh", env={"FT_RUNNER": "local"})
    results = json.loads((run / "eval/reverse/results.json").read_text())["results"]["reverse"]
    assert results["n"] == 20
    assert results["versions"]["transformers"].startswith("4.")
    assert f"results: {run / 'eval/reverse/results.json'}" in output
    assert not list(run.rglob("special_token_config.json"))

    kept = tmp_path / "kept"
    shutil.copytree(run, kept)
    user.run("ftloop", "train", "--config", str(kept / "train_config.yaml"), "--overwrite", "--runner", "local")
    for name in ("train_config.yaml", "train/train.yaml", "train/model.safetensors"):
        assert (run / name).read_bytes() == (kept / name).read_bytes(), name
    assert losses(run) == losses(kept)
    assert len(losses(run)) == 12


TOKENS = {
    "model_name_or_path": "demo/tiny",
    "dataset": "data.jsonl",
    "learning_rate": "2e-3",
    "special_tokens": {"<|BACKTRACK|>": "remove the last word"},
    "replace_text": {"@@think@@": "<think>"},
    "val_size": 0.25,
    "eval_steps": 3,
    "early_stopping_steps": 1,
    "early_stopping_threshold": 50.0,
    "tasks": ["reverse"],
}


TURNS = "<|im_start|>{}\n{}<|im_end|>\n"
LEARNED = {
    "answers": "21<|im_end|>\n34<|im_end|>\n",
    "cut": "21<|im_end|>\n",
    "whole": "".join(
        TURNS.format(*turn)
        for turn in (
            *(("system", "Be brief."), ("user", "Reverse 12"), ("assistant", "21")),
            *(("user", "43"), ("assistant", "34")),
        )
    ),
    "plain": "21<|im_end|>34<|im_end|>",
    "plain whole": "Be brief.Reverse 1221<|im_end|>4334<|im_end|>",
}
"""What the direct trainer takes the loss over: the answers with their ends, in each turn."""


@pytest.mark.slow
def test_special_tokens_are_trained_saved_and_the_same_after_loading_with_lora(
    tmp_path: Path, environments: Environments
) -> None:
    """Also: early stopping, its threshold, and an evaluation of an adapter that made the vocabulary larger."""
    rows = [{"prompt": f"Reverse: {n:04d}", "response": f"@@think@@{n}<|BACKTRACK|>{n % 7}"} for n in range(64)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump(TOKENS))
    user = User(tmp_path)
    user.run("ftloop", "train", "--config", "tokens.yaml", "--run_name", "tokens", *QUICK)
    run = tmp_path / "outputs/tiny/tokens/lora"
    state = json.loads((run / "train/trainer_state.json").read_text())
    assert state["global_step"] == 6, "12 were asked for; the second evaluation was not better by 50"
    reloaded = look(environments, run)
    found, tied = reloaded["trained"], reloaded["untied"]
    assert found["single"] == [1, 1]
    assert all(found["in_the_loss"])
    assert found["loss"] == pytest.approx(metrics(run)["eval_loss"], rel=1e-5), "loaded again, it is the same model"
    assert found["tied"]
    assert min(found["moved"]) > 1e-3, "rows start as the mean of all, and were trained since"
    assert found["others_kept"], "no other row of the model was touched"
    assert all(tied.values()), tied
    assert reloaded["learned"] == LEARNED
    assert json.loads((run / "train/adapter_config.json").read_text())["trainable_token_indices"]
    user.run(str(run / "eval.sh"), env={"FT_RUNNER": "local"})
    assert json.loads((run / "eval/reverse/results.json").read_text())["results"]["reverse"]["n"] == 20


def metrics(run: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((run / "train/all_results.json").read_text())
    return found


def look(environments: Environments, run: Path) -> dict[str, Any]:
    """What tests/programs/reload_tokens.py says of a run."""
    program, folder = ROOT / "tests/programs/reload_tokens.py", ROOT / "docker/train"
    done = subprocess.run(
        [environments.python("train"), program, folder, run, "<|BACKTRACK|>", "<think>"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(run), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.long
def test_llama_factory_stops_early_too(tmp_path: Path, environments: Environments) -> None:
    words = ("--model_name_or_path", "demo/tiny", "--dataset", "demo/reverse", "--finetuning_type", "full")
    more = ("--val_size=0.1", "--early_stopping_steps=1", "--eval_steps=2", "--learning_rate=0.9", "--seed=3")
    user = User(tmp_path)
    user.run("ftloop", "train", "--run_name", "stops", *words, *more, "--max_steps", "20", "--runner", "local")
    run = tmp_path / "outputs/tiny/stops/full"
    assert json.loads((run / "train/trainer_state.json").read_text())["global_step"] < 20
    assert not list((run / "train").glob("checkpoint-*"))
