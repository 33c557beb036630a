"""Data scripts are run in real processes: the good one is used and remembered, the others are told what was wrong."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.errors import MachineError
from agent.run.environments import Environments
from agent.run.local import LocalRunner
from scenarios.finetune import data, data_script
from scenarios.finetune.data_script import Limits, Patience, ScriptInput, ScriptRun, lay_out, run
from scenarios.finetune.rows import read
from tests.conformance.runners import ThisPython
from tests.data_scripts import GOOD, HEAD, WRONG
from tests.test_ftloop_llm import Server, completion, said, server

__all__ = ["server"]
LIMITS = Limits(cutoff_len=100, rows=1000)


@pytest.fixture
def given(tmp_path: Path) -> ScriptInput:
    """500 rows in two CSV files, and a test split that no script may see."""
    source = tmp_path / "source"
    source.mkdir()
    for part in range(2):
        lines = [f"what is {n} + {part}?,{n + part},{'hard' if n % 2 else 'easy'}" for n in range(250)]
        (source / f"train-{part}.csv").write_text("question,answer,level\n" + "\n".join(lines) + "\n")
    (source / "test.csv").write_text("question,answer,level\nTHE SEALED TEST,1,hard\n")
    return lay_out(data.recognise(source), tmp_path / "input")


class Bench:
    """Runs scripts in one place."""

    def __init__(self, directory: Path, given: ScriptInput) -> None:
        self.directory, self.given = directory, given
        self.runner = LocalRunner(ThisPython(), grace=1.0, unsafe=True)

    def __call__(self, script: str, **more: Any) -> ScriptRun:
        wanted: dict[str, Any] = {
            "execute": self.runner.run,
            "stage": self.directory / "stage",
            "cache": self.directory / "cache",
            "name": "data",
        }
        return run(script, more.pop("given", self.given), more.pop("limits", LIMITS), **(wanted | more))


@pytest.fixture
def bench(tmp_path: Path, given: ScriptInput) -> Bench:
    return Bench(tmp_path, given)


def test_a_script_is_given_the_training_split_and_nothing_else(given: ScriptInput, tmp_path: Path) -> None:
    rows = list(read(Path(given.full) / "train.jsonl"))
    few = list(read(Path(given.debug) / "train.jsonl"))
    assert (given.rows, len(rows), len(few)) == (500, 500, 100)
    assert rows[0] == {"question": "what is 0 + 0?", "answer": "0", "level": "easy"}
    assert few == [row for row in rows if row in few], "in their order"
    assert few != rows[:100], "drawn from everywhere"
    assert not any(b"SEALED" in path.read_bytes() for path in (tmp_path / "input").rglob("*") if path.is_file())


def test_the_input_is_laid_out_once_and_again_when_the_data_changes(given: ScriptInput, tmp_path: Path) -> None:
    written = (Path(given.full) / "train.jsonl").stat().st_mtime_ns
    assert lay_out(data.recognise(tmp_path / "source"), tmp_path / "input") == given
    assert (Path(given.full) / "train.jsonl").stat().st_mtime_ns == written
    with (tmp_path / "source" / "train-1.csv").open("a") as file:
        file.write("one more?,1,hard\n")
    assert lay_out(data.recognise(tmp_path / "source"), tmp_path / "input").rows == 501


def test_a_good_script_is_run_twice_and_its_data_can_be_trained_on(bench: Bench, tmp_path: Path) -> None:
    done = bench(GOOD)
    assert done.report.usable, done.report.for_agent()
    assert (done.report.run, done.report.rows, done.report.kept, done.reused) == ("full", 250, 250, False)
    assert done.data is not None
    prepared = data.write(data.recognise(Path(done.data)), tmp_path / "prepared")
    assert (prepared.rows, prepared.format) == (250, "alpaca")


def test_what_was_run_before_is_reused_while_nothing_changed(bench: Bench, tmp_path: Path) -> None:
    script = GOOD + f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\n"
    first = bench(script)
    assert (tmp_path / "runs").read_text() == "xx", "debug and full"
    again = bench(script)
    assert (again.reused, again.data, again.report) == (True, first.data, first.report)
    assert (tmp_path / "runs").read_text() == "xx"
    assert not bench(script + "\n").reused, "another script"
    assert not bench(script, limits=Limits(cutoff_len=99, rows=1000)).reused
    assert not bench(script, environment="another image").reused
    other = msgspec.structs.replace(bench.given, sha256="other data")
    assert not bench(script, given=other).reused
    Path(str(first.data)).write_text("damaged")
    repaired = bench(script)
    assert (repaired.reused, repaired.report) == (False, first.report)
    assert Path(str(repaired.data)).read_text() != "damaged"


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_with_a_script_is_told(what: str, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_script, "LARGEST_LOG", 1 << 20)
    script, found_by, said = WRONG[what]
    patience = Patience(debug=2, full=2) if "loops" in what else Patience(debug=20, full=20)
    done = bench(script, patience=patience)
    assert (done.report.usable, done.data, done.report.run) == (False, None, found_by)
    assert said in done.report.for_agent()
    assert len(done.report.for_agent()) <= 6000
    assert bench(GOOD).report.usable, "the next turn repairs it, in the same place"


@pytest.mark.parametrize(
    ("script", "said"),
    [(" \n", "the script is empty"), ("#" * 200_001, "at most 200,000 are allowed"), ("'\ud800'", "is no text")],
)
def test_what_is_no_script_is_not_run(script: str, said: str, bench: Bench) -> None:
    assert said in bench(script).report.for_agent()
    assert not (bench.directory / "stage").exists()


def test_the_limit_on_disk_ends_a_script_that_writes_without_end(bench: Bench) -> None:
    bench.runner = LocalRunner(ThisPython(), grace=1.0, disk_limit=20_000_000, unsafe=True)
    script = HEAD + "with args.output.open('w') as f:\n    while True: f.write('x' * 100_000); time.sleep(0.001)\n"
    report = bench(script).report
    assert "it wrote more than 0.02 GB (FT_TRIAL_DISK)" in report.for_agent()
    assert not (bench.directory / "stage" / "debug" / "work").exists(), "what it wrote is gone"


def test_the_users_own_end_is_the_scripts_too(bench: Bench) -> None:
    done = bench(HEAD + "time.sleep(60)\n", watch=lambda: "the budget is spent")
    assert "it failed: the budget is spent" in done.report.for_agent()


def test_without_a_container_it_runs_only_if_told_so(bench: Bench) -> None:
    bench.runner = LocalRunner(ThisPython())
    with pytest.raises(MachineError, match="code that nobody reviewed") as caught:
        bench(GOOD)
    assert "--unsafe-local" in caught.value.hint


def test_a_script_sees_no_key_and_knows_its_limit(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    script = HEAD + "emit(good(row) | {'system': f'{len(os.environ)} {dict(os.environ)}'[:3000]} for row in rows)\n"
    done = bench(script, limits=Limits(cutoff_len=10_000, rows=1000))
    seen = next(read(Path(str(done.data))))["system"]
    assert "sk-secret" not in seen
    assert "'FTLOOP_MOST_ROWS': '1000'" in seen


def test_a_script_asks_models_through_the_door(bench: Bench, server: Server) -> None:
    server.reply = lambda request: completion(f"{request['model']} says {said(request)}")
    script = HEAD + (
        "from ftloop_llm import ask_many\n"
        "replies = ask_many([row['question'] for row in rows], role='weak')\n"
        "emit({'instruction': row['question'], 'output': reply} for row, reply in zip(rows, replies))\n"
    )
    done = bench(script, door=lambda: nullcontext(server.path))
    assert done.report.usable, done.report.for_agent()
    assert next(read(Path(str(done.data))))["output"] == "weak says what is 0 + 0?"
    assert len(server.requests) == 600
    told = bench(script.replace("weak", "strong")).report.for_agent()
    assert "LLMError: no language model is offered to this script" in told


@pytest.mark.slow
def test_a_script_has_the_packages_of_the_train_environment(bench: Bench, environments: Environments) -> None:
    bench.runner = LocalRunner(environments, unsafe=True)
    script = HEAD + "import datasets, transformers\nemit(map(good, rows))\n"
    report = bench(script).report
    assert report.usable, report.for_agent()


def test_a_cache_entry_of_another_form_is_no_obstacle(bench: Bench) -> None:
    entry = bench.directory / "cache" / bench(GOOD).key
    (entry / "run.json").write_text(json.dumps({"report": 3}))
    assert bench(GOOD).report.usable
