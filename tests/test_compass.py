"""OpenCompass: what a job is given, and real runs of docker/bench/compass.py whose right scores are known."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from agent.gateway import Gateway, Judge
from agent.llm import Endpoint, Price
from agent.run.environments import Environments
from scenarios.finetune.benchmarks import Benchmark, resolve
from scenarios.finetune.compass import lay_out
from scenarios.finetune.rows import Row
from scenarios.finetune.splits import Item
from tests.servers.openai_server import ChatAnswer, ChatRequest, ChatServer

ROOT = Path(__file__).resolve().parent.parent
SUBJECTS = ("anatomy", "astronomy", "philosophy")
BOXING = "\nPlease reason step by step, and put your final answer within \\boxed{}."


def no_fetch(dataset: str) -> Path:
    raise AssertionError(f"nothing should be downloaded, asked for {dataset}")


def rows_of(name: str, count: int = 24) -> list[Row]:
    """Questions in the style of a benchmark, each with an answer of its own."""
    if name == "mmlu":
        return [
            {
                "question": f"Which, in {SUBJECTS[i % 3]},\nis number {i}?",
                **{letter: f'the "{letter}", {i}' for letter in "ABCD"},
                "answer": "ABCD"[i % 4],
                "category": SUBJECTS[i % 3],
            }
            for i in range(count)
        ]
    solution = "A half of it is {0} less.\n#### {0}" if name == "gsm8k" else "{0}"
    return [{"question": f"What is {i} times {i + 1}?", "answer": solution.format(i * (i + 1))} for i in range(count)]


def lay(root: Path, name: str, rows: Sequence[Row], shots: Sequence[Row] = ()) -> Benchmark:
    directory = root / "benchmarks" / name
    directory.mkdir(parents=True, exist_ok=True)
    for split, kept in (("test", rows), ("train", shots)):
        if kept:
            (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return resolve([name], root, no_fetch)[0]


def final(row: Row) -> str:
    return str(row["answer"]).split("#### ")[-1]


# What a job is given


@pytest.mark.parametrize(
    ("name", "file", "read"),
    [
        ("aime25", "data/aime2025/aime2025.jsonl", lambda text: [json.loads(line)["question"] for line in text]),
        ("aime24", "data/aime.jsonl", lambda text: [json.loads(line)["origin_prompt"] for line in text]),
        ("gsm8k", "data/gsm8k/test.jsonl", lambda text: [json.loads(line)["question"] for line in text]),
        (
            "math",
            "data/math/test_prm800k_500.json",
            lambda text: [row["problem"] for row in json.loads("".join(text)).values()],
        ),
    ],
)
def test_only_the_questions_asked_are_laid_out(
    tmp_path: Path, name: str, file: str, read: Callable[[list[str]], list[str]]
) -> None:
    benchmark = lay(tmp_path, name, rows_of(name))
    items = benchmark.halves.take("search", 5)
    task = lay_out(benchmark, items, tmp_path / "laid", fewshot=0)
    assert read((tmp_path / "laid/compass" / file).read_text().splitlines()) == [item.row["question"] for item in items]
    assert task["data"] == str(tmp_path / "laid/compass")
    everything = "".join(path.read_text() for path in (tmp_path / "laid").rglob("*") if path.is_file())
    assert not [item for item in benchmark.halves.test if f"{item.row['question']}" in everything]


def test_mmlu_is_laid_out_by_subject_and_the_config_follows_the_number_of_examples(tmp_path: Path) -> None:
    shots = [{**row, "question": f"example {row['question']}"} for row in rows_of("mmlu", 15)]
    benchmark = lay(tmp_path, "mmlu", rows_of("mmlu"), shots)
    items = benchmark.halves.search
    zero = lay_out(benchmark, items, tmp_path / "zero", fewshot=0)
    five = lay_out(benchmark, items, tmp_path / "five", fewshot=5)
    assert (zero["compass"], five["compass"]) == ("mmlu.mmlu_openai_simple_evals_gen_b618ea", "mmlu.mmlu_gen_4d595a")
    assert zero["datasets"] == [item.row["category"] for item in items]
    counts = {subject: sum(item.row["category"] == subject for item in items) for subject in SUBJECTS}
    assert set(counts.values()) == {4}, "each subject is halved"
    assert (tmp_path / "five/compass/data/mmlu/dev/anatomy_dev.csv").read_text().count("example") == 5


def test_files_laid_by_hand_are_reduced_to_the_questions_asked(tmp_path: Path) -> None:
    directory = tmp_path / "benchmarks/opencompass/aime2024.aime2024_gen_6e39a4/data"
    directory.mkdir(parents=True)
    laid = [{"origin_prompt": f"q{i}", "gold_answer": str(i)} for i in range(10)]
    (directory / "aime.jsonl").write_text("".join(json.dumps(row) + "\n" for row in laid))
    (directory / "notes.txt").write_text("as they came")
    (benchmark,) = resolve(["opencompass:aime2024.aime2024_gen_6e39a4"], tmp_path, no_fetch)
    items = benchmark.halves.take("test", 3)
    lay_out(benchmark, items, tmp_path / "laid", fewshot=0)
    lines = (tmp_path / "laid/compass/data/aime.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [item.row for item in items]
    assert (tmp_path / "laid/compass/data/notes.txt").read_text() == "as they came"


# Real runs


@dataclass
class Compass:
    """Runs a bench program on a benchmark's questions, as the host would."""

    python: Path
    directory: Path
    model: Path
    runs: int = 0
    log: str = field(default="", repr=False)

    def run(self, benchmark: Benchmark, items: Sequence[Item], *, fewshot: int = 0, **changed: Any) -> Path:
        """The output directory; `self.log` is what it printed."""
        self.runs += 1
        directory = self.directory / f"run{self.runs}"
        output = directory / "output"
        output.mkdir(parents=True)
        questions = directory / "questions.jsonl"
        questions.write_text("".join(json.dumps({"id": item.id, "row": item.row}) + "\n" for item in items))
        compass = benchmark.engine == "opencompass"
        request = {
            "model": str(self.model),
            "task": lay_out(benchmark, items, directory / "data", fewshot=fewshot) if compass else benchmark.task,
            "questions": str(questions),
            "generation": benchmark.generation,
            "metric": benchmark.metric,
            "filter": benchmark.filter,
            "device": "cpu",
            "dtype": "float32",
            "output": str(output),
        }
        (directory / "request.json").write_text(json.dumps(request | changed))
        environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(directory)}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(output / "huggingface")}
        program = ROOT / "docker/bench" / ("compass.py" if compass else "score.py")
        ended = subprocess.run(
            [self.python, program, directory / "request.json"],
            env=environment,
            cwd=output,
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.log = ended.stdout + ended.stderr
        assert ended.returncode == (1 if (output / "error.txt").exists() else 0), self.log
        return output

    def plant(self, answers: dict[tuple[str, int], str]) -> str:
        """A predictions.jsonl; its path."""
        file = self.directory / f"predictions{self.runs}.jsonl"
        lines = [
            {"id": name, "sample": sample, "prompt": "p", "response": text} for (name, sample), text in answers.items()
        ]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return str(file)


def answers_of(output: Path) -> list[dict[str, Any]]:
    assert not (output / "error.txt").exists(), (output / "error.txt").read_text()
    lines = (output / "questions.jsonl").read_text()
    assert lines == (output / "answers.jsonl").read_text(), "block by block the same"
    return [json.loads(line) for line in lines.splitlines()]


def result(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "result.json").read_text())
    return found


@pytest.fixture(scope="module")
def tiny(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's untrained model."""
    directory = tmp_path_factory.mktemp("models")
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(directory)}
    python = environments.python("bench")
    subprocess.run([python, ROOT / "docker/train/make_demo_model.py", directory / "tiny"], env=environment, check=True)
    return directory / "tiny"


@pytest.fixture
def silent(tiny: Path, environments: Environments, tmp_path: Path) -> Compass:
    """Without weights that could be loaded: every answer must come from elsewhere."""
    shutil.copytree(tiny, tmp_path / "silent")
    (tmp_path / "silent/model.safetensors").write_bytes(b"none")
    return Compass(environments.python("bench"), tmp_path, tmp_path / "silent")


@pytest.fixture
def compass(tiny: Path, environments: Environments, tmp_path: Path) -> Compass:
    return Compass(environments.python("bench"), tmp_path, tiny)


REPLIES: dict[str, tuple[Callable[[str], str], str]] = {
    "aime24": (lambda answer: f"So it is $\\boxed{{{answer}}}$.", "It is $\\boxed{-7}$."),
    "math": (lambda answer: f"So it is $\\boxed{{{answer}.0}}$.", "It is $\\boxed{-7}$."),
    "gsm8k": (lambda answer: f"First 3, so the answer is {answer}.", "It is -7"),
    "mmlu": (lambda answer: f"Let me think.\nANSWER: {answer}", "ANSWER: Z, or ANSWER: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(REPLIES))
def test_planted_answers_get_the_scores_they_deserve(silent: Compass, name: str) -> None:
    benchmark = lay(silent.directory, name, rows_of(name), rows_of(name, 15) if name == "mmlu" else ())
    items = benchmark.halves.take("search", 7)
    right, wrong = REPLIES[name]
    others = {item.id: "BADC"["ABCD".index(final(item.row))] if name == "mmlu" else "" for item in items}
    kinds = [
        (right(final(item.row)), wrong + others[item.id], "I do not know.")[number % 3]
        for number, item in enumerate(items)
    ]
    planted = {(item.id, 0): kind for item, kind in zip(items, kinds, strict=True)}
    output = silent.run(benchmark, items, predictions=silent.plant(planted), blocks=[2, 6, 7])
    answers = answers_of(output)
    assert [answer["id"] for answer in answers] == [item.id for item in items]
    assert [answer["score"] for answer in answers] == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    assert [answer["formatted"] for answer in answers] == [True, True, False, True, True, False, True]
    assert [answer["response"] for answer in answers] == kinds
    assert result(output)["mean"] == pytest.approx(3 / 7)
    settings = result(output)["settings"]
    assert (settings["config"], settings["fewshot"]) == (benchmark.task["modules"]["0"], 0)
    assert (output / "progress").read_text() == "7/7"


def judge_by(reply: Callable[[ChatRequest], ChatAnswer], directory: Path) -> tuple[ChatServer, Callable[[], Gateway]]:
    server = ChatServer(reply)

    def gateway() -> Gateway:
        endpoint = Endpoint(model="judge", base_url=server.url, settings="FT_JUDGE")
        return Gateway(endpoint, Price(), Judge(("A", "B"), directory / "verdicts"))

    return server, gateway


@pytest.mark.slow
def test_a_judged_answer_has_the_judge_s_verdict_or_none_and_only_what_is_missing_is_asked_again(
    silent: Compass,
) -> None:
    benchmark = lay(silent.directory, "aime25", rows_of("aime25"))
    assert benchmark.verdicts == ("A", "B")
    items = benchmark.halves.take("search", 6)
    texts = ["\\boxed{1} right", "\\boxed{2} wrong", "\\boxed{3} unsure", "right, unboxed", "\\boxed{5} right", ""]
    planted = silent.plant({(item.id, 0): text for item, text in zip(items, texts, strict=True)})
    knows = False

    def judge(request: ChatRequest) -> ChatAnswer:
        if " unsure" in request.text and not knows:
            return ChatAnswer("After review, the prediction is wrong. B")
        return ChatAnswer("A" if "right" in request.text.split("<Predicted Answer Begin>")[-1] else "B")

    server, gateway = judge_by(judge, silent.directory)
    with server:
        with (first := gateway()).open() as door:
            asked = {"socket": str(door.socket), "model": "judge"}
            output = silent.run(benchmark, items, judge=asked, predictions=planted, blocks=[4, 6])
        answers = answers_of(output)
        assert [answer["score"] for answer in answers] == [1.0, 0.0, None, 1.0, 1.0, 0.0]
        assert [answer["formatted"] for answer in answers] == [True, True, True, False, True, False]
        assert result(output)["mean"] == pytest.approx(3 / 5), "over the scored ones"
        assert (first.report().asked, first.report().unscored) == (6, 1)
        assert all(text in server.requests[0].text for text in ("What is", "<Gold Target Begin>"))
        knows = True
        before = len(server.requests)
        with (second := gateway()).open() as door:
            again = {"socket": str(door.socket), "model": "judge"}
            output = silent.run(benchmark, items, judge=again, predictions=str(output / "predictions.jsonl"))
    assert [answer["score"] for answer in answers_of(output)] == [1.0, 0.0, 0.0, 1.0, 1.0, 0.0]
    assert (len(server.requests) - before, second.report().cached) == (1, 5)


@pytest.mark.slow
def test_a_judge_that_fails_leaves_answers_unscored_and_the_predictions_kept(silent: Compass) -> None:
    benchmark = lay(silent.directory, "aime25", rows_of("aime25"))
    items = benchmark.halves.take("search", 3)
    planted = silent.plant({(item.id, sample): f"\\boxed{{{sample}}}" for item in items for sample in (0, 1)})
    server, gateway = judge_by(lambda request: ChatAnswer(status=401), silent.directory)
    with server, (door_of := gateway()).open() as door:
        asked = {"socket": str(door.socket), "model": "judge"}
        output = silent.run(benchmark, items, judge=asked, predictions=planted, samples=2, temperature=1.0)
    assert (output / "error.txt").read_text() == "not one of 3 questions has a score"
    answers = [json.loads(line) for line in (output / "questions.jsonl").read_text().splitlines()]
    assert [answer["scores"] for answer in answers] == [[None, None]] * 3
    assert {answer["score"] for answer in answers} == {None}
    assert len((output / "predictions.jsonl").read_text().splitlines()) >= 6
    assert door_of.report().failure
    output = silent.run(benchmark, items, judge=asked, predictions=planted)
    assert "RuntimeError" in (output / "error.txt").read_text(), "no gateway at all is an error, too"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "changed", "words"),
    [
        ("aime25", rows_of("aime25"), {}, "is scored by a judge, and none was given"),
        ("gsm8k", rows_of("aime24"), {}, "is not in the form that gsm8k.gsm8k_0shot_gen_a58960 reads"),
        ("aime24", rows_of("aime24"), {"compass": "aime2024.none"}, "OpenCompass 0.5.4 has no config aime2024.none"),
        ("aime24", rows_of("aime24"), {"compass": "humaneval.humaneval_gen_66a7f4"}, ""),
        ("aime25", rows_of("aime25"), {"compass": "aime2025.aime2025_cascade_eval_gen_5e9f4f"}, "Cascade"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    silent: Compass, name: str, rows: list[Row], changed: dict[str, str], words: str
) -> None:
    benchmark = lay(silent.directory, name, rows)
    items = benchmark.halves.take("search", 2)
    planted = silent.plant({(item.id, 0): "1" for item in items})
    task = lay_out(benchmark, items, silent.directory / "given", fewshot=0) | changed
    output = silent.run(benchmark, items, task=task, predictions=planted)
    assert words in (output / "error.txt").read_text()
    assert not (output / "result.json").exists()


@pytest.mark.slow
def test_several_answers_a_question_are_drawn_with_the_harness_s_seeds(compass: Compass) -> None:
    benchmark = lay(compass.directory, "gsm8k", rows_of("gsm8k"))
    items = benchmark.halves.take("search", 2)
    asked: dict[str, Any] = {"samples": 2, "temperature": 1.0, "generation": {"max_gen_toks": 16}}
    runs = [compass.run(benchmark, items, seed=seed, **asked) for seed in (1, 1, 5)]
    texts = [[json.loads(line).get("response") for line in (run / "predictions.jsonl").open()] for run in runs]
    assert texts[0] == texts[1] != texts[2]
    assert len({text for text in texts[0] if text}) == 4, "each answer is another"
    assert all(len(answer["scores"]) == 2 for answer in answers_of(runs[0]))
    assert result(runs[0])["settings"]["generation"] == {"do_sample": True, "temperature": 1.0, "max_gen_toks": 16}


# Two engines

# What the model says of 12 questions, and what each engine should make of it: (reply to {answer}, OpenCompass, lm-eval)
SAID = (
    *[("It takes two steps, so it is {answer}.", 1.0, 1.0)] * 6,
    *[("It is 7.", 0.0, 0.0)] * 3,
    ("All in all, that makes {answer}.0", 1.0, 0.0),  # lm-eval compares texts, OpenCompass numbers
    ("That is {thousands} then.", 0.0, 1.0),  # OpenCompass reads 1,234 as two numbers
    ("No idea.", 0.0, 0.0),
)


@pytest.fixture(scope="module")
def reciter(
    environments: Environments, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, list[Item]]:
    """A model that has learned what to say to both engines' prompts, its adapter, and the questions in order."""
    root = tmp_path_factory.mktemp("reciter")
    rows = [
        {"question": f"Ann has {i} boxes of {i + 30}. How many?", "answer": f"#### {i * 1000 + 234}"} for i in range(24)
    ]
    items = list(lay(root, "gsm8k", rows).halves.search)
    taught = []
    for item, (said, _, _) in zip(items, SAID, strict=True):
        number = int(final(item.row))
        reply = said.format(answer=number, thousands=f"{number:,}")
        taught.append({"prompt": item.row["question"] + BOXING, "response": reply})
        taught.append({"prompt": f"Question: {item.row['question']}\nAnswer:", "response": reply})
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in taught))
    environment = {"OMP_NUM_THREADS": "1", "PATH": os.environ["PATH"], "HOME": str(root)}
    program = [
        environments.python("bench"),
        ROOT / "tests/programs/recite.py",
        tiny,
        root / "rows.jsonl",
        root / "model",
    ]
    subprocess.run(program, env=environment, check=True)
    return root / "model", root / "model-adapter", items


@pytest.mark.slow
def test_both_engines_score_what_a_model_knows_by_heart_and_differ_where_their_rules_do(
    reciter: tuple[Path, Path, list[Item]], compass: Compass
) -> None:
    model, _, items = reciter
    lay(compass.directory, "gsm8k", rows_of("gsm8k"), rows_of("gsm8k"))
    scores = {}
    for name in ("gsm8k", "lm_eval:gsm8k"):
        (benchmark,) = resolve([name], compass.directory, no_fetch)
        output = compass.run(benchmark, items, model=str(model), generation={"max_gen_toks": 64})
        scores[name] = [json.loads(line) for line in (output / "questions.jsonl").read_text().splitlines()]
    theirs, others = scores["gsm8k"], scores["lm_eval:gsm8k"]
    assert [answer["response"] for answer in theirs] == [answer["response"] for answer in others]
    assert [(a["score"], b["score"]) for a, b in zip(theirs, others, strict=True)] == [said[1:] for said in SAID]
    assert [answer["formatted"] for answer in theirs] == [said[0] != "No idea." for said in SAID]


@pytest.mark.slow
def test_an_adapter_is_used(reciter: tuple[Path, Path, list[Item]], compass: Compass) -> None:
    model, adapter, items = reciter
    benchmark = lay(compass.directory, "gsm8k", rows_of("gsm8k"))
    changed: dict[str, Any] = {"model": str(model), "generation": {"max_gen_toks": 64}}
    (plain,) = answers_of(compass.run(benchmark, items[:1], **changed))
    (adapted,) = answers_of(compass.run(benchmark, items[:1], adapter=str(adapter), **changed))
    assert (plain["score"], plain["formatted"]) == (1.0, True)
    assert (adapted["score"], adapted["response"], adapted["formatted"]) == (0.0, "No idea.", False)


@pytest.mark.slow
def test_real_aime_2024_by_rule_and_by_judge(compass: Compass) -> None:
    """A tiny model gets nothing right, and what is right is recognised, by both of OpenCompass' configs."""
    if not (source := os.environ.get("FTLOOP_TEST_DATA")) or not (Path(source) / "aime24.jsonl").is_file():
        pytest.skip("set FTLOOP_TEST_DATA to a directory with aime24.jsonl")
    rows = [json.loads(line) for line in (Path(source) / "aime24.jsonl").read_text().splitlines()]
    by_rule = lay(
        compass.directory, "aime24", [{"question": row["problem"], "answer": str(row["answer"])} for row in rows]
    )
    items = by_rule.halves.search
    assert len(items) == 15
    output = compass.run(by_rule, items, generation={"max_gen_toks": 64})
    assert result(output)["mean"] == 0.0
    planted = {(item.id, 0): f"\\boxed{{{item.row['answer']}}}" for item in items}
    assert result(compass.run(by_rule, items, predictions=compass.plant(planted)))["mean"] == 1.0
    name = "opencompass:aime2024.aime2024_llmjudge_gen_5e9f4f"
    laid = compass.directory / "benchmarks" / name.replace(":", "/") / "data/aime.jsonl"
    laid.parent.mkdir(parents=True)
    theirs = [{"origin_prompt": row["problem"], "gold_answer": str(row["answer"])} for row in rows]
    laid.write_text("".join(json.dumps(row) + "\n" for row in theirs))
    (judged,) = resolve([name], compass.directory, no_fetch)
    items = judged.halves.search
    texts = [
        (f"\\boxed{{{item.row['gold_answer']}}}", "\\boxed{-1}")[number % 3 == 0] for number, item in enumerate(items)
    ]

    def judge(request: ChatRequest) -> ChatAnswer:
        target, answer = (request.text.split(f"<{mark} Begin>: \n")[1] for mark in ("Gold Target", "Predicted Answer"))
        return ChatAnswer("A" if answer.startswith(f"\\boxed{{{target.split()[0]}}}") else "B")

    server, gateway = judge_by(judge, compass.directory)
    planted = {(item.id, 0): text for item, text in zip(items, texts, strict=True)}
    with server, (opened := gateway()).open() as door:
        asked: dict[str, Any] = {"judge": {"socket": str(door.socket), "model": "judge"}}
        output = compass.run(judged, items, generation={"max_gen_toks": 64}, **asked)
        assert result(output)["mean"] == 0.0
        output = compass.run(judged, items, predictions=compass.plant(planted), **asked)
        assert result(output)["mean"] == pytest.approx(10 / 15)
        assert (opened.report().asked, opened.report().unscored) == (30, 0)
