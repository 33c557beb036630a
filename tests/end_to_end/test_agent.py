"""One study as an agent lives it, through the command line: six trials of real trainings, an agent over real HTTP.

The agent answers well only to what it must have been told by then; to anything else it talks about the weather, and
the study ends without the story.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.journal import Journal, State
from agent.records import Proposal, Recipe, Trial
from agent.run.environments import Environments
from scenarios.finetune.benchmarks import resolve
from tests.end_to_end.command import User
from tests.sealed import find_leaks, texts_below
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer

pytestmark = pytest.mark.slow

KEY = "sk-very-secret-key"
FULL = {"finetuning_type": "full", "learning_rate": 1e-3, "per_device_train_batch_size": 32}
DRAFT = {**FULL, "num_train_epochs": 2}
BEST = {**FULL, "num_train_epochs": 3}
HUNGRY = {**FULL, "per_device_train_batch_size": 1024, "num_train_epochs": 1}
PRIVATE_MEMORY = 2_950_000
"""KiB that a training gets: 1,024 rows of the demo need 3.4 million, 512 rows 2.5 million."""

BROKEN_SCRIPT = "import argparse\nraise SystemExit('no such column: text')\n"
GOOD_SCRIPT = """\
import argparse
import json

parser = argparse.ArgumentParser()
parser.add_argument("--input")
parser.add_argument("--output")
parser.add_argument("--debug", action="store_true")
options = parser.parse_args()
with open(options.input + "/train.jsonl") as source, open(options.output, "w") as target:
    for line in source:
        row = json.loads(line)
        question, answer = list(row.values())[:2]
        target.write(json.dumps({"instruction": question, "output": answer}) + "\\n")
        if options.debug:
            continue
        target.write(json.dumps({"instruction": "Once more: " + question, "output": answer}) + "\\n")
"""


def proposal(train: dict[str, Any], change: str, mode: str = "improve", **more: Any) -> str:
    said = {"hypothesis": f"it helps to {change}", "change": change, "reason": "so", "expected": "more", "mode": mode}
    return json.dumps({**said, "parent": None, "train": train, **more})


class Agent:
    """Plays the language model; `told` is what it was told when it gave each of its answers."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str]] = []

    def __call__(self, request: ChatRequest) -> ChatAnswer:
        name, reply = next(self._fitting(request.text, str(request.messages[-1]["content"])))
        self.told.append((name, request.text))
        return ChatAnswer(reply)

    def _fitting(self, text: str, last: str) -> Iterator[tuple[str, str]]:
        """The answers to this prompt, the one that needs most first."""
        if "process_data.py" in last and "no such column: text" in last:
            yield "mended", json.dumps({"script": GOOD_SCRIPT})
        if "lesson" in last and "Propose the next trial" not in text:
            yield "lesson", json.dumps({"lesson": "Two passes are not enough; the loss was still falling at the end."})
        if "trial 5" in text and "loss was still falling" in text:
            yield "best", proposal(BEST, "train for longer", parent=1)
        if "trial 4" in text and "trial 5" not in text and "trial 1" in last and "near" in last:
            yield "another", proposal({**DRAFT, "learning_rate": 2e-4}, "take smaller steps", parent=1)
        if "trial 4" in text and "trial 5" not in text:
            yield "near-duplicate", proposal({**DRAFT, "learning_rate": 1.001e-3}, "nudge the learning rate", parent=1)
        if "per_device_train_batch_size 1024 -> 512" in text and "trial 4" not in text:
            yield "script", proposal({**FULL, "num_train_epochs": 1}, "say it twice", script=BROKEN_SCRIPT)
        if "trial 2" in text and "trial 3" not in text:
            yield "hungry", proposal(HUNGRY, "use huge batches", parent=1)
        if "verdict: better" in text and "trial 2" not in text and "learning_rate" in last and "'learning_rat'" in last:
            yield "repaired", proposal({**DRAFT, "learning_rate": 1e-5}, "be careful", parent=1)
        if "verdict: better" in text and "trial 2" not in text:
            yield "bad", proposal({**DRAFT, "learning_rat": 1e-5}, "be careful", parent=1)
        if "No trial has finished yet" in text:
            yield "draft", proposal(DRAFT, "train all of it", "draft")
        yield "lost", "It is raining again."


@pytest.fixture(scope="module")
def bounded(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The locked environments, in which a training gets no more than `PRIVATE_MEMORY`."""
    root = tmp_path_factory.mktemp("environments")
    for name in ("train", "bench"):
        real = environments.python(name).parent.parent
        if name == "bench":
            (root / real.name).symlink_to(real)
            continue
        here = root / real.name
        (here / "bin").mkdir(parents=True)
        for entry in real.iterdir():
            if entry.name != "bin":
                (here / entry.name).symlink_to(entry)
        for program in (real / "bin").iterdir():
            (here / "bin" / program.name).symlink_to(program)
        trainer = here / "bin" / "llamafactory-cli"
        trainer.unlink()
        trainer.write_text(f'#!/bin/sh\nulimit -d {PRIVATE_MEMORY}\nexec "{real}/bin/llamafactory-cli" "$@"\n')
        trainer.chmod(0o755)
    return root


@pytest.fixture(scope="module")
def story(bounded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[User, Agent, str]:
    user, agent = User(tmp_path_factory.mktemp("story")), Agent()
    with ChatServer(agent, key=KEY) as server:
        settings = {
            "FT_CHAT_API_BASE": server.url,
            "FT_CHAT_API_KEY": KEY,
            "FT_RUNNER": "local",
            "FT_ENVIRONMENTS": str(bounded),
        }
        output = user.loop("--dataset", "demo/reverse", "--loop_n", "6", "--unsafe-local", env=settings)
    return user, agent, output


def test_the_story_of_six_trials(story: tuple[User, Agent, str]) -> None:
    user, agent, output = story
    state = user.state()
    names = [name for name, _ in agent.told]
    assert "lost" not in names, agent.told[names.index("lost")][1][-3000:]
    wanted = ["draft", "bad", "repaired", "hungry", "script", "mended", "near-duplicate", "another", "best"]
    assert [name for name in names if name != "lesson"] == wanted
    draft, repaired, hungry, scripted, another, best = state.trials
    assert draft.verdict == "better"
    assert proposed(repaired).usage.calls == 2
    assert hungry.checkpoint is not None
    assert hungry.checkpoint.changed["per_device_train_batch_size"] == 512
    assert hungry.checkpoint.why.startswith("out of memory")
    assert scripted.data is not None
    assert (scripted.data.repairs, scripted.data.script, scripted.data.rows) == (1, GOOD_SCRIPT, 4000)
    assert proposed(another).usage.calls == 2
    assert (best.verdict, state.best) == ("better", 6)
    assert names.count("lesson") == 6, "each trial teaches something"
    assert all("loss was still falling" in trial.lesson for trial in state.trials)
    assert all(trial.lesson.startswith(proposed(trial).change) for trial in state.trials), "the harness's words first"
    report_tells_it(user, state, output)
    transcript_tells_it(user, len(names))
    assert state.usage.calls == len(names)
    assert state.usage.cost == 0.0, "an endpoint on this machine costs nothing"
    assert KEY not in output
    for file in user.workspace.rglob("*"):
        if file.is_file() and file.stat().st_size < 10_000_000:
            assert KEY.encode() not in file.read_bytes(), file
    replayed(user, proposed(draft).recipe)


def proposed(trial: Trial) -> Any:
    assert trial.proposal is not None
    return trial.proposal


def report_tells_it(user: User, state: State, output: str) -> None:
    (entry,) = user.studies()
    report = (Path(entry.path) / "report.md").read_text()
    for words in (
        "reply refused: 'learning_rat'",
        "1024 -\\> 512",
        "4,000 rows of its own, by process_data.py, mended 1 time",
        "reply refused: this recipe nearly equals that of trial 1",
        "| **6** | it helps to train for longer | train for longer | 1.000",
    ):
        assert words in report, words
    assert "trial 6" in output
    published = user.workspace / "output" / entry.id / "recipe.yaml"
    assert "num_train_epochs: 3" in published.read_text()


def transcript_tells_it(user: User, calls: int) -> None:
    (entry,) = user.studies()
    transcript = (Path(entry.path) / "transcript.jsonl").read_text()
    assert len(transcript.splitlines()) == calls
    for words in ("learning_rat", "nudge the learning rate", "no such column: text", "train for longer"):
        assert words in transcript, words
    assert KEY not in transcript


def replayed(user: User, recipe: Recipe) -> None:
    """The study's transcript, in a new workspace and without the endpoint, gives the same recipe byte for byte.

    Nothing is trained again, so of the first trial only; tests/test_replay.py replays whole studies.
    """
    (entry,) = user.studies()
    other = user.home / "other"
    output = user.loop(
        *("--dataset", "demo/reverse", "--step_n", "2", "--unsafe-local"),
        *("--llm", f"replay:{entry.path}/transcript.jsonl"),
        env={"FT_FILE_PATH": str(other), "FT_RUNNER": "local"},
    )
    (journal,) = other.glob("studies/*/journal.jsonl")
    again = Journal(journal).state.result(1, "propose", Proposal)
    assert again is not None
    assert msgspec.json.encode(again.recipe) == msgspec.json.encode(recipe)
    assert "the prompt differs" not in output


def test_nothing_of_the_sealed_half_is_in_a_prompt_a_log_or_a_lesson(story: tuple[User, Agent, str]) -> None:
    user, agent, output = story
    (benchmark,) = resolve(("reverse",), user.workspace, lambda *_: Path(), user.workspace / "datasets/demo/reverse")
    sealed = [str(item.row["question"]) for item in benchmark.halves.test]
    (entry,) = user.studies()
    texts = {f"prompt {number}": text for number, (_, text) in enumerate(agent.told, 1)} | {"terminal": output}
    texts |= texts_below(Path(entry.path), leave_out=["test"])  # where the sealed test's own answers lie
    assert len(texts) > 50
    assert find_leaks(texts, sealed) == []
    assert find_leaks(texts | {"planted": f"... {sealed[0]} ..."}, sealed), "the search itself can fail"
