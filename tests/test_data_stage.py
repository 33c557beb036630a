"""The data stage with real scripts, real steps and a real HTTP endpoint; what is in a benchmark never gets through."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agent.budget import Budget
from agent.data_work import replay_data_models
from agent.errors import BudgetEnded, MachineError, TrialFailed
from agent.gateway import AnswerStore, Chat, Gateway
from agent.gateway import Limits as GatewayLimits
from agent.llm import Endpoint, Price, Secret
from agent.llm.client import MAX_OUTPUT
from agent.money import Money
from agent.records import Recipe, TrainingData, Usage
from agent.report.plain import PlainView
from agent.run.local import LocalRunner
from agent.study import StageBench
from scenarios.finetune import data, data_script, training
from scenarios.finetune.data_script import Patience
from scenarios.finetune.data_stage import REPAIRS, DataWork, columns_of, prepare
from scenarios.finetune.rows import read
from scenarios.finetune.scenario import FineTune
from scenarios.finetune.training import TrainingPlan
from tests.conformance.runners import ThisPython
from tests.data_scripts import GOOD, HEAD, WRONG
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer
from tests.test_scoring import lay_benchmark, lay_model
from tests.test_training import MODEL, PLAN
from tests.word_problems import problems

KEY = "sk-data-0123456789abcdef"
SEALED = [question for question, _ in islice(problems(2), 20)]
HARD = ({"step": "filter", "columns": "level", "contains": "hard"},)
FEW = {"step": "limit", "n": 3}


class Desk:
    """One study's data work: 300 rows in five columns, three of which hold questions of its benchmark."""

    def __init__(self, root: Path) -> None:
        self.root, self.said, self.mended = root, io.StringIO(), list[str]()
        rows = [
            {"question": question, "answer": answer, "level": "hard" if n % 2 else "easy", "seen": n, "note": ""}
            for n, (question, answer) in enumerate(islice(problems(1), 297))
        ]
        rows[50:50] = [
            {**rows[1], "question": SEALED[0]},
            {**rows[1], "answer": SEALED[1]},
            {**rows[1], "note": SEALED[2]},
        ]
        (root / "source").mkdir()
        (root / "source" / "train.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        self.benchmark = lay_benchmark(root, [{"question": question, "answer": "42"} for question in SEALED])
        dataset = data.recognise(root / "source")
        made = data.write(dataset, root / "data")
        model = msgspec.structs.replace(MODEL, path=str(lay_model(root)))
        self.plan: TrainingPlan = msgspec.structs.replace(PLAN, model=model, data=made)
        self.budget = Budget()
        self.work = DataWork(
            dataset=dataset,
            columns=columns_of(dataset),
            directory=root / "data-work",
            benchmarks=(self.benchmark,),
            patience=Patience(debug=30, full=30),
        )
        self.trials = 0

    def bench(self) -> StageBench:
        self.trials += 1
        stage = self.root / "trials" / f"{self.trials}"
        stage.mkdir(parents=True)
        runner = LocalRunner(ThisPython(), grace=1.0, unsafe=True)
        return StageBench(stage, f"s-{self.trials}-data", {}, runner, self.budget, PlainView(self.said))

    def __call__(self, *steps: dict[str, Any], script: str = "", mends: tuple[str, ...] = ()) -> TrainingData:
        """The data of a recipe; its author has so many better scripts in hand."""

        def mend(broken: str, problem: str) -> str:
            self.mended.append(problem)
            if len(self.mended) > len(mends):
                raise TrialFailed("data", problem.splitlines()[0], problem)
            return mends[len(self.mended) - 1]

        self.mended.clear()
        recipe = Recipe(train={}, script=script, data=steps)
        self.last = self.bench()
        return prepare(self.last, recipe, self.plan, self.work, mend)

    def rows(self, made: TrainingData) -> list[dict[str, Any]]:
        return list(read(Path(made.path) / "train.jsonl"))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def holds_sealed(text: str) -> bool:
    return any(question[start : start + 60] in text for question in SEALED for start in (0, 20))


def test_steps_alone_work_on_all_columns_without_the_benchmarks_rows(desk: Desk) -> None:
    made = desk(*HARD, {"step": "sample", "n": 100, "seed": 3})
    rows = desk.rows(made)
    assert (made.rows, len(rows), made.repairs, made.reused) == (100, 100, 0, False)
    assert set(rows[0]) == {"prompt", "response"}
    assert json.loads((Path(made.path) / "dataset_info.json").read_text())["train"]["formatting"] == "alpaca"
    assert "1. filter: 297 -> 148 rows" in made.summary
    assert "100 rows" in made.summary
    assert len(made.summary) <= 4_000
    everything = [p for p in (desk.root / "data-work").rglob("*") if p.is_file()]
    assert not any(holds_sealed(file.read_text()) for file in everything)


def test_the_same_work_is_done_once_and_another_data_set_is_another(desk: Desk) -> None:
    first = desk(*HARD)
    again = desk(*HARD)
    assert (again.reused, again.path, again.summary) == (True, first.path, first.summary)
    other = desk(*HARD, {"step": "shuffle", "seed": 1})
    assert (other.reused, other.path) == (False, other.path)
    (Path(first.path) / "train.jsonl").unlink()
    repaired = desk(*HARD)
    assert (repaired.reused, repaired.rows) == (False, first.rows)


def test_a_template_composes_what_is_trained_on(desk: Desk) -> None:
    made = desk({"step": "template", "columns": {"instruction": "Think. {question}", "output": "{answer}"}})
    assert desk.rows(made)[0]["prompt"].startswith("Think. ")


def test_steps_that_leave_too_little_fail_the_trial_and_say_why(desk: Desk) -> None:
    with pytest.raises(TrialFailed) as caught:
        desk(FEW)
    assert caught.value.kind == "data"
    assert "too few different rows that can be trained on: 3" in caught.value.reason + caught.value.tail


def test_more_rows_than_the_limit_are_drawn(desk: Desk) -> None:
    desk.work = dataclasses.replace(desk.work, most=50)
    assert desk({"step": "shuffle"}).rows == 50
    assert desk(script=GOOD).rows == 50


def test_a_good_script_is_used_and_remembered(desk: Desk) -> None:
    made = desk(script=GOOD)
    assert (made.rows, made.repairs, made.script) == (148, 0, GOOD)
    assert "full run of process_data.py: usable" in made.summary
    assert desk(script=GOOD).reused
    both = desk({"step": "limit", "n": 20}, script=GOOD)
    assert (both.rows, both.script) == (20, GOOD)
    assert "1. limit: 148 -> 20 rows" in both.summary


def test_a_broken_script_goes_back_to_its_author_with_what_was_wrong(desk: Desk) -> None:
    typo, _, said = WRONG["a typo"]
    made = desk(script=typo, mends=(WRONG["wrong keys"][0], GOOD))
    assert (made.rows, made.repairs, made.script) == (148, 2, GOOD)
    assert said in desk.mended[0]
    assert "no usable columns among text" in desk.mended[1]
    assert "goes back to its author" in desk.said.getvalue()
    assert (desk.last.directory / "script-1" / "debug" / "job.log").is_file(), "every attempt's log is kept"


def test_after_the_last_repair_the_trial_ends(desk: Desk) -> None:
    typo = WRONG["a typo"][0]
    said = "no data that can be trained on after 3 repairs: the script's debug run: ended with exit code 1: NameError"
    with pytest.raises(TrialFailed, match=said) as caught:
        desk(script=typo, mends=tuple(f"{typo}# {n}\n" for n in range(REPAIRS)))
    assert len(desk.mended) == REPAIRS
    assert "NameError" in caught.value.tail


@pytest.mark.parametrize("what", ["loops", "prints without end", "emits nothing", "emits 1 row", "wrong keys"])
def test_what_a_script_does_wrong_is_told_and_bounded(what: str, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_script, "LARGEST_LOG", 1 << 20)
    script, _, said = WRONG[what]
    patience = Patience(debug=2, full=2) if what == "loops" else Patience(debug=30, full=30)
    desk.work = dataclasses.replace(desk.work, patience=patience)
    with pytest.raises(TrialFailed) as caught:
        desk(script=script)
    assert said in caught.value.tail
    assert len(caught.value.tail) <= 6_000


def test_steps_that_do_not_fit_the_scripts_columns_are_its_authors_to_mend(desk: Desk) -> None:
    made = desk({"step": "dedupe", "columns": "instruction"}, script=GOOD)
    assert made.rows == 148
    with pytest.raises(TrialFailed):
        desk({"step": "dedupe", "columns": "level"}, script=GOOD)
    assert "no column 'level'" in desk.mended[0]


RECITES = HEAD + (
    "rows = [good(row) for row in rows]\n"
    f"rows[5:5] = [{{'instruction': text, 'output': 'x'}} for text in {SEALED[:4]!r}]\n"
    "emit(rows)\n"
)


def test_a_benchmarks_question_that_a_script_writes_is_taken_out_and_not_shown(desk: Desk) -> None:
    made = desk(script=RECITES)
    assert made.rows == 297
    assert not holds_sealed(json.dumps(desk.rows(made)))
    assert not holds_sealed(made.summary)
    assert "4 of 301 rows hold questions of reverse: removed" in desk.said.getvalue()


def test_neither_does_a_report_to_the_author_show_one(desk: Desk) -> None:
    script = HEAD + f"print({SEALED[3]!r})\nemit([{{'instruction': {SEALED[0]!r}, 'output': ''}}] * 50)\nsys.exit(3)\n"
    with pytest.raises(TrialFailed) as caught:
        desk(script=script)
    assert "ended with exit code 3" in caught.value.tail + caught.value.reason
    assert "(left out)" in desk.mended[0]
    assert not holds_sealed(caught.value.tail + caught.value.reason + desk.mended[0])
    rows = HEAD + f"emit([good(rows[0])] + [{{'instruction': {SEALED[0]!r}, 'output': ''}}] * 50)\n"
    with pytest.raises(TrialFailed) as caught:
        desk(script=rows)
    assert "50 rows: with an empty 'output'" in caught.value.tail
    assert not holds_sealed(caught.value.tail + desk.mended[0])


def test_where_the_user_refuses_contaminated_data_the_trial_fails_without_a_word_of_it(desk: Desk) -> None:
    desk.work = dataclasses.replace(desk.work, refuse=True)
    with pytest.raises(TrialFailed, match=r"4 of 301 rows are questions of a benchmark \(FT_CONTAMINATION=refuse\)"):
        desk(script=RECITES)
    assert desk(script=GOOD).rows == 148


def test_data_that_are_the_benchmark_fail_the_trial(desk: Desk) -> None:
    script = HEAD + f"emit({{'instruction': text, 'output': str(n)}} for n, text in enumerate({SEALED!r}))\n"
    with pytest.raises(TrialFailed, match="20 of 20 rows are questions of a benchmark"):
        desk(script=script)


def test_the_calls_end_ends_a_script(desk: Desk) -> None:
    desk.budget = Budget(seconds=1.5)
    desk.budget.start()
    with pytest.raises(BudgetEnded):
        desk(script=HEAD + "time.sleep(60)\n")
    with pytest.raises(BudgetEnded):
        desk({"step": "shuffle"})


# What a recipe is refused for before anything is run


def scenario(desk: Desk, **changed: Any) -> FineTune:
    return FineTune(
        plan=desk.plan,
        benchmarks=(desk.benchmark,),
        limit=None,
        timeout=30.0,
        cache=desk.root / "scores",
        weights="w",
        work=dataclasses.replace(desk.work, **changed),
    )


def test_bad_steps_are_refused_with_the_columns_that_there_are(desk: Desk) -> None:
    steps = ({"step": "filter", "columns": "levle", "contains": "hard"},)
    (problem,) = scenario(desk).problems(Recipe(train={}, data=steps))
    assert "no column 'levle'; did you mean level?" in problem
    assert not scenario(desk).problems(Recipe(train={}, data=steps, script=GOOD)), "a script may write such a column"
    assert not scenario(desk).problems(Recipe(train={}, data=HARD))


def test_a_script_is_refused_where_nothing_confines_it(desk: Desk) -> None:
    bare = LocalRunner(ThisPython())
    found = scenario(desk, no_scripts=f"a data script cannot run here: {bare.refuses()}")
    assert not found.scripts
    (problem,) = found.problems(Recipe(train={}, script=GOOD))
    assert "--unsafe-local" in problem
    assert not found.problems(Recipe(train={}, data=HARD))
    assert scenario(desk).scripts
    assert LocalRunner(ThisPython(), unsafe=True).refuses() == ""


def test_what_is_made_is_what_is_trained_on_and_measured(desk: Desk) -> None:
    found = scenario(desk)
    recipe = Recipe(train={}, data=HARD)
    made = found.prepare(desk.bench(), recipe, lambda script, problem: script)
    plan = found._plan_for(made)
    assert (plan.data.rows, plan.data.directory) == (made.rows, made.path)
    assert training.shape(recipe, plan) != training.shape(recipe, desk.plan), "a mini-run of other data is no proof"
    written = training.config(recipe, plan, desk.root / "model", mini=False)
    assert written["dataset_dir"] == made.path
    with pytest.raises(MachineError, match="is not there any more"):
        found._plan_for(msgspec.structs.replace(made, path=str(desk.root / "gone")))


def test_what_does_not_fit_the_made_data_fails_the_trial(desk: Desk) -> None:
    recipe = Recipe(train={"stage": "dpo"}, data=HARD)
    found = scenario(desk)
    assert not found.problems(recipe), "what a script makes is not known beforehand"
    with pytest.raises(TrialFailed, match="with the data that it made: stage: dpo needs pairs"):
        found.prepare(desk.bench(), recipe, lambda script, problem: script)


def test_what_could_not_even_hold_short_rows_is_refused_before_they_are_made(desk: Desk) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100, **sizes}
    (Path(desk.plan.model.path) / "config.json").write_text(json.dumps(config))
    found, recipe = scenario(desk), Recipe(train={"finetuning_type": "full"}, script=GOOD)
    roomy = dataclasses.replace(found, plan=msgspec.structs.replace(desk.plan, memory=64 << 30))
    assert not roomy.problems(recipe)
    small = dataclasses.replace(found, plan=msgspec.structs.replace(desk.plan, memory=1 << 20))
    (problem,) = small.problems(recipe)
    assert problem.startswith("the training needs about")


# Models


ASKS = HEAD + (
    "from ftloop_llm import ask, ask_many\n"
    "replies = ask_many([row['question'] for row in rows[:12]], role='strong', concurrency=4)\n"
    "twice = [ask('Say something.', role='weak') for _ in range(2)]\n"
    "emit({'instruction': row['question'], 'output': reply} for row, reply in zip(rows, replies + twice))\n"
)
PRICE = Price(input=100.0, output=100.0)
COST = 120e-4
"""Of one answer: 120 tokens."""


def answers(request: ChatRequest) -> ChatAnswer:
    return ChatAnswer(f"{request.body['model']} answers {request.number}")


@contextmanager
def offered(
    desk: Desk, answer: Callable[[ChatRequest], ChatAnswer] = answers, limit: float | None = None, *, key: bool = True
) -> Iterator[ChatServer]:
    """The desk with a strong model, another one that stands in for it, and a weak one."""
    with ChatServer(answer, key=KEY if key else None) as server:
        names = {"strong": ["large", "spare"], "weak": ["small"]}
        models = {
            role: [(Endpoint(model=name, base_url=server.url, key=Secret(KEY)), PRICE) for name in several]
            for role, several in names.items()
        }
        role = Chat(models, AnswerStore(desk.work.directory))
        desk.budget = Budget(money=Money(limit))
        limits = GatewayLimits(concurrency=4, call=5.0, patience=10.0, retries=0, money=desk.budget.money)
        transcript = desk.work.directory / "transcript.jsonl"
        desk.work = dataclasses.replace(
            desk.work, models=lambda: Gateway(*models["strong"][0], role, transcript=transcript, limits=limits)
        )
        yield server


def spent(bench: StageBench) -> Usage:
    return sum(bench.consumed, Usage())


def test_a_scripts_questions_are_answered_counted_kept_and_never_paid_twice(desk: Desk) -> None:
    with offered(desk) as server:
        made = desk(script=ASKS)
        outputs = [row["response"] for row in desk.rows(made)]
        assert all(output.startswith("large answers") for output in outputs[:12])
        assert len(set(outputs)) == 14, "whoever asks the same twice wants two answers"
        asked = len(server.requests)
        assert asked <= 28, "the full run asks nothing that the debug run has asked"
        assert spent(desk.last).calls == asked
        assert desk.budget.money.spent == pytest.approx(asked * COST), "each answer is paid once"
        assert desk(script=ASKS + "# the same questions again\n").rows == 14
        assert (len(server.requests), spent(desk.last).calls) == (asked, 0)
    transcript = (desk.work.directory / "transcript.jsonl").read_text()
    assert "Say something." in transcript
    assert KEY not in transcript + (desk.work.directory / "answers.jsonl").read_text()


def test_a_replay_gives_the_recorded_answers_and_asks_nobody(desk: Desk) -> None:
    with offered(desk) as server:
        recorded = [row["response"] for row in desk.rows(desk(script=ASKS))]
        desk(script=ASKS.replace("strong", "weak"))
    again = dataclasses.replace(desk.work, directory=desk.root / "again")
    desk.work = dataclasses.replace(again, models=replay_data_models(desk.root / "transcript.jsonl"))
    asked = len(server.requests)
    assert [row["response"] for row in desk.rows(desk(script=ASKS))] == recorded
    assert desk(script=ASKS.replace("strong", "weak")).rows == 14
    with pytest.raises(TrialFailed):
        desk(script=ASKS.replace("Say something.", "Say something else."))
    assert "the recorded study holds no answer" in desk.mended[0]
    assert (len(server.requests), spent(desk.last)) == (asked, Usage())


def test_where_a_model_fails_the_next_one_answers(desk: Desk) -> None:
    def broken(request: ChatRequest) -> ChatAnswer:
        return ChatAnswer(status=404, error="no such model") if request.body["model"] == "large" else answers(request)

    with offered(desk, broken) as server:
        made = desk(script=ASKS)
        assert desk.rows(made)[0]["response"].startswith("spare answers")
        tried = [request.body["model"] for request in server.requests].count("large")
    assert tried <= 2 * 4, "a model that is not there is given up"


def test_an_endpoint_that_is_down_is_no_fault_of_the_script(desk: Desk) -> None:
    refusal = ChatAnswer(status=401, error="bad key")
    with offered(desk, lambda request: refusal), pytest.raises(MachineError, match="refuses the API key") as caught:
        desk(script=ASKS)
    assert not desk.mended
    assert KEY not in str(caught.value)


def test_a_request_that_the_endpoint_cannot_take_is_the_scripts_fault(desk: Desk) -> None:
    too_long = ChatAnswer(status=400, error="the prompt exceeds the context")
    with offered(desk, lambda request: too_long), pytest.raises(TrialFailed):
        desk(script=ASKS)
    assert "exceeds the context" in desk.mended[0]


def test_the_studys_money_is_a_limit_and_ends_the_call(desk: Desk) -> None:
    bounded = ASKS.replace("concurrency=4", "concurrency=4, max_tokens=20").replace("'weak'", "'weak', max_tokens=20")
    with offered(desk, limit=0.2) as server:
        with pytest.raises(BudgetEnded, match=r"FT_MAX_COST"):
            desk(script=bounded)
        paid = desk.budget.money.spent
        assert 0.1 <= paid <= 0.2, "most of it was used, although several requests reserve at a time"
        assert len(server.requests) == round(paid / COST)
        assert not desk.mended


def test_an_endpoint_that_goes_down_is_no_finding_where_the_script_gets_by_without_answers(desk: Desk) -> None:
    up = True

    def half(request: ChatRequest) -> ChatAnswer:
        return answers(request) if up or request.number <= 4 else ChatAnswer(status=500, error="down")

    patient = HEAD + (
        "from ftloop_llm import ask_many\n"
        "replies = ask_many([row['question'] for row in rows[:40]], concurrency=4, missing='nothing was said')\n"
        "emit({'instruction': row['question'], 'output': reply} for row, reply in zip(rows, replies))\n"
    )
    with offered(desk, half):
        up = False
        with pytest.raises(MachineError, match="could not be had"):
            desk(script=patient)
        up = True
        made = desk(script=patient)
    assert made.rows == 40
    assert not any(row["response"] == "nothing was said" for row in desk.rows(made)), "nothing of it was kept as data"


def test_a_script_that_asks_for_endless_answers_does_not_end_the_call(desk: Desk) -> None:
    """A reply is reserved as long as the study's longest, whatever a script asks for."""
    endless = ASKS.replace("concurrency=4", "concurrency=4, max_tokens=10**9")
    with offered(desk, limit=10.0) as server:
        assert desk(script=endless).rows == 14
    assert {request.body["max_tokens"] for request in server.requests} == {MAX_OUTPUT}


def test_a_repair_is_asked_for_once_however_often_the_stage_is_broken_off(desk: Desk) -> None:
    asked: list[str] = []
    recipe, bench = Recipe(train={}, script="raise SystemExit('first')\n"), desk.bench()
    second = "raise SystemExit('second')\r\n# é\n"

    def broken_off(script: str, problem: str) -> str:
        asked.append(script)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return second

    def goes_on(script: str, problem: str) -> str:
        asked.append(script)
        return GOOD

    with pytest.raises(KeyboardInterrupt):
        prepare(bench, recipe, desk.plan, desk.work, broken_off)
    shutil.rmtree(bench.directory)
    bench.directory.mkdir()
    made = prepare(bench, recipe, desk.plan, desk.work, goes_on)
    assert (made.script, made.repairs) == (GOOD, 2)
    assert asked == [recipe.script, second, second], "the first repair was kept"
