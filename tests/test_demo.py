from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agent.errors import MachineError, UsageError
from agent.records import Usage
from agent.resources import resource
from agent.run import Job, Outcome
from agent.run.environments import Environments
from scenarios import Progress, Stop
from scenarios.finetune.demo import BENCHMARK_FILE, DEMO, TRAIN_FILE, make_data, make_model
from scenarios.finetune.files import MARKER
from tests.unhurried import Unhurried


def read(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}


@dataclass
class RealBench(Unhurried):
    """Runs a job's own argv as a process, as the local runner would; `python` is the interpreter it finds."""

    directory: Path
    python: str
    name: str = "demo-model"
    jobs: list[Job] = field(default_factory=list)

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        self.jobs.append(job)
        done = subprocess.run(
            [self.python, *job.argv[1:]],
            cwd=job.cwd,
            env={"PATH": "/usr/bin:/bin", **job.variables},
            capture_output=True,
            text=True,
            check=False,
        )
        kind = "ok" if done.returncode == 0 else "exit"
        reason = f"exit code {done.returncode}"
        return Outcome(kind=kind, code=done.returncode, seconds=0.0, log=job.log, tail=done.stderr, reason=reason)  # type: ignore[arg-type]

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        raise AssertionError("no language model is asked here")

    def say(self, message: str) -> None:
        print(message)


def test_the_data_is_the_same_everywhere_and_forever(tmp_path: Path) -> None:
    make_data(tmp_path)
    assert read(tmp_path / TRAIN_FILE)[:3] == [
        {"question": "Reverse: 24864037", "answer": "73046842"},
        {"question": "Reverse: 88009108", "answer": "80190088"},
        {"question": "Reverse: 92619598", "answer": "89591629"},
    ]
    assert read(tmp_path / BENCHMARK_FILE)[:2] == [
        {"question": "Reverse: 71260798", "answer": "89706217"},
        {"question": "Reverse: 27314600", "answer": "00641372"},
    ]
    # Changing a byte makes every existing demo study another study.
    found = hashes(tmp_path)
    assert found.pop(MARKER)
    assert found == {
        BENCHMARK_FILE: "4b086533d710fe4fcaf330d80c56d923292bba347cde855b33e5fdcc0f489e14",
        TRAIN_FILE: "989ebcd527866773f18d42e5b4b42060d7c0b92e2355861206e5c2904f0f7520",
    }


def test_every_answer_is_right_and_no_benchmark_question_is_trained_on(tmp_path: Path) -> None:
    make_data(tmp_path)
    train, benchmark = read(tmp_path / TRAIN_FILE), read(tmp_path / BENCHMARK_FILE)
    demo = DEMO["demo/reverse"]
    assert (len(train), len(benchmark)) == (demo.train_rows, demo.benchmark_rows)
    questions = [row["question"] for row in train + benchmark]
    assert len(set(questions)) == len(questions)
    for row in train + benchmark:
        assert row["question"] == f"Reverse: {row['answer'][::-1]}"
        assert len(row["answer"]) == 8
        assert row["answer"].isdigit()
    assert any(row["answer"].startswith("0") for row in benchmark)  # lost, were it a number


def test_making_the_data_again_leaves_it_alone_and_repairs_what_was_changed(tmp_path: Path) -> None:
    make_data(tmp_path)
    before, written = hashes(tmp_path), (tmp_path / TRAIN_FILE).stat().st_mtime_ns
    (tmp_path / BENCHMARK_FILE).write_text("cut off in the mid")
    make_data(tmp_path)
    assert hashes(tmp_path) == before
    assert (tmp_path / TRAIN_FILE).stat().st_mtime_ns == written


def test_a_users_own_data_in_the_demos_place_is_never_touched(tmp_path: Path) -> None:
    mine = tmp_path / "demo" / "reverse"
    mine.mkdir(parents=True)
    (mine / TRAIN_FILE).write_text("mine")
    with pytest.raises(UsageError, match="something else is there"):
        make_data(mine)
    assert [(path.name, path.read_text()) for path in mine.iterdir()] == [(TRAIN_FILE, "mine")]
    assert [path.name for path in mine.parent.iterdir()] == ["reverse"]


def test_data_made_by_many_calls_at_once_is_whole_for_each_of_them(tmp_path: Path) -> None:
    make_data(tmp_path / "alone")
    expected = hashes(tmp_path / "alone")
    for attempt in range(5):
        place, start = tmp_path / str(attempt) / "reverse", threading.Barrier(4)

        def call(place: Path = place, start: threading.Barrier = start) -> dict[str, str]:
            start.wait()
            make_data(place)
            return hashes(place)

        with ThreadPoolExecutor(4) as pool:
            assert [future.result() for future in [pool.submit(call) for _ in range(4)]] == [expected] * 4
        assert [path.name for path in place.parent.iterdir()] == ["reverse"]


def test_a_failed_job_leaves_no_model_and_says_why(tmp_path: Path) -> None:
    bench = RealBench(tmp_path, python="/bin/false")
    with pytest.raises(MachineError, match="could not be made: exit code 1"):
        make_model(bench, tmp_path / "models" / "tiny")
    assert not (tmp_path / "models" / "tiny").exists()


@pytest.mark.parametrize("make", [lambda p: (p.mkdir(), (p / "config.json").write_text("{}")), lambda p: p.touch()])
def test_what_ftloop_did_not_make_is_never_replaced(tmp_path: Path, make: object) -> None:
    make(tmp_path / "tiny")  # type: ignore[operator]
    with pytest.raises(UsageError, match="something else is there"):
        make_model(RealBench(tmp_path, python="/bin/false"), tmp_path / "tiny")
    assert (tmp_path / "tiny").exists()


def test_a_model_is_made_once_in_the_training_environment_seeing_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    stand_in = tmp_path / "python"  # makes the directory that the real script would fill
    stand_in.write_text(
        '#!/bin/sh\nmkdir -p "$2" && echo weights > "$2/model.safetensors" && chmod 600 "$2/model.safetensors"\n'
    )
    stand_in.chmod(0o755)
    bench = RealBench(tmp_path / "stage", python=str(stand_in))
    target = tmp_path / "models" / "demo" / "tiny"
    make_model(bench, target)
    make_model(bench, target)
    assert [job.environment for job in bench.jobs] == ["train"]
    assert {mount.path: mount.writable for mount in bench.jobs[0].mounts} == {
        str(resource("docker/train")): False,
        str(bench.directory): True,
    }
    assert sorted(path.name for path in target.iterdir()) == [MARKER, "model.safetensors"]
    assert (target / "model.safetensors").stat().st_mode & 0o444 == 0o444, "jobs may run as another user"

    (target / MARKER).write_text("{}")  # as if an older version of the script had made it
    make_model(bench, target)
    assert len(bench.jobs) == 2
    assert sorted(path.name for path in target.parent.iterdir()) == ["tiny"]


@pytest.mark.parametrize("outdated", [False, True])
def test_the_model_of_the_call_that_was_first_stays(tmp_path: Path, outdated: bool) -> None:
    """It may be in use already."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nmkdir -p "$2" && echo weights > "$2/model.safetensors"\n')
    stand_in.chmod(0o755)
    target = tmp_path / "models" / "tiny"
    for name in ("before", "slow", "fast"):
        (tmp_path / name).mkdir()
    if outdated:
        make_model(RealBench(tmp_path / "before", python=str(stand_in)), target)
        (target / MARKER).write_text("{}")
    first: list[int] = []

    class Overtaken(RealBench):
        def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
            make_model(RealBench(tmp_path / "fast", python=str(stand_in)), target)
            first.append((target / "model.safetensors").stat().st_ino)
            return super().run(job, progress)

    make_model(Overtaken(tmp_path / "slow", python=str(stand_in)), target)
    assert first == [(target / "model.safetensors").stat().st_ino]
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


def test_models_made_by_many_calls_at_once_do_not_destroy_each_other(tmp_path: Path) -> None:
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\nmkdir -p "$2" && for i in 1 2 3 4 5 6 7 8; do echo weights > "$2/$i"; done\n')
    stand_in.chmod(0o755)
    target, start = tmp_path / "models" / "tiny", threading.Barrier(4)

    class AllAtOnce(RealBench):
        def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
            outcome = super().run(job, progress)
            start.wait()
            return outcome

    def call(number: int) -> list[str]:
        (tmp_path / str(number)).mkdir()
        make_model(AllAtOnce(tmp_path / str(number), python=str(stand_in)), target)
        return sorted(path.name for path in target.iterdir())

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == [[*"12345678", MARKER]] * 4
    assert [path.name for path in target.parent.iterdir()] == ["tiny"]


@pytest.mark.slow
def test_the_real_model_is_tiny_complete_and_the_same_on_every_run(tmp_path: Path, environments: Environments) -> None:
    made = []
    for attempt in ("first", "second"):
        (tmp_path / attempt).mkdir()
        bench = RealBench(tmp_path / attempt, python=str(environments.python("train")))
        make_model(bench, tmp_path / f"{attempt}-model")
        made.append(hashes(tmp_path / f"{attempt}-model"))
    assert made[0] == made[1]
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(made[0])
    assert (tmp_path / "first-model" / "model.safetensors").stat().st_size < 4_000_000
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in (tmp_path / "first-model").iterdir())

    look = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
turn = [{"role": "user", "content": "Reverse: 0123"}]
prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True)
text = "Grüße, 東京 🎉\\n\\n 12.50"
print(json.dumps({
    "prompt": " ".join(tokenizer.convert_ids_to_tokens(prompt)),
    "round trip": tokenizer.decode(tokenizer.encode(text)) == text,
    "inputs": tokenizer.model_input_names,
    "end": tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id),
    "greedy": model.generation_config.do_sample is False,
    "tied": model.config.tie_word_embeddings,
}))
"""
    python = environments.python("train")
    done = subprocess.run(
        [python, "-c", look, tmp_path / "first-model"], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == {
        "prompt": "<|im_start|> user Ċ Reverse : Ġ 0 1 2 3 <|im_end|> Ċ <|im_start|> assistant Ċ",
        "round trip": True,
        "inputs": ["input_ids", "attention_mask"],
        "end": "<|im_end|>",
        "greedy": True,
        "tied": True,
    }
