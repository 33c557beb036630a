"""What a job leaves in the place of its results is never a way to the host's files.

The jobs run in real containers; there, planting a link is allowed. It is the host that must not follow it: each row
shows that whoever opened the file by its path would read the secret, and that our reader does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from agent.errors import TrialFailed
from agent.records import Recipe, Usage
from agent.run import Job, Outcome, Runner
from agent.run.logs import tail
from scenarios import Progress, Stop
from scenarios.finetune import outputs, results
from scenarios.finetune.data import Prepared
from scenarios.finetune.models import ModelInfo
from scenarios.finetune.training import TrainingPlan, train
from tests.conformance.runners import make_runner, python_job
from tests.unhurried import Unhurried

pytestmark = pytest.mark.docker
# One text that is of use to every reader: a log, a trainer's state, a model card and a result.
SECRET = (
    '{"loss": 1, "current_steps": 1, "total_steps": 2, "log_history": [{"loss": 1, "step": 1}], "n": 1, "mean": 1.0, '
    '"settings": {}}\n- PEFT a-secret\n'
)


@dataclass(frozen=True)
class Row:
    """`plants`: what to link where, as seen from the workspace. `reads`: what our reader takes from there."""

    plants: dict[str, str]
    naive: str
    reads: Callable[[Path], object]
    nothing: object


def result(workspace: Path) -> str:
    try:
        return str(results.read_result(workspace, ()))
    except results.Unusable as error:
        return f"unusable: {error}"


HISTORY = outputs.History(losses=(), steps=0, seconds=0.0, diverged=None)
ROWS = {
    "the log": Row({"job.log": "SECRET"}, "job.log", lambda path: tail(path / "job.log"), ""),
    "progress": Row(
        {"model/trainer_log.jsonl": "SECRET"},
        "model/trainer_log.jsonl",
        lambda path: outputs.progress(path / "model"),
        None,
    ),
    "progress, by ..": Row(
        {"model/trainer_log.jsonl": "../../secret/trainer_log.jsonl"},
        "model/trainer_log.jsonl",
        lambda path: outputs.progress(path / "model"),
        None,
    ),
    "a whole directory": Row(
        {"model": "SECRET_DIRECTORY"},
        "model/trainer_state.json",
        lambda path: outputs.history(path / "model"),
        HISTORY,
    ),
    "a chain of links": Row(
        {"other": "SECRET_DIRECTORY", "model": "other"},
        "model/trainer_state.json",
        lambda path: outputs.history(path / "model"),
        HISTORY,
    ),
    "the model card": Row(
        {"model/README.md": "SECRET"}, "model/README.md", lambda path: outputs.versions(path / "model"), {}
    ),
    "a result": Row(
        {"result.json": "SECRET"},
        "result.json",
        result,
        "unusable: result.json cannot be read: Too many levels of symbolic links",
    ),
}


@pytest.fixture
def runner(image: str) -> Runner:
    return make_runner("docker", image)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    for name in ("trainer_log.jsonl", "trainer_state.json"):
        (tmp_path / "secret" / name).write_text(SECRET.splitlines()[0])
    (tmp_path / "secret" / "all").write_text(SECRET)
    return tmp_path / "secret"


@pytest.mark.parametrize("name", ROWS)
def test_a_link_in_the_place_of_a_result_is_not_followed(
    name: str, runner: Runner, secrets: Path, tmp_path: Path
) -> None:
    row, workspace = ROWS[name], tmp_path / "work"
    targets = {"SECRET": str(secrets / "all"), "SECRET_DIRECTORY": str(secrets)}
    lines = ["import os"]
    for path, target in row.plants.items():
        lines += [f"os.makedirs(os.path.dirname({path!r}) or '.', exist_ok=True)"]
        lines += [f"os.path.lexists({path!r}) and os.remove({path!r})"]
        lines += [f"os.symlink({targets.get(target, target)!r}, {path!r})"]
    outcome = runner.run(python_job(workspace, "\n".join(lines)))
    assert outcome.kind == "ok", outcome
    assert "loss" in (workspace / row.naive).read_text(), "the control: a reader that follows links gets the secret"
    assert row.reads(workspace) == row.nothing
    assert "secret" not in outcome.tail


def test_a_pipe_in_the_place_of_a_result_is_not_waited_for(runner: Runner, tmp_path: Path) -> None:
    code = "import os; os.mkfifo('result.json'); os.mkdir('model'); os.mkfifo('model/trainer_log.jsonl')"
    assert runner.run(python_job(tmp_path, code)).kind == "ok"
    assert (tmp_path / "result.json").is_fifo(), "the control: whoever opened it would wait for a writer"
    assert outputs.progress(tmp_path / "model") is None
    assert result(tmp_path).startswith("unusable: result.json cannot be read")


@dataclass(frozen=True)
class Hostile(Unhurried):
    """A stage's bench whose training program is replaced by hostile code."""

    directory: Path
    runner: Runner
    code: str
    name: str = "trial-1-train"

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        raise AssertionError("no language model is asked here")

    def say(self, message: str) -> None:
        raise AssertionError(message)

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        hostile = msgspec.structs.replace(job, argv=("python", "-I", "-S", "-u", "-c", self.code))

        def watch() -> None:
            assert progress is not None
            assert progress() is None

        return self.runner.run(hostile, watch)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("os.symlink(SECRET, 'model')", "model is a symbolic link"),
        ("os.mkdir('model'); os.symlink(SECRET + '/all', 'model/README.md')", "model/README.md is a symbolic link"),
        (
            "os.makedirs('model/a/b'); os.symlink('../../../../secret/all', 'model/a/b/model.safetensors')",
            "model/a/b/model.safetensors is a symbolic link",
        ),
        ("os.mkdir('model'); os.mkfifo('model/adapter_model.safetensors')", "is a pipe, a socket or a device"),
        ("open('model', 'w')", "model is no directory"),
        ("os.mkdir('model'); open('model/trainer_state.json', 'w').write('[' * 100000)", "wrote no adapter_model"),
        ("os.mkdir('model'); open('model/trainer_state.json', 'w').write('{\"log_history\": 7}')", "wrote no adapter"),
        ("[os.mkdir('d') or os.chdir('d') for _ in range(1500)]", "nested directories"),
    ],
)
def test_a_training_that_leaves_such_a_thing_is_a_failed_trial(
    code: str, reason: str, runner: Runner, secrets: Path, tmp_path: Path
) -> None:
    for name in ("base", "data"):
        (tmp_path / name).mkdir()
    model = ModelInfo(
        path=str(tmp_path / "base"), architecture="", parameters=1, bytes=1, dtype="", context=16, layers=1,
        chat_template=False,
    )  # fmt: skip
    data = Prepared(directory=str(tmp_path / "data"), name="train", rows=1, dropped=0, fingerprint="", format="alpaca")
    plan = TrainingPlan(
        model=model, data=data, cutoff_len=16, template=None, default_epochs=1, max_epochs=1, debug_timeout=60,
        full_timeout=60,
    )  # fmt: skip
    text = f"import os, time; SECRET = {str(secrets)!r}; {code}; time.sleep(0.7)"
    bench = Hostile(tmp_path / "stage", runner, text)
    with pytest.raises(TrialFailed, match=reason) as caught:
        train(bench, Recipe(train={}), plan)
    assert caught.value.kind == "train:exit"
    assert (secrets / "all").read_text() == SECRET
