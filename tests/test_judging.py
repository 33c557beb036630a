"""Scores of judged benchmarks: what becomes of a job whose judge fails, and what is asked again afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import MachineError, TrialFailed, UsageError
from agent.gateway import Gateway, Judge, Limits
from agent.llm import Endpoint, Price
from agent.records import Checkpoint, Question, Score, Usage
from agent.resources import resource
from agent.ruler import asked_how, choose_judges
from agent.settings import load
from scenarios.finetune import scoring
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.judging import Judges
from scenarios.finetune.score_cache import load_questions
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.test_compass import lay, rows_of
from tests.test_scoring import StageBench, ask, make_bench, real_bench, real_models

__all__ = ["real_bench", "real_models"]

QUICK = Limits(call=0.5, patience=2.0, retries=0, failures=2, asks=2)

# A job whose answers are marked: it predicts, unless it is given predictions, and asks the gateway for each verdict.
JUDGED = """
import urllib.request
sys.path.insert(0, {bench!r})
from forward import forwarding
if request.get("predictions"):
    predicted = [json.loads(line) for line in open(request["predictions"])]
else:
    predicted = [{{"id": q["id"], "text": q["row"]["answer"], "made": "now"}} for q in questions]
    (output / "made").touch()
(output / "predictions.jsonl").write_text("".join(json.dumps(one) + "\\n" for one in predicted))
with forwarding(request["judge"]["socket"]) as url:
    for answer, one in zip(answers, predicted):
        body = json.dumps({{"model": "m", "messages": [{{"role": "user", "content": "mark " + one["text"]}}]}})
        headers = {{"Content-Type": "application/json"}}
        with urllib.request.urlopen(urllib.request.Request(url + "/chat/completions", body.encode(), headers)) as said:
            verdict = json.load(said)["choices"][0]["message"]["content"]
        answer["score"] = {{"A": 1.0, "B": 0.0}}.get(verdict)
if all(answer["score"] is None for answer in answers):
    (output / "error.txt").write_text("not one question has a score")
    sys.exit(1)
write()
""".format(bench=str(resource("docker/bench")))


def judged_by(
    server: ChatServer, root: Path, model: str = "judge", address: str = "", limits: Limits = QUICK
) -> Judges:
    def gateway(verdicts: Sequence[str], directory: Path) -> Gateway:
        endpoint = Endpoint(model=model, base_url=server.url, settings="FT_JUDGE")
        role = Judge(tuple(verdicts), root / "verdicts")
        return Gateway(endpoint, Price(), role, transcript=directory / "judge.jsonl", limits=limits)

    return Judges(model, gateway, address)


def aime(root: Path) -> Benchmark:
    return lay(root, "aime25", rows_of("aime25", 40))


def score(root: Path, answer: Callable[[ChatRequest], ChatAnswer], **changed: Any) -> tuple[StageBench, Score]:
    root.mkdir(exist_ok=True)
    bench = make_bench(root, JUDGED)
    with ChatServer(answer) as server:
        return bench, ask(bench, root, aime(root), judges=judged_by(server, root), **changed)


def marks(request: ChatRequest) -> ChatAnswer:
    return ChatAnswer("A" if int(request.text.split()[1]) % 4 else "B")


def test_a_judged_score_has_the_judges_verdicts_and_names_it(tmp_path: Path) -> None:
    bench, made = score(tmp_path, marks)
    rows = {item.id: int(str(item.row["answer"])) for item in aime(tmp_path).halves.search}
    assert {one.id: one.score for one in load_questions(made.questions)} == {
        name: float(bool(number % 4)) for name, number in rows.items()
    }
    assert made.settings["judging"] | {"cost": 0} == {
        "model": "judge", "asked": 20, "cached": 0, "unscored": 0, "unclear": "", "cost": 0
    }  # fmt: skip
    assert (bench.directory / "judge.jsonl").read_text().count("mark ") >= 20
    (job,) = bench.jobs
    assert len([mount for mount in job.mounts if mount.writable]) == 1
    _, again = score(tmp_path, marks)
    assert again.key == made.key
    with ChatServer(marks) as server:
        other = ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path, "another"))
        elsewhere = ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path, address="http://broken/v1"))
    assert other.key != made.key, "another judge, another score"
    assert elsewhere.key != made.key, "whatever a server calls itself"


FAILURES: dict[str, tuple[Callable[[ChatRequest], ChatAnswer], str]] = {
    "wrong key": (lambda request: ChatAnswer(status=401, error="bad key"), "401"),
    "limited": (lambda request: ChatAnswer(status=429, error="slow down"), "429"),
    "broken": (lambda request: ChatAnswer(status=500, error="overloaded"), "500"),
    "hanging": (lambda request: ChatAnswer("A", delay=30.0), "judge"),
    "a web page": (lambda request: ChatAnswer(body=b"<html>Welcome</html>"), "judge"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_judge_that_fails_stops_the_call_and_the_next_one_only_judges(tmp_path: Path, failure: str) -> None:
    answer, words = FAILURES[failure]
    with pytest.raises(MachineError, match=words) as error:
        score(tmp_path, answer)
    assert "aime25" in error.value.message
    assert "judges only what is missing" in error.value.hint
    (kept,) = (tmp_path / "scores").glob("*.predictions.jsonl")
    assert len(kept.read_text().splitlines()) == 20
    bench, made = score(tmp_path, marks)
    assert made.n == 20
    assert not (Path(bench.jobs[0].cwd) / "made").exists(), "the model was not asked again"
    assert not kept.exists()


def test_verdicts_given_before_a_judge_failed_are_not_asked_for_again(tmp_path: Path) -> None:
    expired = True

    def judge(request: ChatRequest) -> ChatAnswer:
        dead = expired and request.number > 7
        return ChatAnswer(status=401, error="expired") if dead else marks(request)

    bench = make_bench(tmp_path, JUDGED)
    with ChatServer(judge) as server:
        with pytest.raises(MachineError):
            ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path))
        expired, before = False, len(server.requests)
        made = ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path))
        assert (made.n, len(server.requests) - before, made.settings["judging"]["cached"]) == (20, 13, 7)


def predictions(root: Path) -> list[Path]:
    """What is kept for a next attempt."""
    return list((root / "scores").glob("*.predictions.jsonl"))


def checkpoint(root: Path) -> Checkpoint:
    """A candidate, as opposed to the base."""
    (root / "adapter").mkdir(exist_ok=True)
    return Checkpoint(path=str(root / "adapter"), weights="x", adapter=True)


class Dropping:
    """Stands in for the race, whose arithmetic has its own tests: dropped once the judge was asked by so many."""

    dropped = (Question(id="x", score=0.0, response=""),)

    def __init__(self, server: ChatServer, after: int) -> None:
        self._server, self._after = server, after

    def __call__(self) -> str | None:
        return "dropped after some questions" if len(self._server.requests) >= self._after else None


def test_a_candidate_that_is_dropped_while_the_judge_is_asked_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under way then is nobody's fault, and nothing is kept for another attempt."""
    bench = make_bench(tmp_path, JUDGED)
    with ChatServer(lambda request: ChatAnswer("A", delay=0.0 if request.number < 2 else 60.0)) as server:
        monkeypatch.setattr(scoring, "Watcher", lambda *_: Dropping(server, 2))
        patient = judged_by(server, tmp_path, limits=replace(QUICK, call=30.0, patience=30.0))
        made = ask(bench, tmp_path, aime(tmp_path), judges=patient, race=object(), checkpoint=checkpoint(tmp_path))
    assert (made.asked, made.n) == (1, 1)
    assert predictions(tmp_path) == []


def test_a_judge_too_slow_for_the_time_limit_is_named_and_its_verdicts_are_kept(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, JUDGED)
    with ChatServer(lambda request: replace(marks(request), delay=0.4)) as server:
        who = judged_by(server, tmp_path)
        with pytest.raises(
            MachineError, match=r"FT_BENCHMARK_TIMEOUT.* went to the judge .FT_JUDGE_MODEL=judge"
        ) as error:
            ask(bench, tmp_path, aime(tmp_path), judges=who, timeout=3.0, checkpoint=checkpoint(tmp_path))
        assert "judges only what is missing" in error.value.hint
        assert len(predictions(tmp_path)) == 1
        before = len(server.requests)
        assert 2 < before < 20
        made = ask(bench, tmp_path, aime(tmp_path), judges=who, checkpoint=checkpoint(tmp_path))
        assert made.n == 20
        assert made.settings["judging"]["cached"] >= before - 1, "all but the one that was under way"


def test_a_model_too_slow_for_the_time_limit_is_not_the_judges_fault(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, "time.sleep(60)\n" + JUDGED)
    with ChatServer(marks) as server, pytest.raises(TrialFailed, match="FT_BENCHMARK_TIMEOUT") as error:
        ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path), timeout=1.0)
    assert error.value.kind == "bench"


def test_predictions_are_kept_as_long_as_somebody_may_judge_them(tmp_path: Path) -> None:
    for trained, kept in ((None, 1), (checkpoint(tmp_path), 0)):
        with pytest.raises(TrialFailed, match="gave no verdict"):
            score(tmp_path / str(kept), lambda request: ChatAnswer("hm"), checkpoint=trained)
        assert len(predictions(tmp_path / str(kept))) == kept, "a base is scored again, a failed trial is not"


def test_predictions_are_another_judges_too(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, JUDGED)
    with ChatServer(lambda request: ChatAnswer(status=401, error="no")) as server, pytest.raises(MachineError):
        ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path, address=server.url))
    with ChatServer(marks) as server:
        ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path, "another", server.url))
    assert not (Path(bench.jobs[1].cwd) / "made").exists(), "the model was not asked again"
    assert predictions(tmp_path) == []


def test_a_job_that_asks_without_end_is_ended_by_an_error(tmp_path: Path) -> None:
    endless = JUDGED.replace("zip(answers, predicted)", "list(zip(answers, predicted)) * 5")
    bench = make_bench(tmp_path, endless)
    with ChatServer(marks) as server:
        with pytest.raises(MachineError, match="the job asked the judge 41 times, and 40 are enough"):
            ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path))
        assert len(server.requests) == 20, "each verdict is bought once"


def metered(prompt: int, completion: int) -> Callable[[ChatRequest], ChatAnswer]:
    """A judge that says how many tokens each verdict took."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return lambda request: replace(marks(request), usage=usage)


def test_what_the_judge_consumed_is_counted_also_where_it_failed_and_not_twice(tmp_path: Path) -> None:
    bench, _ = score(tmp_path, metered(100, 2))
    assert [(one.calls, one.prompt_tokens, one.completion_tokens) for one in bench.consumed] == [(20, 2000, 40)]
    again, _ = score(tmp_path, marks)
    assert not again.consumed, "the score is reused, and costs nothing"
    bench = make_bench(tmp_path, JUDGED)
    with ChatServer(lambda request: ChatAnswer("hm")) as server, pytest.raises(TrialFailed):
        ask(bench, tmp_path, aime(tmp_path), judges=judged_by(server, tmp_path), weights="other")
    assert sum(one.calls for one in bench.consumed) == 40, "each was asked twice"


def test_the_judges_price_is_a_setting_of_its_own(tmp_path: Path) -> None:
    def cost(**given: str) -> float | None:
        with ChatServer(metered(1000, 10)) as server:
            environment = {"FT_JUDGE_API_BASE": server.url, "FT_PRICE_INPUT": "1000", **given}
            judges = choose_judges(load({}, None, environment, tmp_path), [aime(tmp_path)], tmp_path / str(len(given)))
            bench = make_bench(tmp_path, JUDGED)
            ask(bench, tmp_path, aime(tmp_path), judges=judges, cache=tmp_path / f"cache-{len(given)}")
            return sum(bench.consumed, Usage()).cost

    assert cost() == 0.0, "what is local and has no price is free"
    assert cost(FT_JUDGE_PRICE_INPUT="2", FT_JUDGE_PRICE_OUTPUT="10") == pytest.approx(20 * (2000 + 100) / 1e6)


@pytest.mark.parametrize("said", ["CORRECT", "", "After review, the prediction is wrong. B"])
def test_a_judge_without_verdicts_is_a_finding_and_no_score(tmp_path: Path, said: str) -> None:
    with pytest.raises(TrialFailed, match="gave no verdict on 100% of the answers") as error:
        score(tmp_path, lambda request: ChatAnswer(said))
    assert error.value.kind == "judge"
    assert said[:20] in error.value.reason


def test_a_few_unscored_answers_are_counted_and_many_are_too_many(tmp_path: Path) -> None:
    def unsure(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer("hm") if request.text.split()[1] in unclear else marks(request)

    numbers = [str(item.row["answer"]) for item in aime(tmp_path).halves.search]
    unclear = set(numbers[:2])
    _, made = score(tmp_path, unsure)
    assert (made.n, made.unscored) == (18, 2)
    unclear = set(numbers[:3])
    with pytest.raises(TrialFailed, match="gave no verdict on 15%"):
        score(tmp_path, unsure, weights="other")


def test_a_judged_benchmark_without_an_endpoint_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    settings = load({}, None, {}, tmp_path)
    with pytest.raises(UsageError, match="the answers of aime25 are marked by a judge model") as error:
        choose_judges(settings, [aime(tmp_path)], tmp_path)
    assert "FT_JUDGE_API_KEY" in error.value.hint
    environment = {"FT_JUDGE_API_BASE": "http://127.0.0.1:9/v1", "FT_JUDGE_MODEL": "m"}
    judges = choose_judges(load({}, None, environment, tmp_path), [aime(tmp_path)], tmp_path)
    assert judges is not None
    assert judges.model == "m"


def test_another_endpoint_makes_another_study(tmp_path: Path) -> None:
    """A server that calls itself by a good judge's name must not share its scores."""

    def asked_at(address: str) -> str:
        environment = {"FT_JUDGE_MODEL": "gpt-4", "FT_JUDGE_API_BASE": f"http://user:secret@{address}/v1?key=secret"}
        chosen = load({}, None, environment, tmp_path)
        return asked_how(aime(tmp_path), chosen, choose_judges(chosen, [aime(tmp_path)], tmp_path))

    assert asked_at("127.0.0.1:9").endswith("judged by gpt-4 at http://127.0.0.1:9/v1")
    assert asked_at("127.0.0.1:8") != asked_at("127.0.0.1:9")
    assert "secret" not in asked_at("127.0.0.1:9")


@pytest.mark.slow
def test_a_real_judged_score(real_bench: StageBench, real_models: Path, tmp_path: Path) -> None:
    """OpenCompass, the gateway and a judge over HTTP: from the score to each verdict."""
    with ChatServer(lambda request: ChatAnswer("A" if request.number % 2 else "B")) as server:
        made = ask(
            real_bench,
            tmp_path,
            aime(tmp_path),
            model=real_models / "base",
            weights="base",
            limit=6,
            timeout=300.0,
            judges=judged_by(server, tmp_path),
        )
    assert (made.n, made.mean, made.unscored) == (6, 0.5, 0)
    transcript = [json.loads(line) for line in (real_bench.directory / "judge.jsonl").read_text().splitlines()]
    assert len(transcript) >= 6
