"""Fine-tuning as a scenario: the base's settings, candidates in a race, sampled scores, what a proposer is shown."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from agent.accept import SINGLE
from agent.propose.digest import mistakes_text, scores_text, trials_text
from agent.records import Contamination, FileRef, History, Mistake, Question, Score, Scores
from agent.report import plots
from agent.report.markdown import report_text
from agent.report.summary import summary
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.score_cache import GREEDY, load_questions, sampling_for
from scenarios.finetune.splits import Halves
from tests.records_factory import make_comparison, make_report, make_score, make_trial
from tests.test_race import IN_BLOCKS, candidate, questions
from tests.test_scoring import lay_benchmark, lay_model, make_bench

# Right on so many of a hundred questions, in turn, and in the asked form unless there are no examples.
BY_SHOTS = """
count = len(answers)
share = {5: 60, 0: 20}[request["fewshot"]]
for index, answer in enumerate(answers):
    answer["score"] = float(index * 37 % 100 < share)
    answer["formatted"] = request["fewshot"] == 5 or index % 2 == 0
    answer["extracted"] = "x" if answer["formatted"] else "[invalid]"
write()
"""


def scenario(root: Path, *benchmarks: Benchmark, contamination: Any = None, **changed: Any) -> FineTune:
    plan = SimpleNamespace(
        model=SimpleNamespace(path=str(lay_model(root))),
        device="cpu",
        data=SimpleNamespace(contamination=contamination),
    )
    values: dict[str, Any] = {"limit": None, "timeout": 30.0, "cache": root / "scores", "weights": "w"}
    return FineTune(plan=cast("Any", plan), benchmarks=benchmarks, **(values | changed))


def few_shot(root: Path, n: int = 100) -> Benchmark:
    return dataclasses.replace(lay_benchmark(root, questions(n)), fewshots=(0, 5))


def test_the_base_is_scored_at_both_settings_and_both_are_kept(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, BY_SHOTS)
    found = scenario(tmp_path, few_shot(tmp_path)).baseline(bench)
    (better,), (other,) = found.scores, found.others
    assert (better.settings["fewshot"], better.mean, better.unformatted) == (5, 0.6, 0)
    assert (other.settings["fewshot"], other.mean, other.unformatted) == (0, 0.2, 50)
    report = make_report(base=(better,), others=(other,))
    text = report_text(report)
    assert "n=100, 5-shot, the one to beat<br>0.200 ± 0.040 [0.13, 0.29] n=100, 50 without an answer, zero-shot" in text
    assert "the form of an answer" in text
    printed = summary(report)
    assert "the base model, 5-shot" in printed
    assert "the base model, zero-shot" in printed


def test_what_a_greedy_base_needs_is_not_scored_afresh_and_a_small_benchmark_is_sampled(tmp_path: Path) -> None:
    large, small = lay_benchmark(tmp_path, questions(100)), lay_benchmark(tmp_path, questions(30))
    assert not scenario(tmp_path, large).sampled
    assert scenario(tmp_path, large, small).sampled
    assert not scenario(tmp_path, small, samples=1).sampled
    assert scenario(tmp_path, large, samples=4).sampling(large).samples == 4
    assert sampling_for(100, None) == GREEDY
    first, fresh = sampling_for(30, None), sampling_for(30, None, fresh=1)
    assert first.samples == fresh.samples > 1
    seeds = [set(range(one.seed, one.seed + one.samples)) for one in (first, fresh)]
    assert not seeds[0] & seeds[1]


SAMPLED = """
import random
for answer in answers:
    draws = [float(random.Random((request["seed"] + i) * 1000 + int(answer["id"], 16) % 997).random() < 0.5)
             for i in range(request["samples"])]
    answer |= {"scores": draws, "score": sum(draws) / len(draws)}
write()
"""


def test_sampled_scores_are_means_and_a_fresh_one_is_another(tmp_path: Path) -> None:
    small = lay_benchmark(tmp_path, questions(20))
    one = scenario(tmp_path, small, samples=4)
    bench, checkpoint = make_bench(tmp_path, SAMPLED), candidate(tmp_path)
    base = one.baseline(bench)
    (score,) = one.score(bench, checkpoint, base.scores, 1).scores
    (fresh,) = one.rescore(bench, checkpoint).scores
    assert (score.samples, score.n) == (4, 20)
    assert any(0.0 < (question.score or 0.0) < 1.0 for question in load_questions(score.questions))
    assert fresh.key != score.key
    assert one.compare([fresh], base.scores, "base", 2).candidate == 2
    with pytest.raises(ValueError, match="decoded differently"):
        one.compare([msgspec.structs.replace(fresh, samples=1)], base.scores, "base", 2)


@pytest.mark.parametrize("behaviour", ["answer['scores'] = [1.0]", "answer['scores'] = [0.0, 0.0, 1.0, 1.0, 1.0]"])
def test_samples_that_are_not_those_asked_for_are_refused(tmp_path: Path, behaviour: str) -> None:
    from agent.errors import TrialFailed

    bench = make_bench(tmp_path, f"for answer in answers: {behaviour}\nwrite()")
    with pytest.raises(TrialFailed, match=r"answers, not 4"):
        scenario(tmp_path, lay_benchmark(tmp_path, questions(20)), samples=4).baseline(bench)


def two(root: Path) -> tuple[Benchmark, Benchmark]:
    one = lay_benchmark(root, questions(100))
    return one, dataclasses.replace(one, name="second", fingerprint="second")


def test_benchmarks_still_to_come_are_not_asked_where_a_candidate_drops_out(tmp_path: Path) -> None:
    one = scenario(tmp_path, *two(tmp_path))
    base = one.baseline(make_bench(tmp_path, "for a in answers: a['score'] = 1.0\nwrite()"))
    bench = make_bench(tmp_path, IN_BLOCKS.replace("{right}", "lambda i: False").replace("{pause}", "0.2"))
    scores = one.score(bench, candidate(tmp_path), base.scores, 1).scores
    assert len(scores) == 1
    assert (scores[0].asked or 0) < 100
    found = one.compare(scores, base.scores, "base", 1)
    assert (found.verdict, found.asked, found.planned) == ("worse", scores[0].asked, 200)


def test_a_candidate_that_stays_is_asked_all_benchmarks(tmp_path: Path) -> None:
    one = scenario(tmp_path, *two(tmp_path))
    base = one.baseline(make_bench(tmp_path, "write()"))
    bench = make_bench(tmp_path, IN_BLOCKS.replace("{right}", "lambda i: True").replace("{pause}", "0.0"))
    scores = one.score(bench, candidate(tmp_path), base.scores, 1).scores
    assert [(score.benchmark, score.n, score.asked) for score in scores] == [
        ("reverse", 100, None),
        ("second", 100, None),
    ]
    assert one.compare(scores, base.scores, "base", 1).verdict == "better"


def test_every_score_of_a_contaminated_benchmark_is_marked(tmp_path: Path) -> None:
    found = Contamination(key="k", rows=100, found={"reverse": 12}, flagged=12, action="marked")
    one = scenario(tmp_path, *two(tmp_path), contamination=found)
    first, second = one.baseline(make_bench(tmp_path)).scores
    assert first.marked == "contaminated: 12 of 100 rows of the training data hold its questions"
    assert second.marked == ""
    one = scenario(tmp_path, *two(tmp_path), contamination=msgspec.structs.replace(found, action="removed"))
    assert [score.marked for score in one.baseline(make_bench(tmp_path)).scores] == ["", ""]


def pooled(root: Path, **changed: Any) -> FineTune:
    """A pool of 100 questions, and a target of 40 of its own with two settings of the base."""
    whole = lay_benchmark(root, questions(50))
    pool = dataclasses.replace(whole, halves=Halves((*whole.halves.search, *whole.halves.test), (), 0))
    other = lay_benchmark(root, [{"question": f"target {i}", "answer": "x"} for i in range(40)])
    halves = Halves((), (*other.halves.search, *other.halves.test), 0)
    target = dataclasses.replace(other, name="target", fingerprint="target", fewshots=(0, 5), halves=halves)
    return scenario(root, pool, targets=(target,), samples=1, **changed)


def test_with_a_pool_the_target_is_asked_whole_and_only_when_the_seal_is_opened(tmp_path: Path) -> None:
    one, bench = pooled(tmp_path), make_bench(tmp_path, BY_SHOTS)
    base = one.baseline(make_bench(tmp_path, "write()"))
    assert [(score.benchmark, score.split, score.n) for score in base.scores] == [("reverse", "search", 100)]
    sealed = one.open_seal(make_bench(tmp_path, BY_SHOTS), candidate(tmp_path), base.scores)
    assert [(score.benchmark, score.split, score.n) for score in sealed.winner] == [("target", "test", 40)]
    (floor,), (other,) = sealed.base, sealed.others
    assert (floor.settings["fewshot"], other.settings["fewshot"]) == (5, 0), "the harder one to beat"
    assert floor.mean > other.mean
    assert (sealed.comparison.alpha, sealed.comparison.candidate) == (SINGLE, None)
    assert sealed.comparison.n == 40
    assert not bench.jobs
    report = make_report(sealed=sealed)
    told = f"base zero-shot {other.mean:.3f} (20 without an answer), 5-shot {floor.mean:.3f}; winner zero-shot"
    assert told in " ".join(summary(report).split())
    assert f"- test: {told}" in report_text(report)


def test_the_time_of_the_seal_is_told_from_that_of_the_search(tmp_path: Path) -> None:
    base = Scores(scores=(msgspec.structs.replace(make_score(0.5), seconds=10.0),))
    assert pooled(tmp_path).seal_seconds(base, 30.0) == pytest.approx(0.4 * 40.0)
    assert pooled(tmp_path, limit=20).seal_seconds(base, 30.0) == pytest.approx(40.0)
    assert scenario(tmp_path, lay_benchmark(tmp_path, questions(100))).seal_seconds(base, 30.0) == 40.0


# What a proposer is shown


def test_wrong_answers_of_the_best_are_shown_in_bounded_lines(tmp_path: Path) -> None:
    text = "line\nline </data> " + "x" * 5000
    wrong = tuple(Mistake(question=text, response=text, extracted=None) for _ in range(9))
    base = msgspec.structs.replace(make_score(0.2), mistakes=wrong, unformatted=7)
    shown = mistakes_text(History(base=(base,)))
    assert len(shown.splitlines()) == 3
    assert len(shown) < 3000
    assert "no answer found in it" in shown
    assert "7 without an answer" in scores_text([base])
    best = msgspec.structs.replace(make_score(0.5), mistakes=(Mistake(question="q", response="r", extracted="e"),))
    history = History(base=(base,), trials=(make_trial(1, scores=(make_score(0.6),)),), best=1, fresh=(best,))
    assert mistakes_text(history) == 'demo/reverse: "q" -> "r", taken as "e"'
    assert history.incumbent == ("trial 1", (best,))


def test_mistakes_come_from_the_search_split_alone(tmp_path: Path) -> None:
    one = scenario(tmp_path, lay_benchmark(tmp_path, questions(100)))
    bench = make_bench(tmp_path)
    (search,) = one.baseline(bench).scores
    sealed = one.open_seal(bench, candidate(tmp_path), [search])
    assert search.mistakes
    asked = {str(item.row["question"]) for item in one.benchmarks[0].halves.search}
    assert {wrong.question for wrong in search.mistakes} <= asked
    assert not any(score.mistakes for score in (*sealed.winner, *sealed.base))
    with pytest.raises(ValueError, match="nothing of the test split"):
        msgspec.structs.replace(sealed.winner[0], mistakes=search.mistakes)


def test_a_dropped_candidate_is_told_as_such(tmp_path: Path) -> None:
    dropped = msgspec.structs.replace(make_comparison(-0.1, "tie", n=30), asked=30, planned=150)
    trial = make_trial(1, comparison=dropped)
    history = History(base=(make_score(0.2),), trials=(trial,))
    assert "dropped after 30 of 150 questions" in trials_text(history, lambda _: {}, 10_000)
    partial = msgspec.structs.replace(trial.scores[0], asked=30, planned=150)
    assert "after 30 of 150 questions" in scores_text([partial])
    line = "score about 0.100 (after 30 of 150 questions), tie"
    assert line in trials_text(history, lambda _: {}, 300), "the base's mean and the paired difference"
    report = make_report(base=(make_score(0.2),), trials=(trial,), best=None, sealed=None)
    assert plots.of_trial(trial, report) == pytest.approx((0.1, 0.04, 0.16))
    assert "dropped after 30 of 150 questions" in report_text(report)
    assert "dropped after 30 of 150 questions" in summary(report)
    assert "racing 80% of 150 questions saved: 1 of 1 candidate dropped early" in " ".join(summary(report).split())
    assert Scores(scores=(make_score(0.2),)).others == ()


def test_unscored_answers_of_several_cannot_win(tmp_path: Path) -> None:
    """Every question has one right answer that was scored, and three that were not."""
    one = scenario(tmp_path, lay_benchmark(tmp_path, questions(200)))
    bench = make_bench(tmp_path, "write()")
    (base,) = one.baseline(bench).scores
    answers = load_questions(base.questions)
    lucky = [msgspec.structs.replace(answer, score=1.0, scores=(1.0, None, None, None)) for answer in answers]
    even = [msgspec.structs.replace(answer, score=0.25, scores=(1.0, 0.0, 0.0, 0.0)) for answer in answers]
    new, old = (keep(tmp_path / name, base, found) for name, found in (("new", lucky), ("old", even)))
    assert one.compare([new], [old], "base", 1).verdict == "unscored"
    sure = [msgspec.structs.replace(answer, score=1.0, scores=(1.0,) * 4) for answer in answers]
    assert one.compare([keep(tmp_path / "sure", base, sure)], [old], "base", 1).verdict == "better"


def keep(path: Path, score: Score, answers: Sequence[Question]) -> Score:
    """The score with these answers behind it."""
    content = b"".join(msgspec.json.encode(answer) + b"\n" for answer in answers)
    path.write_bytes(content)
    file = FileRef(path=str(path), sha256=hashlib.sha256(content).hexdigest())
    return msgspec.structs.replace(score, questions=file, samples=4)
