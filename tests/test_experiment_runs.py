"""`ftloop train` and `ftloop eval` from the command line to the files they leave, with stand-ins for what trains."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from agent.errors import MachineError, RunFailed, StudyError, UsageError
from agent.experiments import calls
from agent.experiments.arguments import About, TrainArguments
from agent.journal import Journal
from agent.records import Checkpoint, Proposal, Scores
from agent.run.environments import Environments
from agent.store import Workspace
from scenarios.finetune import by_hand, keys
from scenarios.finetune.keys import Open
from tests.end_to_end.command import BIN, ROOT, User
from tests.test_models import make_model, write_safetensors

# What trains; the seed says how it behaves.
TRAINER = """#!{python}
import json, pathlib, struct, sys, time, yaml
settings = yaml.safe_load(open("train.yaml"))
model = pathlib.Path(settings["output_dir"]); model.mkdir(parents=True)
slept = pathlib.Path(settings["model_name_or_path"], "slept")
if settings["seed"] == 99 and not slept.exists():
    slept.touch()
    time.sleep(120)
if settings["seed"] == 13: sys.exit("ValueError: no luck")
steps = settings.get("max_steps", 4)
history = [{{"step": step, "loss": 1.0 / step}} for step in range(1, steps + 1)]
(model / "trainer_state.json").write_text(json.dumps({{"global_step": steps, "log_history": history}}))
(model / "all_results.json").write_text(json.dumps({{"train_runtime": 0.5}}))
(model / "README.md").write_text("- PEFT 0.18.1\\n- Transformers 4.57.6\\n")
(model / "checkpoint-2").mkdir(); (model / "checkpoint-2" / "half").touch()
lora = settings["finetuning_type"] == "lora"
header = json.dumps({{"w": {{"dtype": "F32", "shape": [settings["seed"] + 1], "data_offsets": [0, 4]}}}}).encode()
weights = struct.pack("<Q", len(header)) + header + bytes(4)
(model / ("adapter_model.safetensors" if lora else "model.safetensors")).write_bytes(weights)
(model / ("adapter_config.json" if lora else "config.json")).write_text("{{}}")
(model / "tokenizer.json").write_text("{{}}")
"""
# What scores: every second question is right.
SCORER = """#!{python}
import json, pathlib, sys
request = json.load(open(sys.argv[2]))
output = pathlib.Path(request["output"])
if request["samples"] == 7: sys.exit("ValueError: cannot")
asked = [json.loads(line) for line in open(request["questions"])]
answers = [{{"id": one["id"], "score": float(i % 2), "response": "r"}} for i, one in enumerate(asked)]
for one in answers: one["scores"] = [one["score"]] * request["samples"] if request["samples"] > 1 else []
(output / "questions.jsonl").write_text("".join(json.dumps(one) + "\\n" for one in answers))
mean = sum(one["score"] for one in answers) / len(answers)
settings = {{"fewshot": request["fewshot"], "versions": {{"lm_eval": "1.2.3"}}, "adapter": request["adapter"]}}
(output / "result.json").write_text(json.dumps({{"n": len(answers), "mean": mean, "settings": settings}}))
"""
MODEL = "meta-llama/Llama-3.2-1b"


@dataclass
class Lab:
    """A person's directory: a model under its hub name, data, and environments whose programs are stand-ins."""

    home: Path
    variables: dict[str, str] = field(default_factory=dict)

    def train(self, *words: str, kind: type[TrainArguments] = TrainArguments) -> int:
        needed = ("--model_name_or_path", MODEL, "--dataset", str(self.home / "data.jsonl"))
        return calls.train([*needed, *words], kind, self.home)

    def run(self, name: str = "first", method: str = "lora") -> Path:
        return self.home / "outputs/llama-3.2-1b" / name / method

    def given(self, name: str = "first", method: str = "lora") -> dict[str, Any]:
        """What the trainer was given."""
        found: dict[str, Any] = yaml.safe_load((self.run(name, method) / "train/train.yaml").read_text())
        return found


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    home = tmp_path / "my lab"  # a blank, for what is quoted
    home.mkdir()
    make_model(home / "workspace/models" / MODEL)
    rows = [{"prompt": f"say {n}", "response": str(n)} for n in range(20)]
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [{"question": f"what is {n} plus {n}?", "answer": str(2 * n)} for n in range(30)]
    for name in ("gsm8k", "math"):
        (home / "workspace/benchmarks" / name).mkdir(parents=True)
        for split in ("train", "test"):
            text = "".join(json.dumps(row) + "\n" for row in questions)
            (home / "workspace/benchmarks" / name / f"{split}.jsonl").write_text(text)
    environments = Environments(home / "environments")
    programs = {"train": ("llamafactory-cli", "python", TRAINER), "bench": ("python", "python", SCORER)}
    for name, (*files, text) in programs.items():
        binaries = environments.python(name).parent  # type: ignore[arg-type]
        binaries.mkdir(parents=True)
        (binaries.parent / ".complete").touch()
        for file in files:
            (binaries / file).write_text(text.format(python=sys.executable))
            (binaries / file).chmod(0o755)
    variables = {
        "FT_ENVIRONMENTS": str(home / "environments"),
        "FT_RUNNER": "local",
        "FT_FILE_PATH": str(home / "workspace"),
        "FT_BENCHMARK_DATASETS": '["gsm8k"]',
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(home)
    return Lab(home, variables)


def test_a_training_leaves_exactly_these_files(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k") == 0
    run = lab.run()
    assert sorted(path.name for path in run.iterdir()) == [
        *(".ftloop", "eval.sh", "eval_config.yaml", "train", "train_config.yaml")
    ]
    assert {path.name for path in (run / "train").iterdir()} >= {
        *("adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "train.yaml", "train.log")
    }
    assert not list(run.rglob("checkpoint-*")), "nobody asked for checkpoints"
    assert not list(run.rglob("special_token_config.json"))
    assert (run / "eval.sh").stat().st_mode & stat.S_IXUSR
    assert f"trained: {run / 'train'} (4 steps" in capsys.readouterr().out
    config = yaml.safe_load((run / "eval_config.yaml").read_text())
    assert (config["model_name_or_path"], config["adapter_name_or_path"]) == (MODEL, str(run / "train"))
    assert (config["run_name"], config["model_name"], config["finetuning_type"]) == ("first", "llama-3.2-1b", "lora")
    (entry,) = Workspace(lab.home / "workspace").index()
    assert (entry.kind, entry.path) == ("run", str(run))
    assert entry.id.startswith("llama-3.2-1b_first_sft-")


def test_a_run_is_journaled_as_a_study_is(lab: Lab) -> None:
    lab.train("--run_name", "first", "--learning_rate", "1e-3", "--description", "why not", "--seed", "5")
    state = Journal(lab.run() / ".ftloop/journal.jsonl").state
    proposal = state.result(1, "propose", Proposal)
    assert proposal is not None
    assert (proposal.author, proposal.hypothesis, proposal.recipe.seed) == ("by hand", "why not", 5)
    assert proposal.recipe.train["learning_rate"] == 1e-3
    checkpoint = state.result(1, "train", Checkpoint)
    assert checkpoint is not None
    assert checkpoint.path == str(lab.run() / "train")
    assert [point.loss for point in checkpoint.losses] == [1.0, 0.5, 1 / 3, 0.25]
    assert state.calls[-1].ended == "done"


@dataclass(frozen=True, kw_only=True)
class More(TrainArguments):
    torch_empty_cache_steps: Annotated[int | None, About("steps between two of them", part="trainer")] = None


@pytest.mark.parametrize("place", ["the argument class", "by_hand.KEYS", "keys.OPEN"])
def test_one_added_field_reaches_the_trainer_and_the_snapshot(
    lab: Lab, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: type[TrainArguments] = More if place == "the argument class" else TrainArguments
    if (table := {"by_hand.KEYS": by_hand.KEYS, "keys.OPEN": keys.OPEN}.get(place)) is not None:
        monkeypatch.setitem(table, "torch_empty_cache_steps", Open(why="steps between two of them"))
    lab.train("--run_name", "first", "--torch_empty_cache_steps", "4", kind=kind)
    assert lab.given()["torch_empty_cache_steps"] == 4
    assert yaml.safe_load((lab.run() / "train_config.yaml").read_text())["torch_empty_cache_steps"] == 4
    lab.train("--run_name", "second", kind=kind)
    assert "torch_empty_cache_steps" not in lab.given("second"), "unset is the trainer's own default"


def test_the_environment_has_no_say_in_what_is_trained(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.train("--run_name", "first")
    for name, value in {"CUTOFF_LEN": "17", "TEMPLATE": "qwen", "MAX_EPOCHS": "0.5", "CONTAMINATION": "remove"}.items():
        monkeypatch.setenv(f"FT_{name}", value)
    monkeypatch.setenv("FT_COLUMNS", '{"prompt": "nothing", "response": "nothing"}')
    lab.train("--run_name", "second")
    one, other = (text_of(lab.run(name)).replace(f"/{name}/", "/") for name in ("first", "second"))
    assert one == other


def text_of(run: Path) -> str:
    return (run / "train/train.yaml").read_text()


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--finetuning_type", "full", "--learning_rate", "1e-6", "--use_muon"),
        ("--finetuning_type", "freeze", "--warmup_steps", "3"),
        ("--lr_scheduler_type", "constant", "--lora_target", "q_proj,v_proj", "--use_dora=true", "--bf16=false"),
        ("--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs.min_lr_rate", "1e-1"),
        ("--early_stopping_steps", "2", "--val_size", "0.2", "--max_steps", "9"),
        ("--early_stopping_steps=2", "--val_size=4", "--eval_strategy=epoch", "--early_stopping_threshold=1e-2"),
        ("--save_strategy", "steps", "--save_steps", "2", "--plot_loss", "--seed", "7"),
        ("--special_tokens", '{"<|B|>": "go back"}', "--init_special_tokens", "description", "--token_noise", "0.1"),
        ("--special_tokens", "<|B|>,<|C|>", "--replace_text", '{"@@": "<think>"}', "--trainer", "direct"),
    ],
)
def test_a_snapshot_trains_the_same_to_the_byte(lab: Lab, words: tuple[str, ...]) -> None:
    lab.train("--run_name", "first", *words)
    (run,) = (path.parent for path in lab.home.glob("outputs/*/first/*/train_config.yaml"))
    before, given = (run / "train_config.yaml").read_bytes(), text_of(run)
    (lab.home / "kept.yaml").write_bytes(before)
    assert calls.train(["--config", "kept.yaml", "--overwrite"], cwd=lab.home) == 0
    assert text_of(run) == given
    assert (run / "train_config.yaml").read_bytes() == before


def test_early_stopping_says_what_it_implies_and_what_it_needs(lab: Lab) -> None:
    with pytest.raises(UsageError, match="command line: early_stopping_steps: needs rows to evaluate on; set val_size"):
        lab.train("--run_name", "first", "--early_stopping_steps", "3")
    lab.train("--run_name", "first", "--early_stopping_steps", "3", "--val_size", "0.1", "--eval_steps", "5")
    given = lab.given()
    wanted = {
        **{"early_stopping_steps": 3, "val_size": 0.1, "load_best_model_at_end": True, "greater_is_better": False},
        **{"metric_for_best_model": "eval_loss", "eval_strategy": "steps", "save_strategy": "steps"},
        **{"eval_steps": 5.0, "save_steps": 5.0, "save_total_limit": 1},
    }
    assert wanted.items() <= given.items()
    snapshot = yaml.safe_load((lab.run() / "train_config.yaml").read_text())
    assert wanted.items() <= snapshot.items()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--learning_rate", "3"), "command line: learning_rate: must be at most 1, is 3"),
        (("--freeze_trainable_layers", "2"), "has no effect with finetuning_type: lora"),
        (("--finetuning_type=full", "--additional_target=embed_tokens"), "additional_target: has no effect"),
        (("--max_steps", "0"), "max_steps: must be at least 1, is 0"),
        (("--special_tokens=<a>", "--init_special_tokens=description"), "needs a description of <a>"),
        (("--special_tokens=<a>", "--init_special_tokens=semantic"), "similar_words: .* needs words like <a>"),
        (("--replace_text={'x': 3}",), "command line: replace_text: .* holds something else than it may"),
        (("--replace_text={'': '<a>'}",), "replace_text: an empty text is no text to replace"),
        (("--special_tokens=<a>", "--trainer=llama_factory"), "LLaMA-Factory cannot do special_tokens"),
        (("--special_tokens=<a>", "--neat_packing"), "neat_packing: the direct trainer has no such thing"),
        (("--special_tokens=<a>", "--additional_target=norm,lm_head"), "lm_head: special tokens have their rows"),
        (("--special_tokens=<a>", "--template=qwen"), "template: the direct trainer renders with the model's own"),
        (("--trainer=direct", "--finetuning_type=freeze"), "the direct trainer does lora and full, not freeze"),
        (("--model_name=../x",), "model_name: '../x' cannot name a directory"),
        (("--columns.prompt=x", "--columns.response=y"), "has no column x, y"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    lab: Lab, words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lab.train("--run_name", "first", *words)
    assert not (lab.home / "outputs").exists()


def test_the_same_command_again_trains_nothing_twice(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.train("--run_name", "first")
    before = (lab.run() / "train/adapter_model.safetensors").stat()
    assert lab.train("--run_name", "first") == 0
    assert (lab.run() / "train/adapter_model.safetensors").stat() == before
    assert "train: kept from an earlier call" in capsys.readouterr().out


def test_another_run_of_the_same_name_is_refused(lab: Lab) -> None:
    lab.train("--run_name", "first")
    weights = (lab.run() / "train/adapter_model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"is another run \(seed: 42, now 43; learning_rate: 0.0001, now 0.0002\)"):
        lab.train("--run_name", "first", "--seed", "43", "--learning_rate", "2e-4")
    (lab.home / "data.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    with pytest.raises(UsageError, match="was trained on other data"):
        lab.train("--run_name", "first")
    assert (lab.run() / "train/adapter_model.safetensors").read_bytes() == weights
    (lab.run() / "eval/gsm8k").mkdir(parents=True)
    assert lab.train("--run_name", "first", "--seed", "43", "--overwrite") == 0
    assert (lab.run() / "train/adapter_model.safetensors").read_bytes() != weights
    assert not (lab.run() / "eval").exists(), "those were scores of other weights"
    assert lab.train("--run_name", "first", "--finetuning_type", "full") == 0, "another method is another directory"


def test_a_failed_training_says_why_and_may_be_tried_again_otherwise(lab: Lab) -> None:
    with pytest.raises(RunFailed, match="train:exit: ValueError: no luck") as caught:
        lab.train("--run_name", "first", "--seed", "13")
    assert caught.value.exit_code == 6
    assert Path(caught.value.hint.removeprefix("the log: ")).is_file()
    assert not (lab.run() / "train").exists()
    assert not (lab.run() / "eval.sh").exists()
    assert lab.train("--run_name", "first", "--seed", "14") == 0
    state = Journal(lab.run() / ".ftloop/journal.jsonl").state
    assert [trial.verdict for trial in state.trials] == ["failed (train:exit)"]
    assert state.result(2, "train", Checkpoint) is not None


def test_a_killed_training_is_begun_again_by_the_same_command(lab: Lab) -> None:
    words = ["--run_name", "first", "--seed", "99", "--model_name_or_path", MODEL, "--dataset", "data.jsonl"]
    process = start(lab, "train", *words)
    wait_for(lab.home / "workspace/models" / MODEL / "slept")
    with pytest.raises(StudyError, match=f"{lab.run()}: this run is being worked on by process {process.pid}"):
        calls.train(words, cwd=lab.home)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert calls.train(words, cwd=lab.home) == 0
    state = Journal(lab.run() / ".ftloop/journal.jsonl").state
    assert state.attempts[(1, "train")] == 2
    assert (lab.run() / "train/adapter_model.safetensors").exists()


def start(lab: Lab, *words: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "agent.cli", *words],
        cwd=lab.home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_an_explicit_output_dir_holds_everything_and_nothing_of_others_is_touched(lab: Lab) -> None:
    lab.train("--run_name", "first", "--output_dir", "here")
    assert {"adapter_model.safetensors", "train_config.yaml", "eval.sh", ".ftloop"} <= {
        path.name for path in (lab.home / "here").iterdir()
    }
    assert not (lab.home / "outputs").exists()
    (lab.home / "here/notes.txt").touch()
    lab.train("--run_name", "first", "--output_dir", "here", "--finetuning_type", "full", "--overwrite")
    names = {path.name for path in (lab.home / "here").iterdir()}
    assert {"model.safetensors", "config.json", "notes.txt"} <= names
    assert not {"adapter_model.safetensors", "adapter_config.json"} & names
    (lab.home / "mine").mkdir()
    (lab.home / "mine/thesis.tex").touch()
    with pytest.raises(UsageError, match="holds files that are no run's"):
        lab.train("--run_name", "first", "--output_dir", "mine", "--overwrite")
    assert [path.name for path in (lab.home / "mine").iterdir()] == ["thesis.tex"]


def test_the_direct_trainer_is_chosen_for_what_only_it_can_do(lab: Lab) -> None:
    lab.train(
        "--run_name", "first", "--special_tokens", "<a>", "--similar_words.<a>=[b, c]", "--init_special_tokens=semantic"
    )
    given = lab.given()
    assert given["special_tokens"] == {"<a>": ""}
    assert given["similar_words"] == {"<a>": ["b", "c"]}
    assert yaml.safe_load((lab.run() / "train_config.yaml").read_text())["trainer"] == "direct"
    lab.train("--run_name", "second")
    assert yaml.safe_load((lab.run("second") / "train_config.yaml").read_text())["trainer"] == "llama_factory"
    assert not {"special_tokens", "init_special_tokens", "token_noise"} & lab.given("second").keys()


def test_rows_that_hold_questions_mark_the_scores(lab: Lab) -> None:
    row = {"prompt": "what is 7 plus 7? tell me, what is 7 plus 7, please?", "response": "14"}
    rows = [{"question": "what is 7 plus 7? tell me, what is 7 plus 7, please?", "answer": "14"}]
    rows += [{"question": f"how many is {n} and then {n} again?", "answer": "1"} for n in range(20)]
    for split in ("train", "test"):
        path = lab.home / f"workspace/benchmarks/gsm8k/{split}.jsonl"
        path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    with (lab.home / "data.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UsageError, match=r"1 of 21 rows hold questions of lm_eval-gsm8k \(contamination=refuse"):
        lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k", "--contamination", "refuse")
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k")  # what was refused is in nobody's way
    calls.evaluate(["--config", str(lab.run() / "eval_config.yaml")], cwd=lab.home)
    results = json.loads((lab.run() / "eval/lm_eval-gsm8k/results.json").read_text())
    assert "contaminated: 1 of 21 rows" in results["results"]["lm_eval-gsm8k"]["marked"]


# Evaluation


def evaluated(lab: Lab, *words: str) -> dict[str, Any]:
    assert calls.evaluate(["--config", str(lab.run() / "eval_config.yaml"), *words], cwd=lab.home) == 0
    found: dict[str, Any] = json.loads((lab.run() / "eval/lm_eval-gsm8k/results.json").read_text())
    return found


def test_an_evaluation_asks_all_of_a_benchmark_and_says_what_it_found(lab: Lab) -> None:
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k")
    found = evaluated(lab)
    result = found["results"]["lm_eval-gsm8k"]
    assert (found["run"], found["split"], found["adapter"]) == (
        "llama-3.2-1b_first_sft",
        "whole",
        str(lab.run() / "train"),
    )
    assert (result["n"], result["mean"], result["unscored"]) == (30, 0.5, 0)
    assert result["interval"][0] < 0.5 < result["interval"][1]
    assert 0.09 < result["stderr"] < 0.1
    assert result["versions"] == {"lm_eval": "1.2.3"}
    assert result["settings"]["adapter"] == str(lab.run() / "train")
    assert len(Path(result["questions"]).read_text().splitlines()) == 30
    state = Journal(lab.run() / ".ftloop/journal.jsonl").state
    kept = state.result(1, "eval/lm_eval-gsm8k", Scores)
    assert kept is not None
    assert kept.scores[0].mistakes == (), "no question of a sealed half is kept for any prompt"


def test_results_are_kept_and_never_replaced_in_silence(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k")
    first = evaluated(lab)
    assert evaluated(lab) == first
    assert "eval/lm_eval-gsm8k: kept from an earlier call" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"is another evaluation's \(limit: None, now 10\)"):
        evaluated(lab, "--limit", "10")
    assert evaluated(lab, "--limit", "10", "--overwrite")["results"]["lm_eval-gsm8k"]["n"] == 10
    assert (lab.run() / "eval_config.yaml").read_text().count("limit: null") == 1, "the run's own stays as it was"
    with pytest.raises(UsageError, match="limit: 10, now None"):
        evaluated(lab)
    for name in ("results.json", "eval_config.yaml"):
        (lab.run() / "eval/lm_eval-gsm8k" / name).write_text("[")
        with pytest.raises(UsageError, match=r"is another evaluation's .*it cannot be read: "):
            evaluated(lab)


def test_weights_that_changed_are_another_evaluation(lab: Lab) -> None:
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k")
    evaluated(lab)
    write_safetensors(lab.run() / "train/adapter_model.safetensors", {"w": [7]})
    with pytest.raises(UsageError, match="the weights are other ones"):
        evaluated(lab)


def test_scores_of_other_weights_are_never_shown_for_these(lab: Lab) -> None:
    """Not even where the results of then were removed by hand, and only the journal still knows them."""
    words = ["--run_name", "zero", "--model_name_or_path", MODEL, "--tasks", "lm_eval:gsm8k", "--limit", "12"]
    results = lab.run("zero", "base") / "eval/lm_eval-gsm8k/results.json"
    keys = []
    for hidden in (9, 10):
        write_safetensors(lab.home / "workspace/models" / MODEL / "model.safetensors", {"embed": [10, hidden]})
        calls.evaluate(words, cwd=lab.home)
        keys.append(json.loads(results.read_text())["results"]["lm_eval-gsm8k"]["key"])
        results.unlink()
    assert keys[0] != keys[1]


def test_the_script_reproduces_the_evaluation_from_anywhere(lab: Lab, tmp_path: Path) -> None:
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k", "--limit", "12")
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(ROOT), **lab.variables}
    results = []
    for _ in range(2):
        subprocess.run([lab.run() / "eval.sh"], cwd=tmp_path, env=environ, check=True, stdout=subprocess.DEVNULL)
        file = lab.run() / "eval/lm_eval-gsm8k/results.json"
        results.append(json.loads(file.read_text())["results"]["lm_eval-gsm8k"])
        file.unlink()
    assert results[0] == results[1]
    assert results[0]["n"] == 12


def test_the_script_of_a_directory_that_was_moved_evaluates_what_lies_there(lab: Lab, tmp_path: Path) -> None:
    """Also out of a directory whose name a shell would read otherwise, and which has a package `agent` of its own."""
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k", "--limit", "12")
    (lab.home / "agent").mkdir()
    (lab.home / "agent/__init__.py").write_text("raise SystemExit('another one')")
    moved = tmp_path / "a 'new' $(place)"
    lab.run().rename(moved)
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(ROOT), **lab.variables}
    subprocess.run([moved / "eval.sh", "--samples", "1"], cwd=tmp_path, env=environ, check=True)
    found = json.loads((moved / "eval/lm_eval-gsm8k/results.json").read_text())
    assert found["adapter"] == str(moved / "train")
    assert found["results"]["lm_eval-gsm8k"]["n"] == 12
    assert not lab.run().exists()


def test_several_tasks_are_joined_and_a_base_model_needs_no_training(lab: Lab) -> None:
    words = ["--run_name", "zero", "--model_name_or_path", MODEL, "--tasks", "lm_eval:gsm8k", "gsm8k", "--samples", "1"]
    assert calls.evaluate(words, cwd=lab.home) == 0
    run = lab.run("zero", "base")
    found = json.loads((run / "eval/lm_eval-gsm8k_gsm8k/results.json").read_text())
    assert list(found["results"]) == ["lm_eval-gsm8k", "gsm8k"]
    assert (run / "eval.sh").exists()
    assert (run / "eval_config.yaml").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--num_fewshot", "3"), "is asked with 0 or 5 examples, not 3"),
        (("--tasks", "gsm9k"), "unknown benchmark 'gsm9k'"),
        (("--run_name", "a/b", "--dry_run"), "run_name: 'a/b' cannot name a directory"),
        (("--adapter_name_or_path", "nowhere"), "is not a directory"),
        (("--limit", "0"), "limit"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(lab: Lab, words: Sequence[str], message: str) -> None:
    needed = ["--run_name", "zero", "--model_name_or_path", MODEL, "--tasks", "lm_eval:gsm8k"]
    with pytest.raises(UsageError, match=message):
        calls.evaluate([*needed, *words], cwd=lab.home)
    assert not list(lab.home.glob("outputs/**/results.json"))


def test_a_failed_evaluation_is_told_and_may_be_repeated(lab: Lab) -> None:
    lab.train("--run_name", "first", "--tasks", "lm_eval:gsm8k")
    with pytest.raises(RunFailed, match="bench: lm_eval-gsm8k: ValueError: cannot"):
        evaluated(lab, "--samples", "7")
    assert evaluated(lab)["results"]["lm_eval-gsm8k"]["n"] == 30


# The command line itself


def test_a_dry_run_prints_every_argument_with_its_place_and_writes_nothing(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    (lab.home / "a.yaml").write_text("seed: 3\n")
    assert lab.train("--run_name", "r", "--dry_run", "--config", "a.yaml", "learning_rate=1e-6") == 0
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert shown["seed"] == "3 (a.yaml:1)"
    assert shown["learning_rate"] == "1e-06 (command line)"
    assert shown["stage"] == "'sft' (default)"
    assert not (lab.home / "outputs").exists()


@pytest.mark.parametrize("word", ["train", "eval"])
def test_help_answers_at_once_and_names_the_exit_codes(tmp_path: Path, word: str) -> None:
    user = User(tmp_path)
    user.run("ftloop", word, "--help")  # warm
    started = time.monotonic()
    output = user.run("ftloop", word, "--help")
    assert time.monotonic() - started < 0.6 * (1 + os.getloadavg()[0])
    assert "exit codes:\n  0 " in output
    assert "\n  6 " in output
    assert word in user.run("ftloop", "--help")


def test_a_snapshot_is_where_another_run_starts_from(lab: Lab) -> None:
    """As the README has it, with its own names."""
    words = "ftloop train --config outputs/tiny/first/full/train_config.yaml --run_name second --learning_rate 1e-3"
    lab.train("--run_name", "first", "--model_name", "tiny", "--finetuning_type", "full", "--seed", "4")
    assert calls.train(shlex.split(words)[2:], cwd=lab.home) == 0
    first, second = (
        yaml.safe_load((lab.home / f"outputs/tiny/{name}/full/train_config.yaml").read_text())
        for name in ("first", "second")
    )
    assert {key for key in first if first[key] != second[key]} == {"run_name", "learning_rate"}
    assert (second["seed"], second["learning_rate"]) == (4, 1e-3)


def test_preferences_are_trained_on_in_their_stage_and_nothing_else_is(lab: Lab) -> None:
    pairs = [{"prompt": f"say {n}", "chosen": str(n), "rejected": "no"} for n in range(20)]
    (lab.home / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    with pytest.raises(UsageError, match="command line: stage: dpo needs pairs of a chosen and a rejected answer"):
        lab.train("--run_name", "first", "--stage", "dpo")
    with pytest.raises(UsageError, match="stage: kto needs answers labelled true or false"):
        lab.train("--run_name", "first", "--stage", "kto", "--dataset", "pairs.jsonl")
    assert not (lab.home / "outputs").exists()
    lab.train("--run_name", "first", "--stage", "dpo", "--dataset", "pairs.jsonl", "--pref_beta", "0.2")
    assert (lab.given()["stage"], lab.given()["pref_beta"]) == ("dpo", 0.2)
    (entry,) = Workspace(lab.home / "workspace").index()
    assert entry.id.startswith("llama-3.2-1b_first_dpo-")
    given, snapshot = text_of(lab.run()), lab.run() / "train_config.yaml"
    (lab.home / "kept.yaml").write_bytes(snapshot.read_bytes())
    assert calls.train(["--config", "kept.yaml", "--overwrite"], cwd=lab.home) == 0
    assert (text_of(lab.run()), snapshot.read_bytes()) == (given, (lab.home / "kept.yaml").read_bytes())


def test_a_file_in_the_way_is_no_defect(lab: Lab) -> None:
    (lab.home / "outputs").touch()
    with pytest.raises(MachineError, match=r"outputs/.* cannot be read or written: Not a directory"):
        lab.train("--run_name", "first")


def test_errors_have_their_exit_codes(lab: Lab) -> None:
    def code(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [BIN / "ftloop", *words], cwd=lab.home, capture_output=True, text=True, env={**os.environ, **lab.variables}
        )
        return done.returncode, done.stderr

    needed = ("--model_name_or_path", MODEL, "--dataset", "data.jsonl", "--run_name", "first")
    assert code("train", *needed, "--sed=1") == (
        2,
        "ftloop: command line: there is no argument 'sed'\n  -> did you mean seed?\n",
    )
    assert code("train", *needed, "--seed=13")[0] == 6
    with (lab.run() / ".ftloop/study.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        number, said = code("train", *needed)
    assert number == 4
    assert f"{lab.run()}: this run is being worked on by process" in said


def test_the_sample_is_small_and_valid(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    sample = ROOT / "docs/examples/train.yaml"
    assert "docs/examples/train.yaml" in (ROOT / "docs/experiments.md").read_text()
    assert calls.train(["--config", str(sample), "--run_name", "first", "--dry_run"], cwd=lab.home) == 0
    assert "0.002" in capsys.readouterr().out
    assert len(yaml.safe_load(sample.read_text())) < 10


def test_every_key_that_only_people_set_has_bounds_that_its_default_keeps() -> None:
    from scenarios.finetune.arguments import schema

    for key in by_hand.KEYS:
        default = schema()[key].default
        if default is not None and key not in ("eval_steps", "max_steps"):
            method = (by_hand.KEYS[key].methods or ("lora",))[0]
            assert by_hand.problems({key: default, "finetuning_type": method}, "llama_factory") == []
