"""Judged scores by real OpenCompass, with a judge over HTTP that fails in every way there is; and as a whole command.

The answers are predicted once, by a real model. Each row of the table is one more call of the same study's scoring: it
finds these predictions, and a model that can no longer be loaded, so that nothing but the judging can happen.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.errors import FtloopError, MachineError, TrialFailed
from agent.gateway import Gateway, Judge, Limits
from agent.llm import Endpoint, Price, Secret
from agent.loop import not_scored
from agent.records import Score, Scores
from agent.run.environments import Environments
from agent.run.local import LocalRunner
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.judging import Judges
from scenarios.finetune.score_cache import load_questions
from scenarios.finetune.splits import Item
from tests.end_to_end.command import ROOT, User
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.test_compass import lay
from tests.test_scoring import OneInterpreter, StageBench, ask

pytestmark = pytest.mark.slow

KEY = "sk-judge-0123456789abcdef"
LIMITS = Limits(call=1.5, patience=3.0, retries=0, failures=5, asks=2)
BOUND = 2 * LIMITS.patience
"""Seconds that the judging may take. Two rounds, because there are more samples than requests at a time."""
START = 25.0
"""Seconds for all that surrounds it, on a busy machine."""
QUESTIONS = [
    {"question": f"Find the number of positive integers below {7 * i} that {i} divides.", "answer": f"{i}"}
    for i in range(1, 25)
]


@dataclass(frozen=True)
class Predicted:
    """What is there when a score's predictions are made: its benchmark, its model without weights, its cache."""

    root: Path
    benchmark: Benchmark
    model: Path

    @property
    def items(self) -> Sequence[Item]:
        return self.benchmark.halves.search


def answer_of(request: ChatRequest) -> int:
    """The reference answer that the judge was shown, in OpenCompass' own words."""
    found = re.search(r"<Gold Target Begin>: \n(\d+)\n", request.text)
    assert found, request.text
    return int(found[1])


def right(request: ChatRequest) -> bool:
    """Whether the judge of these tests calls the answer to this question right: two of three are."""
    return answer_of(request) % 3 > 0


def judges(url: str, root: Path, limits: Limits = LIMITS) -> Judges:
    def gateway(verdicts: Sequence[str], directory: Path) -> Gateway:
        endpoint = Endpoint(model="judge", base_url=url, key=Secret(KEY), settings="FT_JUDGE")
        role = Judge(tuple(verdicts), root / "scores/verdicts")
        return Gateway(endpoint, Price(), role, transcript=directory / "judge.jsonl", limits=limits)

    return Judges("judge", gateway)


@pytest.fixture(scope="module")
def predicted(environments: Environments, warm_bench: Path, tmp_path_factory: pytest.TempPathFactory) -> Predicted:
    """One real inference, whose judging was refused."""
    root = tmp_path_factory.mktemp("predicted")
    made = Predicted(root, lay(root, "aime25", QUESTIONS), root / "model")
    make = [environments.python("bench"), ROOT / "docker/train/make_demo_model.py", made.model]
    subprocess.run(make, env={"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(root)}, check=True)
    with ChatServer(lambda request: ChatAnswer("A"), key="another") as server, pytest.raises(MachineError):
        judged(made, root, server.url, warm_bench)
    lines = [json.loads(line) for line in next((root / "scores").glob("*.predictions.jsonl")).read_text().splitlines()]
    assert {line["id"] for line in lines if "id" in line} == {item.id for item in made.items}
    (made.model / "model.safetensors").write_bytes(b"nothing that could be loaded")
    return made


def judged(predicted: Predicted, root: Path, url: str, python: Path, limits: Limits = LIMITS) -> Score:
    (root / "stage").mkdir(exist_ok=True)
    bench = StageBench(root / "stage", LocalRunner(OneInterpreter(python)))
    who = judges(url, root, limits)
    return ask(bench, root, predicted.benchmark, model=predicted.model, timeout=300.0, judges=who)


@dataclass(frozen=True)
class Row:
    """One way in which a judge behaves, and what must become of it.

    Attributes:
        judge: Its answers; None where nothing listens.
        scored: How many of the twelve samples get a verdict.
        error: None where there is a score, which then is the share of `right` among these.
        words: In the message: what is wrong, and what to do.
    """

    name: str
    judge: Callable[[ChatRequest], ChatAnswer] | None
    scored: int = 0
    error: type[Exception] | None = MachineError
    words: tuple[str, ...] = ()


def always(answer: ChatAnswer) -> Callable[[ChatRequest], ChatAnswer]:
    return lambda request: answer


def says(right_answer: str, wrong_answer: str, thought: str = "") -> Callable[[ChatRequest], ChatAnswer]:
    beside = {"reasoning_content": thought} if thought else {}
    return lambda request: ChatAnswer(right_answer if right(request) else wrong_answer, message=beside)


HALF = {int(row["answer"]) for row in QUESTIONS[::2]}
"""The odd ones, which are half of those asked as well."""
ONE = 13


def half_fail(request: ChatRequest) -> ChatAnswer:
    return ChatAnswer(status=500, error="overloaded") if answer_of(request) in HALF else says("A", "B")(request)


def one_unclear(request: ChatRequest) -> ChatAnswer:
    return ChatAnswer("Hard to say.") if answer_of(request) == ONE else says("A", "B")(request)


MEND = "FT_JUDGE_API_BASE"
AGAIN = "the same command then judges only what is missing"
NO_VERDICT = ("gave no verdict on 100% of the answers", "10% may lack one")
ROWS = (
    Row("good verdicts", says("A", "B"), 12, None),
    Row("a verdict after thoughts", says("<think>B?</think>A", "<think>A, or\nA?</think>\n\nB"), 12, None),
    Row("a verdict beside thoughts", says("A", "B", thought="I would say A. Or B?"), 12, None),
    Row("one unclear answer", one_unclear, 11, None),
    Row("401", always(ChatAnswer(status=401, error=f"wrong key: {KEY}")),
        words=("refuses the API key: 401 wrong key: ***", "FT_JUDGE_API_KEY", AGAIN)),
    Row("429", always(ChatAnswer(status=429, error="slow down")), words=("429 slow down", AGAIN)),
    Row("500", always(ChatAnswer(status=500, error="oops")), words=("500 oops", AGAIN)),
    Row("refused", None, words=("refused", MEND, AGAIN)),
    Row("hang", always(ChatAnswer("A", delay=60)), words=("no usable answer", MEND, AGAIN)),
    Row("bad JSON", always(ChatAnswer(body=b'{"choices": [{"mess')), words=("unreadable", AGAIN)),
    Row("HTML", always(ChatAnswer(body=b"<html>Sign in</html>")), words=("unreadable", "Sign in", AGAIN)),
    Row("half the samples fail", half_fail, 6, words=("500 overloaded", AGAIN)),
    Row("empty", always(ChatAnswer("")), error=TrialFailed, words=(*NO_VERDICT, "'(nothing)'")),
    Row("CORRECT", always(ChatAnswer("CORRECT")), error=TrialFailed, words=(*NO_VERDICT, "'CORRECT'")),
    Row("prose", always(ChatAnswer("After review, the prediction is wrong. B")), error=TrialFailed,
        words=(*NO_VERDICT, "'After review, the prediction is wrong. B'")),
)  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_judge_gives_the_right_score_or_none(
    row: Row, predicted: Predicted, warm_bench: Path, tmp_path: Path
) -> None:
    shutil.copytree(predicted.root / "scores", tmp_path / "scores")
    mended = False

    def answer(request: ChatRequest) -> ChatAnswer:
        return (says("A", "B") if mended or row.judge is None else row.judge)(request)

    with ChatServer(answer, prefix=None) as server:
        url = server.url if row.judge else f"http://127.0.0.1:{free_port()}/v1"
        started = time.monotonic()
        score, error = outcome(predicted, tmp_path, url, warm_bench)
        assert time.monotonic() - started < START + BOUND

        marks = marks_of(tmp_path)
        assert sum(mark is not None for mark in marks.values()) == row.scored, "no verdict, no score"
        told = {item.id: float(int(item.row["answer"]) % 3 > 0) for item in predicted.items}
        assert all(mark == told[name] for name, mark in marks.items() if mark is not None)
        nothing_is_leaked(tmp_path)
        if row.error is None:
            assert score is not None, error
            assert (score.n, score.unscored) == (row.scored, 12 - row.scored)
            assert score.mean == pytest.approx(sum(mark or 0 for mark in marks.values()) / row.scored)
            assert 0 < score.low < score.mean < score.high < 1
            assert score.settings["judging"]["asked"] == 12
            return

        assert type(error) is row.error
        assert all(words in str(error) for words in ("aime25", "judge", *row.words)), str(error)
        call = error if isinstance(error, FtloopError) else not_scored("the base model", error)
        assert call.exit_code == MachineError.exit_code
        before, mended = len(server.requests), True
        score, error = outcome(predicted, tmp_path, server.url, warm_bench)
        assert len(server.requests) - before == 12 - row.scored, "only what is missing is judged"
    assert score is not None, error
    assert (score.n, score.unscored, score.mean) == (12, 0, 0.75)


def outcome(
    predicted: Predicted, root: Path, url: str, python: Path
) -> tuple[Score, None] | tuple[None, MachineError | TrialFailed]:
    try:
        return judged(predicted, root, url, python), None
    except (MachineError, TrialFailed) as error:
        return None, error


def test_a_whole_study_whose_judge_refuses_the_key_and_then_does_not(
    environments: Environments, tmp_path: Path
) -> None:
    """The command line with aime25, whose data were laid by hand; the second call asks the model nothing again."""
    user, key_works = User(tmp_path), False
    laid = user.workspace / "benchmarks/aime25/test.jsonl"
    reversals = [{"question": f"Reverse: {i}", "answer": str(i)[::-1]} for i in range(100, 140)]
    for file, content in ((laid, QUESTIONS), (user.home / "data/train.jsonl", reversals)):
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in content))
    command = ("--dataset", "data", "--model", "demo/tiny", "--loop_n", "1", "--proposer", "tpe")

    def answer(request: ChatRequest) -> ChatAnswer:
        return says("A", "B")(request) if key_works else ChatAnswer(status=401, error="Incorrect API key provided")

    with ChatServer(answer) as server:
        env = {
            "FT_RUNNER": "local",
            "FT_BENCHMARK_DATASETS": '["aime25"]',
            "FT_BENCHMARK_SAMPLES": "1",
            "FT_BENCHMARK_LIMIT": "6",
            "FT_MAX_EPOCHS": "1",
            "FT_JUDGE_API_BASE": server.url,
            "FT_JUDGE_API_KEY": KEY,
            "FT_JUDGE_MODEL": "marker",
        }
        refused = user.loop(*command, env=env, code=MachineError.exit_code)
        asked, key_works = len(server.requests), True
        output = user.loop(*command, env=env)

    assert 1 <= asked <= Limits().concurrency, "a refused key is not tried for each answer"
    beforehand = refused.partition("base, bench: started")[0]
    assert all(words in beforehand for words in ("aime25: 6 questions", "too few to prove a gain", "undecidable"))
    for words in (f"{server.url} refuses the API key: 401", "FT_JUDGE_API_KEY", "FT_JUDGE_MODEL=marker", AGAIN):
        assert words in refused.partition("ftloop: aime25: the judge ")[2]

    (trial,) = user.state().trials
    assert trial.verdict == "undecidable"
    base = user.state().result(0, "bench", Scores)
    assert base is not None
    (score,) = base.scores
    questions = load_questions(score.questions)
    told = [question.score for question in questions]
    assert (score.n, score.unscored, len(told)) == (6, 0, 6)
    assert set(told) == {0.0, 1.0}
    assert score.mean == pytest.approx(sum(mark or 0 for mark in told) / 6)
    assert f"aime25 {score.mean:.3f} ±" in output
    assert f"[{score.low:.2f}, {score.high:.2f}] n=6" in output
    (study,) = (Path(entry.path) for entry in user.studies())
    transcript = [json.loads(line) for line in (study / "base/bench/judge.jsonl").read_text().splitlines()]
    given = [line["verdict"] for line in transcript if line.get("verdict")]  # in the order of their arrival
    assert sorted(given) == sorted("A" if mark else "B" for mark in told)
    asked_again = (study.glob(f"{stage}/bench/aime25-*/bench.log") for stage in ("base", "trials/0001"))
    assert ["Start inferencing" in log.read_text() for logs in asked_again for log in logs] == [False, True]
    assert KEY not in refused + output
    nowhere(KEY, user.home)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def marks_of(root: Path) -> dict[str, float | None]:
    """What the job itself wrote about each answer, whatever became of it."""
    (file,) = (root / "stage").glob("aime25-*/output/questions.jsonl")
    return {line["id"]: line["score"] for line in map(json.loads, file.read_text().splitlines())}


def nothing_is_leaked(root: Path) -> None:
    """The transcript has every sample, and the key is in no file."""
    assert len((root / "stage/judge.jsonl").read_text().splitlines()) >= 12
    nowhere(KEY, root)


def nowhere(text: str, root: Path) -> None:
    for file in root.rglob("*"):
        assert not file.is_file() or text.encode() not in file.read_bytes(), file
