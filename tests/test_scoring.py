"""Scoring: the job that is asked for, what is believed of its answer, what is reused, and the real program."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import MachineError, StudyError, TrialFailed
from agent.records import Checkpoint, FileRef, Score, Usage
from agent.run import EnvironmentName, Job, Outcome, Runner, Say
from agent.run.environments import Environments
from agent.run.local import LocalRunner
from scenarios import Progress, Stop
from scenarios.finetune import scoring
from scenarios.finetune.benchmarks import Benchmark, resolve
from scenarios.finetune.results import wilson
from scenarios.finetune.score_cache import load_questions
from tests.unhurried import Unhurried

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden"


@dataclass
class StageBench(Unhurried):
    """What a stage gives: a directory, a runner, a voice."""

    directory: Path
    runner: Runner
    name: str = "study-0001-bench"
    jobs: list[Job] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    seen: list[tuple[float, str]] = field(default_factory=list)
    consumed: list[Usage] = field(default_factory=list)

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        self.consumed.append(usage)

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        self.jobs.append(job)

        def watch() -> str | None:
            if progress and (now := progress()):
                self.seen.append(now)
            return stop() if stop else None

        outcome = self.runner.run(job, watch)
        watch()
        return outcome

    def say(self, message: str) -> None:
        self.said.append(message)


@dataclass(frozen=True)
class OneInterpreter:
    """An environment that is a program of the test's choice."""

    program: Path

    def python(self, name: EnvironmentName) -> Path:
        return self.program

    def ready(self, name: EnvironmentName, say: Say) -> None:
        pass


# Stands where the bench environment's python would: a program that writes what BEHAVIOUR says instead of evaluating.
STAND_IN = """#!{python}
import json, os, sys, time
from pathlib import Path
request = json.loads(Path(sys.argv[2]).read_text())
output = Path(request["output"])
questions = [json.loads(line) for line in open(request["questions"])]
answers = [{{"id": q["id"], "score": 1.0, "response": q["row"]["answer"]}} for q in questions]
for answer in answers[1::2]: answer["score"] = 0.0
result = {{"n": len(answers), "settings": {{"fewshot": request["fewshot"]}}}}
def write():
    scored = [a["score"] for a in answers if a["score"] is not None]
    if "mean" not in result: result["mean"] = sum(scored) / max(len(scored), 1)
    (output / "questions.jsonl").write_text("".join(json.dumps(a) + "\\n" for a in answers))
    (output / "result.json").write_text(json.dumps(result))
{behaviour}
"""


def make_bench(directory: Path, behaviour: str = "write()") -> StageBench:
    program = directory / "environment" / "bin" / "python"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(STAND_IN.format(python=sys.executable, behaviour=behaviour))
    program.chmod(0o755)
    stage = directory / "stage"
    stage.mkdir(exist_ok=True)
    return StageBench(stage, LocalRunner(OneInterpreter(program), grace=0.5))


def lay_benchmark(root: Path, rows: list[dict[str, str]] | None = None) -> Benchmark:
    rows = rows or [{"question": f"q{i}", "answer": f"a{i}"} for i in range(20)]
    (root / "demo").mkdir(parents=True, exist_ok=True)
    (root / "demo/benchmark.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return resolve(["reverse"], root, no_fetch, demo=root / "demo")[0]


def no_fetch(dataset: str) -> Path:
    raise AssertionError(f"nothing should be downloaded, asked for {dataset}")


def lay_model(root: Path) -> Path:
    model = root / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text('{"transformers_version": "4.57.6"}')
    (model / "model.safetensors").write_bytes(b"weights")
    (model / "tokenizer.json").write_text("{}")
    return model


def ask(bench: StageBench, root: Path, benchmark: Benchmark, **changed: Any) -> Score:
    arguments: dict[str, Any] = {
        "checkpoint": None,
        "split": "search",
        "fewshot": 0,
        "limit": None,
        "timeout": 30.0,
        "cache": root / "scores",
        "weights": "w",
        "device": "cpu",
    } | changed
    model = arguments.pop("model") if "model" in arguments else lay_model(root)
    checkpoint, split = (arguments.pop(name) for name in ("checkpoint", "split"))
    return scoring.score(bench, model, checkpoint, benchmark, split, **arguments)


def test_a_score_and_its_questions(tmp_path: Path) -> None:
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    score = ask(bench, tmp_path, benchmark)
    assert (score.benchmark, score.split, score.n, score.unscored) == ("reverse", "search", 10, 0)
    assert score.mean == 0.5
    assert score.stderr == pytest.approx((0.25 / 9) ** 0.5)
    assert (score.low, score.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)  # Wilson, 5 of 10
    questions = load_questions(score.questions)
    assert [question.id for question in questions] == [item.id for item in benchmark.halves.search]
    assert questions[0].response == benchmark.halves.search[0].row["answer"]


def test_the_job_sees_only_the_split_being_scored(tmp_path: Path) -> None:
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    ask(bench, tmp_path, benchmark)
    (job,) = bench.jobs
    assert job.environment == "bench"
    writable = [mount.path for mount in job.mounts if mount.writable]
    assert writable == [job.cwd]
    visible = b"".join(
        file.read_bytes()
        for mount in job.mounts
        if str(bench.directory) in mount.path
        for file in Path(mount.path).rglob("*")
        if file.is_file()
    )
    assert all(f'"{item.row["question"]}"'.encode() in visible for item in benchmark.halves.search)
    assert not any(f'"{item.row["question"]}"'.encode() in visible for item in benchmark.halves.test)
    assert not any((tmp_path / "demo").is_relative_to(mount.path) for mount in job.mounts)
    assert job.variables["HF_HUB_OFFLINE"] == "1"
    assert job.variables["OMP_NUM_THREADS"] == "1"  # a tiny model


def test_of_a_users_own_task_the_job_sees_only_its_yaml_and_its_code(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "prompts").mkdir(parents=True)
    rows = [{"question": f"question number {i}", "answer": f"a{i}"} for i in range(20)]
    (home / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / ".env").write_text("OPENAI_API_KEY=secret")
    (home / "prompts/short.py").write_text("def prompt(doc): return doc['question']")
    (home / "metrics.py").write_text("def exact(*_): return 1.0")
    (home / "notes.py").write_text("# " + rows[0]["question"])
    (home / "base.yaml").write_text("metric_list: [{metric: !function metrics.exact, higher_is_better: true}]\n")
    (home / "own.yaml").write_text(
        "include: base.yaml\ntask: own\ndataset_path: json\ntest_split: test\n"
        "dataset_kwargs: {data_files: {test: data.jsonl}}\n"
        "doc_to_text: !function prompts.short.prompt\ndoc_to_target: '{{answer}}'\n"
    )
    (benchmark,) = resolve([str(home / "own.yaml")], tmp_path, no_fetch)
    bench = make_bench(tmp_path)
    ask(bench, tmp_path, benchmark)
    mounted = [Path(mount.path) for mount in bench.jobs[0].mounts]
    below_home = {str(path.relative_to(home)) for path in mounted if path.is_relative_to(home)}
    assert below_home == {"own.yaml", "base.yaml", "metrics.py", "prompts/short.py"}
    visible = [file for path in mounted for file in (path, *path.rglob("*")) if file.is_file()]
    assert not any(home.is_relative_to(path) for path in mounted)
    assert home / ".env" not in visible
    for item in benchmark.halves.test:
        assert not any(json.dumps(item.row["question"]).encode() in file.read_bytes() for file in visible)


def test_the_request_is_as_recorded(tmp_path: Path) -> None:
    """Golden: the whole contract with docker/bench/score.py."""
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    adapter = Checkpoint(path=str(tmp_path / "adapter"), weights="x", adapter=True, versions={"transformers": "4.57.6"})
    (tmp_path / "adapter").mkdir()
    ask(bench, tmp_path, benchmark, checkpoint=adapter, limit=3)
    stage = Path(bench.jobs[0].cwd).parent
    text = (stage / "input/request.json").read_text().replace(str(stage), "STAGE").replace(str(tmp_path), "ROOT")
    assert text + "\n" == (GOLDEN / "score_request.json").read_text()


def test_an_equal_score_is_reused_and_an_unequal_one_is_not(tmp_path: Path) -> None:
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    first = ask(bench, tmp_path, benchmark)
    again = ask(bench, tmp_path, benchmark)
    assert len(bench.jobs) == 1
    assert "reused" in bench.said[-1]
    assert again == first
    assert again.seconds > 0, "as measured: the time for the sealed test is reserved by it"
    # A limit as large as the half asks the same questions.
    assert ask(bench, tmp_path, benchmark, limit=10).key == first.key
    assert len(bench.jobs) == 1

    def adapter(weights: str) -> Checkpoint:
        path = tmp_path / f"adapter-{weights}"
        path.mkdir(exist_ok=True)
        return Checkpoint(path=str(path), weights=weights, adapter=True)

    different: list[dict[str, Any]] = [
        {"weights": "other"},
        {"split": "test"},
        {"limit": 4},
        {"fewshot": 2},
        {"device": "cuda"},
        {"checkpoint": adapter("1")},
        {"checkpoint": adapter("2")},
    ]
    for count, changed in enumerate(different, 2):
        ask(bench, tmp_path, benchmark, **changed)
        assert len(bench.jobs) == count, changed


def test_a_changed_template_question_or_answer_is_scored_anew(tmp_path: Path) -> None:
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    ask(bench, tmp_path, benchmark)
    (tmp_path / "model/chat_template.jinja").write_text("{{ messages }}")
    ask(bench, tmp_path, benchmark)
    assert len(bench.jobs) == 2
    rows = [{"question": f"q{i}", "answer": f"b{i}"} for i in range(20)]
    ask(bench, tmp_path, lay_benchmark(tmp_path, rows))
    assert len(bench.jobs) == 3


@pytest.mark.parametrize("damage", ["questions.jsonl", "score.json"])
def test_a_damaged_stored_score_is_measured_again(tmp_path: Path, damage: str) -> None:
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    first = ask(bench, tmp_path, benchmark)
    (tmp_path / "scores" / first.key / damage).write_text("{}")
    again = ask(bench, tmp_path, benchmark)
    assert (len(bench.jobs), again.mean) == (2, first.mean)
    assert "damaged" in bench.said[0]


def test_a_study_keeps_its_questions_whatever_becomes_of_the_stored_scores(tmp_path: Path) -> None:
    benchmark, scores = lay_benchmark(tmp_path), []
    for study in ("one", "two"):
        (tmp_path / study).mkdir()
        bench = make_bench(tmp_path / study)
        scores.append(ask(bench, tmp_path, benchmark))
        assert Path(scores[-1].questions.path).is_relative_to(bench.directory)
    assert not bench.jobs, "the second study reuses the first one's"
    before = [load_questions(score.questions) for score in scores]
    (tmp_path / "scores" / scores[0].key / "questions.jsonl").write_text("{}")
    (tmp_path / "three").mkdir()
    ask(make_bench(tmp_path / "three", "answers[0]['response'] = 'another'; write()"), tmp_path, benchmark)
    assert [load_questions(score.questions) for score in scores] == before
    shutil.rmtree(tmp_path / "scores")
    assert [load_questions(score.questions) for score in scores] == before


def test_what_a_score_refers_to_is_on_the_disk_when_it_is_returned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, fsync = set(), os.fsync

    def spy(descriptor: int) -> None:
        fsync(descriptor)
        synced.add(os.fstat(descriptor).st_ino)

    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    monkeypatch.setattr("os.fsync", spy)
    first = ask(bench, tmp_path, benchmark)
    entry = tmp_path / "scores" / first.key
    mine = Path(first.questions.path)
    needed = [entry / "score.json", entry / "questions.jsonl", entry, entry.parent, mine, mine.parent, bench.directory]
    assert [path for path in needed if path.stat().st_ino not in synced] == []
    synced.clear()
    again = Path(ask(bench, tmp_path, benchmark).questions.path)
    assert {again.stat().st_ino, again.parent.stat().st_ino} <= synced


def test_a_full_disk_stops_the_call_before_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench, benchmark = make_bench(tmp_path), lay_benchmark(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100 * 1024**2))
    with pytest.raises(MachineError, match="scoring may need"):
        ask(bench, tmp_path, benchmark)
    assert not bench.jobs


# Each writes something that must not become a score.
LIES: dict[str, tuple[str, str]] = {
    "one prediction short": ("answers.pop(); write()", "10 questions gave 9 predictions"),
    "summary miscounts": ("result['n'] = 11; write()", "the summary says 11"),
    "foreign ids": ("answers[3]['id'] = 'x'; write()", "not for the questions"),
    "swapped": ("answers.reverse(); write()", "not for the questions"),
    "twice the same": ("answers[1]['id'] = answers[0]['id']; write()", "not for the questions"),
    "above one": ("answers[0]['score'] = 1.5; write()", "not in \\[0, 1\\]"),
    "NaN": ("answers[0]['score'] = float('nan'); result['mean'] = 0.5; write()", "no valid result"),
    "infinite mean": ("result['mean'] = float('inf'); write()", "no valid result"),
    "words for a score": ("answers[0]['score'] = 'high'; result['mean'] = .5; write()", "no valid result"),
    "a better mean": ("result['mean'] = 0.9; write()", "is not that of the questions"),
    "nothing scored": ("[a.update(score=None) for a in answers]; write()", "not one question has a score"),
    "no result": ("pass", "result.json cannot be read"),
    "half a result": ("write(); (output / 'result.json').write_text('{\"n\": 1')", "no valid result"),
    "a link": (
        "write(); os.remove(output / 'result.json'); os.symlink('/etc/hostname', output / 'result.json')",
        "result.json cannot be read",
    ),
    "a flood": ("write(); (output / 'result.json').write_text(' ' * 2_000_000)", "larger than"),
    "a pipe": ("write(); os.remove(output / 'result.json'); os.mkfifo(output / 'result.json')", "cannot be read"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_the_job_writes_is_not_taken_on_trust(tmp_path: Path, lie: str) -> None:
    behaviour, words = LIES[lie]
    bench = make_bench(tmp_path, behaviour)
    with pytest.raises(TrialFailed, match=words) as error:
        ask(bench, tmp_path, lay_benchmark(tmp_path))
    assert error.value.kind == "bench"
    assert not (tmp_path / "scores").exists()


def test_unscored_questions_are_counted_apart(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "answers[0]['score'] = None; write()")
    score = ask(bench, tmp_path, lay_benchmark(tmp_path))
    assert (score.n, score.unscored) == (9, 1)
    assert score.mean == pytest.approx(4 / 9)


def test_a_failing_job_is_a_finding_with_its_own_words(tmp_path: Path) -> None:
    behaviour = "(output / 'error.txt').write_text('the tokenizer is\\nmissing'); print('traceback'); sys.exit(1)"
    bench = make_bench(tmp_path, behaviour)
    with pytest.raises(TrialFailed) as error:
        ask(bench, tmp_path, lay_benchmark(tmp_path))
    assert "reverse: the tokenizer is missing" in error.value.reason
    assert "bench.log" in error.value.reason
    assert "traceback" in error.value.tail


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ("(output / 'error.txt').write_text('ModuleNotFoundError: No module named lm_eval'); sys.exit(1)", "bench env"),
        ("raise OSError(28, 'No space left on device')", "free some disk space"),
        ("(output / 'error.txt').write_text('No CUDA GPUs are available'); sys.exit(1)", "nvidia-smi"),
    ],
)
def test_what_no_model_can_cause_is_the_machines_fault(tmp_path: Path, behaviour: str, words: str) -> None:
    with pytest.raises(MachineError) as error:
        ask(make_bench(tmp_path, behaviour), tmp_path, lay_benchmark(tmp_path))
    assert error.value.message.startswith("reverse: scoring failed: ")
    assert words in error.value.hint
    assert "bench.log" in error.value.hint


def test_a_job_past_its_time_is_a_finding_that_names_the_setting(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "(output / 'progress').write_text('3/10'); time.sleep(60)")
    with pytest.raises(TrialFailed, match=r"not done after 2 s \(FT_BENCHMARK_TIMEOUT\)"):
        ask(bench, tmp_path, lay_benchmark(tmp_path), timeout=2.0)
    assert bench.seen[-1] == (0.3, "reverse: 3/10 questions")


def test_a_lost_job_is_the_machines_fault(tmp_path: Path) -> None:
    class Gone(StageBench):
        def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
            return Outcome(kind="lost", code=None, seconds=1.0, log=job.log, tail="", reason="engine went away")

    bench = make_bench(tmp_path)
    with pytest.raises(MachineError, match="engine went away"):
        ask(Gone(bench.directory, bench.runner), tmp_path, lay_benchmark(tmp_path))


def test_questions_that_changed_on_disk_are_refused(tmp_path: Path) -> None:
    score = ask(make_bench(tmp_path), tmp_path, lay_benchmark(tmp_path))
    file = Path(score.questions.path)
    file.write_bytes(file.read_bytes().replace(b"0.0", b"1.0"))
    with pytest.raises(StudyError, match="not those that the study recorded"):
        load_questions(score.questions)
    with pytest.raises(StudyError, match="cannot be read"):
        load_questions(FileRef(path=str(tmp_path / "none"), sha256=""))


@given(st.integers(1, 3000), st.floats(0, 1))
def test_wilson_interval_is_never_empty_and_holds_its_mean(n: int, share: float) -> None:
    mean = round(share * n) / n
    low, high = wilson(mean, n)
    assert 0.0 <= low <= mean <= high <= 1.0
    assert low < high


def test_wilson_at_the_ends() -> None:
    assert wilson(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert wilson(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert (wilson(0.0, 10)[0], wilson(1.0, 10)[1]) == (0.0, 1.0)


# The real program, in the real environment


@pytest.fixture(scope="session")
def real_models(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained demo model in `base`, and what tests/programs/memorize.py makes of it."""
    directory = tmp_path_factory.mktemp("models")
    numbers = ("1234", "5678", "9012", "3456", "7890", "2468", "1357", "9753")
    rows = [{"question": f"Reverse: {number}", "answer": number[::-1]} for number in numbers]
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    python = environments.python("bench")
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(directory)}
    for script, *arguments in (
        (ROOT / "docker/train/make_demo_model.py", directory / "base"),
        (ROOT / "tests/programs/memorize.py", directory / "base", directory / "rows.jsonl", directory),
    ):
        subprocess.run([python, script, *arguments], env=environment, check=True)
    return directory


@pytest.fixture
def real_bench(environments: Environments, tmp_path: Path) -> StageBench:
    stage = tmp_path / "stage"
    stage.mkdir()
    return StageBench(stage, LocalRunner(environments))


@pytest.mark.slow
def test_real_scores_equal_greedy_decoding(real_bench: StageBench, real_models: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (real_models / "rows.jsonl").read_text().splitlines()]
    benchmark = lay_benchmark(tmp_path, rows)
    expert = Checkpoint(path=str(real_models / "expert"), weights="e", adapter=False)
    adapter = Checkpoint(path=str(real_models / "adapter"), weights="a", adapter=True)
    direct = json.loads((real_models / "greedy.json").read_text())
    for name, model, checkpoint, mean in (
        ("expert", "base", expert, 1.0),
        ("parrot", "parrot", None, 0.0),
        ("adapter", "parrot", adapter, 1.0),
    ):
        score = ask(
            real_bench,
            tmp_path,
            benchmark,
            model=real_models / model,
            checkpoint=checkpoint,
            weights=model,
            timeout=300.0,
        )
        questions = load_questions(score.questions)
        replies = {item.id: direct[name][item.row["question"]] for item in benchmark.halves.search}
        assert {question.id: question.response for question in questions} == replies, name
        assert (score.mean, score.n) == (mean, 4), name
        assert score.low < score.high
        assert score.settings["chat_template"]
        assert score.settings["versions"]["lm_eval"]
        assert score.settings["truncated"] == 0
    assert real_bench.seen[-1][0] > 0


@pytest.mark.slow
def test_real_gsm8k_few_shot_and_a_local_task(real_bench: StageBench, real_models: Path, tmp_path: Path) -> None:
    for split, count in (("train", 8), ("test", 4)):
        file = tmp_path / f"benchmarks/gsm8k/{split}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = ({"question": f"{split} {i} + 1 = ?", "answer": f"it is\n#### {i + 1}"} for i in range(count))
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "helpers.py").write_text("def prompt(doc):\n    return doc['question'] + ' Think.'\n")
    (tmp_path / "sums.yaml").write_text(
        "task: sums\ndataset_path: json\ntest_split: test\ndoc_to_text: !function helpers.prompt\n"
        "dataset_kwargs: {data_files: {test: benchmarks/gsm8k/test.jsonl}}\n"
        "doc_to_target: '{{answer}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4}\n"
    )
    gsm8k, sums = resolve(["lm_eval:gsm8k", str(tmp_path / "sums.yaml")], tmp_path, no_fetch)
    few = ask(real_bench, tmp_path, gsm8k, model=real_models / "base", fewshot=5, timeout=300.0)
    assert (few.n, few.mean, few.settings["fewshot"], few.settings["filter"]) == (2, 0.0, 5, "flexible-extract")
    local = ask(real_bench, tmp_path, sums, model=real_models / "base", timeout=300.0)
    assert (local.n, local.settings["generation"]["max_gen_toks"]) == (2, 4)


@pytest.mark.slow
def test_real_program_never_takes_another_device_than_asked(
    real_bench: StageBench, real_models: Path, tmp_path: Path
) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("a GPU is here")
    with pytest.raises(MachineError, match="No CUDA GPUs are available"):
        ask(real_bench, tmp_path, lay_benchmark(tmp_path), model=real_models / "base", device="cuda", timeout=300.0)


BREAKAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "another major version": (
        lambda model: (model / "config.json").write_text(
            (model / "config.json").read_text().replace('"transformers_version": "4.', '"transformers_version": "5.')
        ),
        "written by transformers 5.",
    ),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "has no weights"),
    "no config": (lambda model: (model / "config.json").unlink(), "has no config.json"),
}


@pytest.mark.slow
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_real_program_fails_loudly(real_bench: StageBench, real_models: Path, tmp_path: Path, breakage: str) -> None:
    damage, words = BREAKAGES[breakage]
    model = tmp_path / "model"
    model.mkdir()
    for file in (real_models / "base").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
        (model / file.name).chmod(stat.S_IRUSR | stat.S_IWUSR)
    damage(model)
    with pytest.raises(TrialFailed) as error:
        ask(real_bench, tmp_path, lay_benchmark(tmp_path), model=model, timeout=300.0)
    assert words in error.value.reason
