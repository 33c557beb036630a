"""Arguments of `ftloop train` and `ftloop eval`: precedence, types, errors; one place to add one."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from agent.errors import UsageError
from agent.experiments import calls, sources
from agent.experiments.arguments import About, EvalArguments, TrainArguments, build, fields
from agent.experiments.places import model_name, places, tracker_name
from agent.experiments.snapshots import snapshot
from agent.experiments.sources import Values
from scenarios.finetune import by_hand, keys
from scenarios.finetune.arguments import schema
from scenarios.finetune.keys import Open
from tests.knots import KNOTTED

NEEDED = ("--run_name", "r", "--model_name_or_path", "m", "--dataset", "d")


def read(cwd: Path, *words: str, file: str | None = None, kind: type[Any] = TrainArguments) -> Values:
    if file is not None:
        (cwd / "train.yaml").write_text(file)
        words = ("--config", "train.yaml", *words)
    return sources.read(fields(kind), [*words, *NEEDED], cwd)


@pytest.mark.parametrize(
    ("key", "file", "words", "wanted"),
    [
        # the three levels
        ("learning_rate", None, (), None),
        ("learning_rate", "learning_rate: 0.5", (), 0.5),
        ("learning_rate", "learning_rate: 0.5", ("--learning_rate", "0.25"), 0.25),
        ("seed", "seed: 7", ("--seed=42",), 42),  # also where it says the default
        # a number that PyYAML takes for a text
        ("learning_rate", "learning_rate: 1e-6", (), 1e-6),
        ("learning_rate", None, ("--learning_rate", "1e-6"), 1e-6),
        ("learning_rate", None, ("learning_rate=1e-6",), 1e-6),
        ("lora_rank", "lora_rank: 8.0", (), 8),
        ("freeze_trainable_layers", "freeze_trainable_layers: 2", ("--freeze_trainable_layers", "-2"), -2),
        # bool
        ("use_dora", "use_dora: true", ("--use_dora", "false"), False),
        ("use_dora", "use_dora: true", ("--use_dora=false",), False),
        ("use_dora", "use_dora: false", ("--use_dora",), True),
        ("use_dora", "use_dora: false", ("use_dora=true", "--packing"), True),
        ("use_dora", "use_dora: no", (), False),
        ("use_dora", "use_dora: 'false'", (), "refused"),
        ("overwrite", None, (), False),
        # null
        ("limit", "limit: 5", ("--limit", "null"), None),
        ("limit", "limit: null", (), None),
        ("limit", "limit:", ("--limit", "3"), 3),
        ("use_dora", "use_dora: true", ("--use_dora=null",), None),
        ("seed", "seed: null", (), "refused"),
        # lists
        ("tasks", "tasks: [a, b]", (), ["a", "b"]),
        ("tasks", "tasks: [a, b]", ("--tasks", "c"), ["c"]),
        ("tasks", None, ("--tasks", "a", "b", "--seed", "1"), ["a", "b"]),
        ("tasks", None, ("--tasks=a,b",), ["a", "b"]),
        ("tasks", None, ("--tasks", '["a", "b"]'), ["a", "b"]),
        ("lora_target", None, ("--lora_target", "q_proj,v_proj"), ["q_proj", "v_proj"]),
        ("lora_target", "lora_target: [q_proj]", (), ["q_proj"]),
        # mappings
        ("lr_scheduler_kwargs", "lr_scheduler_kwargs: {a: 1}", (), {"a": 1}),
        ("lr_scheduler_kwargs", "lr_scheduler_kwargs: {a: 1}", ("--lr_scheduler_kwargs.b", "2e-1"), {"a": 1, "b": 0.2}),
        ("lr_scheduler_kwargs", "lr_scheduler_kwargs: {a: 1}", ("lr_scheduler_kwargs.a=2",), {"a": 2}),
        ("lr_scheduler_kwargs", "lr_scheduler_kwargs:", ("--lr-scheduler-kwargs.b.c=x",), {"b": {"c": "x"}}),
        ("lr_scheduler_kwargs", "lr_scheduler_kwargs: {a: 1}", ("--lr_scheduler_kwargs", '{"b": 2}'), {"b": 2}),
        ("columns", None, ("--columns", "{prompt: q, response: a}"), {"prompt": "q", "response": "a"}),
        ("special_tokens", "special_tokens: [<a>, <b>]", (), ["<a>", "<b>"]),
        ("special_tokens", "special_tokens: {<a>: first}", (), {"<a>": "first"}),
        # texts
        ("description", "description: 5", (), "5"),
        ("description", None, ("--description=a = b",), "a = b"),
        ("description", None, ("--description", ""), ""),
        ("lora_rank", None, ("--lora-rank", "4"), 4),
    ],
)  # fmt: skip
def test_the_command_line_outranks_the_file_and_that_the_default(
    tmp_path: Path, key: str, file: str | None, words: tuple[str, ...], wanted: object
) -> None:
    if wanted == "refused":
        with pytest.raises(UsageError, match=rf"train.yaml:1: {key}: wanted "):
            read(tmp_path, *words, file=file)
        return
    found = read(tmp_path, *words, file=file)
    assert found.values[key] == wanted
    assert type(found.values[key]) is type(wanted)
    named = any(key in word.replace("-", "_") for word in words)
    assert found.origin(key) == ("command line" if named else "train.yaml:1" if file else "default")


@pytest.mark.parametrize(
    ("file", "words", "message", "hint"),
    [
        ("\nlearning_rat: 1", (), "train.yaml:2: there is no argument 'learning_rat'", "did you mean learning_rate?"),
        (None, ("--lora_ranks", "3"), "command line: there is no argument 'lora_ranks'", "did you mean lora_rank?"),
        (None, ("lora_ranks=3",), "command line: there is no argument 'lora_ranks'", "lora_rank"),
        (None, ("--batch_size=3",), "no argument 'batch_size'", "did you mean per_device_train_batch_size?"),
        (None, ("--output_dirs.x=3",), "no argument 'output_dirs'", "did you mean output_dir?"),
        ("hub_token: x", (), "train.yaml:1: there is no argument 'hub_token'", ""),
        ("FT_RUNNER: local", (), "train.yaml:1: FT_RUNNER is a setting of the machine", "environment or in .env"),
        ("seed: 1\nseed: 2", (), "train.yaml:2: seed is given twice (also at train.yaml:1)", ""),
        ("seed: [1", (), "train.yaml:1: not valid YAML", ""),
        ("- seed", (), "train.yaml: must hold one mapping", ""),
        ("seed: x", (), "train.yaml:1: seed: wanted a whole number, found 'x'", "seed of weights"),
        ("seed: true", (), "train.yaml:1: seed: wanted a whole number, found True", ""),
        (None, ("--learning_rate", "fast"), "command line: learning_rate: wanted a number or null, found 'fast'", ""),
        (None, ("--learning_rate", "nan"), "wanted a number", ""),
        (None, ("--lora_rank", "1.5"), "wanted a whole number", ""),
        (None, ("--lr_scheduler_type", "cosin"), "'cosin' is none of linear, cosine", ""),
        (None, ("--lr_scheduler_type", "cosin"), "did you mean cosine?", ""),
        (None, ("--seed.x", "1"), "command line: seed.x: seed is no mapping", ""),
        (None, ("--seed",), "expected one argument", "--help"),
        (None, ("stray",), "'stray' belongs to no argument", "key=value"),
        ("seed: -1", (), "train.yaml:1: seed: must be at least 0, is -1", ""),
        (None, ("--limit", "0"), "command line: limit: must be at least 1, is 0", ""),
        (None, ("--num_fewshot", "-1"), "num_fewshot: must be at least 0", ""),
        ("tasks: [gsm8k, null]", (), "train.yaml:1: tasks: ['gsm8k', None] holds something else than it may", ""),
        ("columns: {prompt: 3}", (), "train.yaml:1: columns: {'prompt': 3} holds something else", ""),
        (None, ("--columns.prompt", "3"), "command line: columns: {'prompt': 3} holds something else", ""),
        ("special_tokens: [1]", (), "special_tokens: [1] holds something else", ""),
        ("similar_words: {<a>: word}", (), "similar_words: {'<a>': 'word'} holds something else", ""),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, file: str | None, words: tuple[str, ...], message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, *words, file=file)
    assert message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("text", KNOTTED)
def test_a_knotted_file_is_refused_at_once(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"train.yaml: not valid YAML: it (is nested too|holds more than|is longer)"):
        read(tmp_path, file=f"columns: {text}")


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="run_name, dataset must be given"):
        sources.read(fields(TrainArguments), ["--model_name_or_path", "m"], tmp_path)
    with pytest.raises(UsageError, match=r"--config nowhere\.yaml cannot be read: No such file"):
        sources.read(fields(TrainArguments), ["--config", "nowhere.yaml"], tmp_path)


@dataclass(frozen=True, kw_only=True)
class More(TrainArguments):
    """One field more; nothing else in the program knows it."""

    torch_empty_cache_steps: Annotated[int | None, About("steps between two of them", part="trainer")] = None


def help_of(kind: type[TrainArguments]) -> str:
    text = io.StringIO()
    with pytest.raises(SystemExit), contextlib.redirect_stdout(text):
        calls.train(["--help"], kind)
    return text.getvalue()


@pytest.mark.parametrize("place", ["the argument class", "by_hand.KEYS", "keys.OPEN"])
def test_one_added_field_works_everywhere(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From YAML and the command line, in --help and the snapshot; that it reaches the trainer, test_experiment_runs."""
    key = "torch_empty_cache_steps"
    assert key not in fields(TrainArguments)
    kind: type[TrainArguments] = More if place == "the argument class" else TrainArguments
    table = {"by_hand.KEYS": by_hand.KEYS, "keys.OPEN": keys.OPEN}.get(place)
    if table is not None:
        monkeypatch.setitem(table, key, Open(why="steps between two of them", low=1))
    assert read(tmp_path, file=f"{key}: 3", kind=kind).values[key] == 3
    values = read(tmp_path, "--torch_empty_cache_steps", "4", file=f"{key}: 3", kind=kind)
    assert yaml.safe_load(snapshot(fields(kind), values.values, "train"))[key] == 4
    assert "--torch_empty_cache_steps INT" in help_of(kind)
    assert "steps between two of them" in help_of(kind)
    with pytest.raises(UsageError, match=f"{key}: wanted a whole number"):
        read(tmp_path, f"{key}=x", kind=kind)


def test_every_argument_has_one_line_of_help_and_a_usable_type() -> None:
    for kind in (TrainArguments, EvalArguments):
        for name, one in fields(kind).items():
            assert one.help, name
            assert one.types, name
            assert "\n" not in one.help
    assert set(by_hand.KEYS) <= set(schema())
    assert not set(by_hand.KEYS) & set(keys.OPEN)
    shown = help_of(TrainArguments)
    assert all(f"--{name} " in shown for name in fields(TrainArguments))
    assert "(default: 42)" in shown
    assert "(required)" in shown


def test_a_snapshot_holds_all_that_defines_a_run_and_reads_as_what_it_was(tmp_path: Path) -> None:
    known = fields(TrainArguments)
    file = "learning_rate: 1e-6\ntasks: [a]\nspecial_tokens: {<a>: x}\nlora_target: q_proj,v_proj\nuse_dora: false\n"
    first = read(tmp_path, "--overwrite", "--max_steps", "3", file=file)
    text = snapshot(known, first.values, "train")
    (tmp_path / "again.yaml").write_text(text)
    second = sources.read(known, ["--config", "again.yaml"], tmp_path)
    kept = {name for name, one in known.items() if one.part != "call"}
    assert yaml.safe_load(text).keys() == kept
    assert {name: second.values[name] for name in kept} == {name: _listed(first.values[name]) for name in kept}
    assert second.values["overwrite"] is False, "what concerns one call is in no snapshot"
    assert build(TrainArguments, second.values).tasks == ("a",)


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


# Places: the document's own examples


def test_a_model_is_named_by_its_last_part_in_lower_case() -> None:
    assert model_name("meta-llama/Llama-3.2-1b") == "llama-3.2-1b"
    assert model_name("/data/models/Qwen3-0.6B/") == "qwen3-0.6b"
    assert tracker_name("llama-3.2-1b", "first", "sft") == "llama-3.2-1b_first_sft"


def test_the_places_are_these_to_the_letter(tmp_path: Path) -> None:
    found = places("llama-3.2-1b", "first", "lora", None, "train", tmp_path)
    run = tmp_path / "outputs/llama-3.2-1b/first/lora"
    assert found.weights == run / "train"
    assert found.config("train") == run / "train_config.yaml"
    assert found.config("eval") == run / "eval_config.yaml"
    assert found.script == run / "eval.sh"
    assert found.results(["gsm8k"]) == run / "eval/gsm8k/results.json"
    assert found.results(["gsm8k", "lm_eval-gsm8k"]) == run / "eval/gsm8k_lm_eval-gsm8k/results.json"


def test_an_explicit_output_dir_wins(tmp_path: Path) -> None:
    found = places("m", "r", "lora", "my/own dir", "train", tmp_path)
    assert found.weights == tmp_path / "my/own dir"
    assert found.config("train") == tmp_path / "my/own dir/train_config.yaml"


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "-x", "a b", "x" * 101, "a\n", ".hidden"])
def test_a_name_that_could_lead_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"run_name: .* cannot name a directory"):
        places("m", name, "lora", None, "train", tmp_path)


@pytest.mark.parametrize("name", ["first", "_x_", "2026-11-21_lr=2e-4", "v1.2+b", "_a_b__c"])
def test_usual_names_are_taken(tmp_path: Path, name: str) -> None:
    assert places("m", name, "lora", None, "train", tmp_path).root.parent.name == name
