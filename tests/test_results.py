"""`ftloop list`, `trace` and `compare`: over sweeps, runs by hand and agent studies, by the command line."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from agent.cli import main
from agent.experiments.cells import CONFIG, DataUsed, Experiment, Metrics, write, write_metrics
from agent.experiments.compare import differences
from agent.experiments.places import HIDDEN
from agent.experiments.results import Result
from agent.experiments.trace import result_lines
from agent.journal import CallStarted, Event, Journal, StageEnded, StageStarted, StudyOpened, TrialEnded, encode
from agent.records import Checked, FileRef, Identity, Question, Recipe, Score, Scores, Value
from agent.store import IndexEntry, Workspace, new_entry
from scenarios.finetune.data import fingerprint
from tests.records_factory import make_checkpoint, make_comparison, make_identity, make_proposal, make_score
from tests.sweeps import COPA, LLAMA, Workshop

GOLDEN = Path(__file__).resolve().parent / "golden"
RATES = {"1_6": "1e-6", "5_7": "5e-7", "2_7": "2e-7", "1_7": "1e-7"}
STAMPS = ("20251226_143000", "20251226_153000", "20251227_093000")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FT_FILE_PATH", str(tmp_path / "workspace"))
    (tmp_path / "workspace").mkdir()
    return tmp_path


@pytest.fixture
def ftloop(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str, code: int = 0) -> str:
        assert main(words) == code, capsys.readouterr().err
        said = capsys.readouterr()
        return said.out + said.err

    return run


def documented(purpose: str, rates: Sequence[str] = tuple(RATES), stamps: Sequence[str] = STAMPS[:1]) -> None:
    """Experiments as the documentation has them, written by another tool: five facts, the data and four numbers."""
    for rate in rates:
        for stamp in stamps:
            directory = Path(f"Results_v2/{purpose}/{LLAMA}/Copa_zo_copa_mezo_v1_{rate}/{stamp}")
            directory.mkdir(parents=True)
            (directory / CONFIG).write_text(
                f'timestamp: "{stamp}"\nexperiment_purpose: "{purpose}"\nmodel: "{LLAMA}"\ntask: "Copa"\nmethod: "zo"\n'
                f'data:\n  path: "{COPA}"\nhyperparameters:\n  learning_rate: {RATES[rate]}\n  batch_size: 16\n'
                '  steps: 20000\n  seed: 0\ntraining_info:\n  env_vars: {}\n  command: "..."\n'
            )


def scored(directory: Path, mean: float, n: int = 100, first: int = 0, **settings: Any) -> Score:
    """A score with its questions on the disk, the first `mean` of them right."""
    directory.mkdir(parents=True, exist_ok=True)
    questions = [Question(id=f"q{first + i}", score=float(i < mean * n)) for i in range(n)]
    content = b"".join(msgspec.json.encode(question) + b"\n" for question in questions)
    file = directory / "questions.jsonl"
    file.write_bytes(content)
    reference = FileRef(path=str(file), sha256=hashlib.sha256(content).hexdigest())
    made = make_score(mean, n, benchmark="reverse")
    return msgspec.structs.replace(made, questions=reference, settings={"fewshot": 0} | settings)


def cell(number: int, score: float | None = None, **changes: Any) -> Path:
    """One cell of a sweep of ours that is done."""
    rates = [1e-6, 5e-7, 2e-7, 1e-7]
    numbers: dict[str, Value] = {"learning_rate": rates[number - 1], "batch_size": 16, "seed": 0}
    values: dict[str, Any] = {
        "timestamp": STAMPS[0],
        "experiment_purpose": "tuning",
        "model": "demo/tiny",
        "task": "Copa",
        "method": "fo_lora",
        "data": DataUsed(path=COPA, fingerprint="f" * 64),
        "hyperparameters": numbers,
        "name": f"cell_{number}",
        "sweep": "abc-1",
        "cell": number,
    }
    directory = Path(f"Results_v2/tuning/demo/tiny/cell_{number}/{STAMPS[0]}").absolute()
    directory.mkdir(parents=True)
    write(directory, Experiment(**(values | changes)))
    scores = () if score is None else (scored(directory / "reverse-search", score),)
    write_metrics(directory, Metrics(checkpoint=make_checkpoint(number), train_loss=1.5, scores=scores))
    (directory / "status.json").write_text(json.dumps({"state": "done", "started": 1.0}))
    return directory


def journal(directory: Path, study: str, identity: Identity, trials: Sequence[float | None], author: str = "") -> None:
    """A journal with a scored base and trials of these means; None for one that fails."""
    file = Journal(directory / "journal.jsonl")
    events: list[Event] = [
        StudyOpened(at=1.0, format=1, study=study, identity=identity),
        CallStarted(at=1.0, call=1, pid=1, runner="local", proposer="tpe", loop_n=None, step_n=None, timeout=None),
    ]

    def stage(trial: int, name: str, result: msgspec.Struct) -> None:
        events.append(StageStarted(at=2.0, call=1, trial=trial, stage=name, attempt=1))
        events.append(StageEnded(at=3.0, trial=trial, stage=name, ending="done", seconds=1.0, result=encode(result)))

    stage(0, "bench", Scores(scores=(scored(directory / "base/bench/reverse-search", 0.1),)))
    for number, mean in enumerate(trials, start=1):
        proposal = make_proposal(f"learning_rate {number}e-3", train={"learning_rate": number / 1000})
        stage(number, "propose", proposal)
        stage(number, "check", Checked())
        stage(number, "train", make_checkpoint(number))
        assert mean is not None
        where = directory / f"trials/{number:04d}/bench/reverse-search"
        stage(number, "bench", Scores(scores=(scored(where, mean),)))
        stage(number, "accept", make_comparison(mean - 0.1, "better" if mean > 0.3 else "tie"))
        events.append(TrialEnded(at=1766757600.0 + number, call=1, trial=number, lesson=""))
    for event in events:
        file.append(event)
    file.close()


def study(here: Path, *trials: float, name: str = "reverse-tiny-1", dataset: str = "demo/reverse") -> Path:
    identity = make_identity(dataset=dataset, model="demo/tiny", dataset_fingerprint="f" * 64)
    directory = here / "workspace/studies" / name
    journal(directory, name, identity, trials)
    Workspace(here / "workspace").enter(new_entry(name, identity, directory))
    return directory


def by_hand(here: Path, root: str = "outputs/tiny/first/lora") -> Path:
    """A run as `ftloop train` and `ftloop eval` leave it."""
    where = here / root
    identity = make_identity(dataset="demo/reverse", model="demo/tiny", dataset_fingerprint="f" * 64)
    file = Journal(where / HIDDEN / "journal.jsonl")
    recipe = Recipe(train={"finetuning_type": "lora", "learning_rate": 1e-4}, seed=3)
    proposal = msgspec.structs.replace(make_proposal(), recipe=recipe)
    stages: dict[str, msgspec.Struct] = {
        "propose": proposal,
        "train": make_checkpoint(1),
        "eval/reverse": Scores(scores=(scored(where / "eval/reverse", 0.5),)),
    }
    file.append(StudyOpened(at=1.0, format=1, study=HIDDEN, identity=identity))
    for name, result in stages.items():
        file.append(StageStarted(at=2.0, call=1, trial=1, stage=name, attempt=1))
        file.append(StageEnded(at=3.0, trial=1, stage=name, ending="done", seconds=1.0, result=encode(result)))
    file.close()
    entry = IndexEntry(
        id="tiny_first_sft-1",
        kind="run",
        path=str(where),
        created=1.0,
        dataset="demo/reverse",
        model="demo/tiny",
        benchmarks=("reverse",),
    )
    Workspace(here / "workspace").enter(entry)
    return where


# list


def test_the_summary_looks_as_documented(ftloop: Any) -> None:
    documented("prompt_engineering", stamps=STAMPS)
    documented("temperature_study", stamps=STAMPS[:2])
    documented("baseline")
    Path("Results_v2/baseline/README.md").write_text("## Experiment record\n")
    assert ftloop("list") == (GOLDEN / "list-summary.txt").read_text()


def test_the_details_look_as_documented(ftloop: Any) -> None:
    documented("prompt_engineering", ("1_6", "5_7"))
    documented("baseline")
    assert ftloop("list", "--detail", "--purpose", "prompt_engineering") == (GOLDEN / "list-detail.txt").read_text()


def test_sweeps_runs_and_studies_are_listed_at_once(here: Path, ftloop: Any) -> None:
    cell(1, 0.7)
    by_hand(here)
    study(here, 0.2, 0.9)
    text = ftloop("list")
    assert "📁 Experiment purpose: tuning\n   Experiments: 1\n   └─ demo/tiny: 1 experiment\n" in text
    assert "📁 Single runs\n   Experiments: 1\n" in text
    assert "📁 Agent study: reverse-tiny-1\n   Experiments: 2\n   └─ demo/tiny: 2 experiments\n" in text
    assert "Total: 1 experiment purpose, 1 training experiment, 1 single run, 1 agent study with 2 trials" in text
    detail = ftloop("list", "--detail")
    assert "  [1] tiny/first/lora\n      Id: tiny_first_sft-1\n" in detail
    assert "  [2] trial 2: learning_rate 2e-3\n      Id: reverse-tiny-1:2\n" in detail
    assert "Score: reverse 0.900" in detail
    assert "        - LR: 0.0001\n        - Seed: 3\n" in detail


def test_the_index_knows_results_elsewhere(here: Path, ftloop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory may be any: sweeps, runs and studies are found through FT_FILE_PATH."""
    directory = cell(1)
    (here / "Results_v2/.sweeps").mkdir()
    entry = IndexEntry(
        id="x", kind="cell", path=str(directory), created=1.0, dataset=COPA, model="demo/tiny", benchmarks=()
    )
    Workspace(here / "workspace").enter(entry)
    by_hand(here)
    study(here, 0.5)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert "1 training experiment, 1 single run, 1 agent study with 1 trial" in ftloop("list")
    directory.parent.rename(here / "Results_v2/renamed by hand")
    found = json.loads(ftloop("list", "--json"))
    assert [one["name"] for one in found if one["kind"] == "cell"] == ["cell_1"]


def test_what_a_directory_is_called_does_not_matter(ftloop: Any) -> None:
    """experiment_config.yaml is the authority: not the purpose, the model, the name or the time of its path."""
    documented("prompt_engineering", ("1_6",))
    target = Path("Results_v2/wrong_purpose/a_fo_full_b_zo_c_1_6/d_zo_e_9_9")
    target.mkdir(parents=True)
    shutil.move(f"Results_v2/prompt_engineering/{LLAMA}/Copa_zo_copa_mezo_v1_1_6/{STAMPS[0]}", target)
    (one,) = json.loads(ftloop("list", "--json"))
    assert (one["purpose"], one["name"], one["task"], one["method"], one["time"], one["model"]) == (
        *("prompt_engineering", "Copa_zo_copa_mezo_v1_1_6", "Copa", "zo", STAMPS[0]),
        LLAMA,
    )
    assert one["path"] == str((target / STAMPS[0]).absolute())
    assert one["hyperparameters"]["learning_rate"] == 1e-6


def test_a_renamed_study_is_still_found_with_its_scores(here: Path, ftloop: Any) -> None:
    study(here, 0.9).rename(here / "workspace/studies/my favourite")
    text = ftloop("list", "--detail")
    assert "Id: reverse-tiny-1:1" in text
    assert "better than" in ftloop("compare", "reverse-tiny-1:base", "reverse-tiny-1:1")


def test_a_purpose_that_does_not_exist_names_those_that_do(ftloop: Any) -> None:
    documented("baseline", ("1_6",))
    documented("ablation_study", ("1_6",))
    said = ftloop("list", "--purpose", "basline", code=2)
    assert "no experiment with the purpose 'basline'" in said
    assert "purposes: ablation_study, baseline" in said


def test_nothing_trained_is_no_error_and_makes_nothing(here: Path, ftloop: Any) -> None:
    shutil.rmtree(here / "workspace")
    assert "Total: 0 experiment purposes, 0 training experiments" in ftloop("list")
    assert "Nothing was trained yet:" in ftloop("list", "--detail")
    assert json.loads(ftloop("list", "--json")) == []
    assert "no sweep was run yet" in ftloop("list", "--purpose", "x", code=2)
    assert list(here.iterdir()) == []


def test_a_config_that_cannot_be_read_is_named_and_hides_no_other(ftloop: Any) -> None:
    documented("baseline", ("1_6", "5_7"))
    broken = next(Path("Results_v2").rglob(f"*1_6/*/{CONFIG}"))
    broken.write_text("timestamp: [")
    said = ftloop("list")
    assert "1 training experiment\n" in said
    assert f"ftloop: not shown: {broken.absolute()} cannot be read" in said


def test_a_root_within_a_root_is_listed_once(here: Path, ftloop: Any) -> None:
    directory = cell(1)
    (here / "Results_v2/tuning/.sweeps").mkdir()
    entry = IndexEntry(
        id="x", kind="cell", path=str(directory), created=1.0, dataset=COPA, model="demo/tiny", benchmarks=()
    )
    Workspace(here / "workspace").enter(entry)
    assert "Total: 1 experiment purpose, 1 training experiment\n" in ftloop("list")


def test_a_journal_whose_records_cannot_be_read_hides_no_other(here: Path, ftloop: Any) -> None:
    file = by_hand(here) / HIDDEN / "journal.jsonl"
    file.write_text(file.read_text().replace('"benchmark":"reverse"', '"benchmark":7'))
    study(here, 0.9)
    said = ftloop("list")
    assert "1 agent study with 1 trial\n" in said
    assert f"not shown: {file}: what it records cannot be read" in said


@pytest.mark.parametrize("rate", [".nan", ".inf", "-1", "fast", "true", "9" * 400, "null"])
def test_a_learning_rate_that_is_none_hides_nothing(ftloop: Any, rate: str) -> None:
    """Another tool's, or edited by hand."""
    documented("baseline", ("1_6", "5_7"))
    odd = next(Path("Results_v2").rglob(f"*1_6/*/{CONFIG}"))
    odd.write_text(odd.read_text().replace("learning_rate: 1e-6", f"learning_rate: {rate}"))
    assert "[2] Copa_zo_copa_mezo_v1" in ftloop("list", "--detail")
    assert len(json.loads(ftloop("list", "--json"))) == 2


# trace


@pytest.fixture
def shop(here: Path) -> Workshop:
    made = Workshop(here, {})
    made.lay_data()
    return made


def used(directory: Path) -> DataUsed:
    from agent.experiments.provenance import data_used
    from scenarios.finetune.data import recognise

    return data_used(str(directory.relative_to(Path.cwd())), "copa_mezo_v1", directory, recognise(directory))


def test_a_result_is_traced_to_its_data_and_how_they_were_made(shop: Workshop, ftloop: Any) -> None:
    data = shop.directory / COPA
    cell(1, data=used(data), weights="ab" * 32)
    said = ftloop("trace", "abc-1:1")
    digest = hashlib.sha256((data / "copa_train.jsonl").read_bytes()).hexdigest()
    assert "cell_1 (abc-1:1)" in said
    assert "model: demo/tiny, weights abababababab" in said
    assert "recipe: learning_rate 1e-06, batch_size 16, seed 0" in said
    assert f"{COPA}/copa_train.jsonl: sha256 {digest[:12]}, " in said
    assert f"fingerprint: {fingerprint(data)[:12]}" in said
    assert "unchanged since" in said
    assert "made by: Data_v2/synthetic/prompt_engineering/copa_mezo_v1/experiment_metadata.json" in said
    assert "generator: gpt-4o" in said
    assert ftloop("trace", f"Results_v2/tuning/demo/tiny/cell_1/{STAMPS[0]}") == said
    found = json.loads(ftloop("trace", "abc-1:1", "--json"))
    assert (found["changed"], found["metadata"]["temperature"]) == ([], 0.7)


@pytest.mark.parametrize("named", [COPA, f"{COPA}/copa_train.jsonl", str(Path(COPA).parent), f"{COPA}/"])
def test_data_are_traced_to_every_result(shop: Workshop, ftloop: Any, named: str) -> None:
    other = shop.lay_data("Data_v2/original/Copa", text="other")
    data = used(shop.directory / COPA)
    cell(1, data=data)
    cell(2, data=data)
    cell(3, data=used(other))
    said = ftloop("trace", named)
    assert f"{named}: 2 results trained on it" in said
    assert "(abc-1:1)" in said
    assert "(abc-1:2)" in said
    assert "(abc-1:3)" not in said
    assert said.count("data: unchanged since") == 2


def test_data_that_changed_since_are_said_to_have_changed_both_ways(shop: Workshop, ftloop: Any) -> None:
    cell(1, data=used(shop.directory / COPA))
    file = shop.directory / COPA / "copa_train.jsonl"
    with file.open("a") as rows:
        rows.write('{"prompt": "more", "response": "rows"}\n')
    now = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    assert f"copa_train.jsonl has CHANGED since: sha256 {now} now" in ftloop("trace", "abc-1:1")
    assert "1 result trained on it" in (said := ftloop("trace", COPA))
    assert f"has CHANGED since: sha256 {now} now" in said
    file.unlink()
    assert "copa_train.jsonl is GONE" in ftloop("trace", "abc-1:1")
    shutil.rmtree(shop.directory / "Data_v2")
    assert "GONE: the data are not where they were" in ftloop("trace", COPA)


def test_data_that_were_copied_are_found_by_their_content(shop: Workshop, ftloop: Any) -> None:
    cell(1, data=used(shop.directory / COPA))
    shutil.copytree(shop.directory / COPA, shop.directory / "copy")
    said = ftloop("trace", "copy")
    assert f"data: the same content, read from {COPA}" in said
    assert "made by: unknown, as there is no experiment_metadata.json at the data or above" in said


def test_data_without_metadata_work_and_say_what_is_missing(shop: Workshop, ftloop: Any) -> None:
    plain = shop.lay_data("plain/rows", metadata=False)
    cell(1, data=used(plain))
    missing = "made by: unknown, as there is no experiment_metadata.json at the data or above"
    assert missing in ftloop("trace", "abc-1:1")
    assert missing in ftloop("trace", "plain/rows")


def test_an_agents_trial_is_traced_by_the_fingerprint_of_its_data(shop: Workshop, here: Path, ftloop: Any) -> None:
    identity = make_identity(dataset=COPA, model="demo/tiny", dataset_fingerprint=fingerprint(here / COPA))
    journal(here / "workspace/studies/copa-1", "copa-1", identity, [0.4])
    said = ftloop("trace", "copa-1:1")
    assert "single files' hashes were not recorded" in said
    assert "unchanged since" in said
    assert "(copa-1:1)" in ftloop("trace", COPA)
    with (here / COPA / "copa_train.jsonl").open("a") as rows:
        rows.write('{"prompt": "more", "response": "rows"}\n')
    assert "CHANGED since: the fingerprint is now another one" in ftloop("trace", "copa-1:1")


def test_what_is_neither_result_nor_data_is_refused(ftloop: Any) -> None:
    assert "there is no result 'nothing'" in ftloop("trace", "nothing", code=2)
    documented("baseline")
    said = ftloop("trace", "Results_v2/baseline", code=2)
    assert "'Results_v2/baseline' could be" in said


# compare


def test_recipes_and_scores_are_compared(ftloop: Any) -> None:
    cell(1, 0.2)
    cell(2, 0.9, method="fo_full")
    said = ftloop("compare", "abc-1:1", "abc-1:2")
    assert "A: cell_1 (abc-1:1), done\nB: cell_2 (abc-1:2), done\n" in said
    assert "  method: lora -> full\n  learning_rate: 1e-06 -> 5e-07\n" in said
    assert "B is better than A: +0.700 [" in said
    assert "100 questions, paired: only B right 70, only A right 0" in said
    found = json.loads(ftloop("compare", "abc-1:2", "abc-1:1", "--json"))
    assert found["comparison"]["verdict"] == "worse"
    assert found["comparison"]["difference"] == pytest.approx(-0.7)
    assert {"key": "learning_rate", "a": 5e-7, "b": 1e-6} in found["differences"]


def test_a_cell_is_compared_with_an_agents_trial_and_with_its_base(here: Path, ftloop: Any) -> None:
    cell(1, 0.2)
    study(here, 0.9)
    said = ftloop("compare", "abc-1:1", "reverse-tiny-1:1")
    assert "learning_rate: 1e-06 -> 0.001" in said
    assert "per_device_train_batch_size: 16 -> unset" in said
    assert "B is better than A" in said
    assert "B is better than A" in ftloop("compare", "reverse-tiny-1:0", "reverse-tiny-1:1")


def test_a_part_of_a_recipe_that_neither_side_has_is_no_difference() -> None:
    plain = Result(kind="trial", id="s:1", path="", model="m")
    steps = msgspec.structs.replace(plain, id="s:2", recipe=Recipe(train={}, seed=1, data=({"step": "dedupe"},)))
    assert differences(plain, steps) == [("data steps", None, [{"step": "dedupe"}])]


def test_the_steps_that_made_a_trials_data_are_traced() -> None:
    recipe = Recipe(train={}, seed=1, data=({"step": "sample", "n": 300}, {"step": "dedupe"}))
    one = Result(kind="trial", id="s:1", path="", model="m", recipe=recipe)
    assert "  data steps: step sample, n 300; step dedupe" in result_lines(one)


def test_results_that_were_moved_keep_their_scores(ftloop: Any) -> None:
    cell(1, 0.2)
    cell(2, 0.9).rename("Results_v2/the good one")
    assert "B is better than A" in ftloop("compare", "abc-1:1", "Results_v2/the good one")


def test_what_a_trainer_was_given_decides_where_both_have_it(ftloop: Any) -> None:
    """A value that one author wrote down and the other left to the same default is no difference."""
    given = {"learning_rate": 1e-6, "output_dir": "/a", "lora_rank": 8, "per_device_train_batch_size": 16}
    (cell(1) / "train.yaml").write_text(yaml.safe_dump(given))
    other = cell(2)
    (other / "train").mkdir()
    (other / "train/train.yaml").write_text(yaml.safe_dump({**given, "lora_rank": None, "output_dir": "/b"}))
    assert "recipes differ in\n  lora_rank: 8 -> unset\n\n" in ftloop("compare", "abc-1:1", "abc-1:2")
    (other / "train/train.yaml").write_text(yaml.safe_dump({"learning_rate": 1e-6, "per_device_train_batch_size": 16}))
    assert "recipes: the same" in ftloop("compare", "abc-1:1", "abc-1:2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"first": 50}, "reverse: asked other questions: 100 and 100, 50 of them the same"),
        ({"fewshot": 4}, "reverse: asked with another fewshot: 4 and 0"),
        ({}, "cell_2 (abc-1:2) has no score"),
    ],
)
def test_scores_that_cannot_be_paired_say_why_not(ftloop: Any, change: dict[str, Any], said: str) -> None:
    cell(1, 0.2)
    directory = cell(2)
    if change:
        score = scored(directory / "other", 0.9, **change)
        write_metrics(directory, Metrics(checkpoint=make_checkpoint(2), scores=(score,)))
    assert said in ftloop("compare", "abc-1:1", "abc-1:2")


def test_questions_that_were_altered_are_not_compared(ftloop: Any) -> None:
    cell(1, 0.2)
    file = cell(2, 0.9) / "reverse-search/questions.jsonl"
    file.write_text(file.read_text().replace("1.0", "0.0"))
    said = ftloop("compare", "abc-1:1", "abc-1:2")
    assert "no per-question results" in said
    assert "better" not in said


def test_other_splits_are_not_compared(here: Path, ftloop: Any) -> None:
    """A run by hand is asked whole benchmarks, a cell the search half."""
    cell(1, 0.2)
    where = by_hand(here)
    file = Journal(where / HIDDEN / "journal.jsonl")
    score = msgspec.structs.replace(scored(where / "eval/reverse", 0.5), split="test", mistakes=())
    file.append(StageStarted(at=2.0, call=1, trial=1, stage="eval/reverse", attempt=2))
    ended = StageEnded(
        at=3.0, trial=1, stage="eval/reverse", ending="done", seconds=1.0, result=encode(Scores(scores=(score,)))
    )
    file.append(ended)
    file.close()
    assert "was not scored on reverse (search)" in ftloop("compare", "abc-1:1", "tiny_first_sft-1")


def test_a_run_is_found_by_the_name_that_it_was_given(here: Path, ftloop: Any) -> None:
    (by_hand(here) / "train_config.yaml").write_text("run_name: my first\n")
    for name in ("my first", "tiny/first/lora", "tiny_first"):
        assert "tiny/first/lora (tiny_first_sft-1)" in ftloop("trace", name)
    cell(1)
    assert "cell_1 (abc-1:1)" in ftloop("trace", "cell_1")
    assert "there is no result 'lora'" in ftloop("trace", "lora", code=2)


def test_an_id_may_be_shortened_while_it_is_unique(ftloop: Any) -> None:
    cell(1)
    assert "cell_1" in ftloop("trace", "abc-1")
    cell(2)
    assert "'abc' could be abc-1:1, abc-1:2" in ftloop("trace", "abc", code=2)


def test_hundreds_of_results_are_listed_in_a_moment(ftloop: Any) -> None:
    for number in range(100):
        documented(f"purpose_{number}")
    started = time.monotonic()
    assert "Total: 100 experiment purposes, 400 training experiments" in ftloop("list")
    assert time.monotonic() - started < 10
