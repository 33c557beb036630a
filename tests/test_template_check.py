"""Training and evaluation must render alike: the comparison by itself, and real LLaMA-Factory against real engines."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from agent.errors import UsageError
from agent.records import Usage
from agent.run import Job, Outcome
from agent.run.environments import Environments
from agent.run.local import LocalRunner
from scenarios import Progress, Stop
from scenarios.finetune.data import recognise, write
from scenarios.finetune.models import inspect
from scenarios.finetune.registry import Engine
from scenarios.finetune.rendering import Asked, Conversation, Trained, difference
from scenarios.finetune.template_check import ANSWER, check
from scenarios.finetune.training import TrainingPlan
from tests.end_to_end.command import User
from tests.unhurried import Unhurried

ROOT = Path(__file__).resolve().parent.parent
BOTH: tuple[Engine, ...] = ("lm_eval", "opencompass")

# The comparison


ONE = Conversation(
    prompt=(1, 50, 51, 2),
    prompt_text="<u>hi there<a>",
    target=(60, 61, 3, 9),
    target_text=f"{ANSWER}<end>\n",
    start="",
    end=((3, "<end>"), (9, "\n")),
)
TRAINED = Trained(conversations=(ONE,), special=(1, 2, 3))
ASKED = Asked(
    engine="lm_eval",
    tokenizer="base",
    prompts=((1, 50, 51, 2),),
    texts=("<u>hi there<a>",),
    follows=(f"{ANSWER}<end>\n",),
    stops=(3,),
    chat=True,
    vocabulary=100,
)


def trained(**changes: object) -> Trained:
    return msgspec.structs.replace(TRAINED, conversations=(msgspec.structs.replace(ONE, **changes),))


def asked(**changes: object) -> Asked:
    return msgspec.structs.replace(ASKED, **changes)


@pytest.mark.parametrize(
    ("one", "other", "plain"),
    [
        pytest.param(trained(), asked(), False, id="equal"),
        pytest.param(trained(prompt=(1, 52, 2)), asked(), False, id="the same text in other ordinary tokens"),
        pytest.param(trained(start=" "), asked(), False, id="a blank before the answer"),
        pytest.param(trained(), asked(follows=(f"<think></think>{ANSWER}",)), False, id="no think block learned"),
        pytest.param(
            trained(start="<think></think>\n"), asked(follows=(f"<think></think>{ANSWER}",)), False, id="as its own"
        ),
        pytest.param(trained(end=((9, "\n"), (3, "<end>"))), asked(), False, id="a newline before the end of turn"),
        pytest.param(trained(end=()), asked(chat=False, follows=(None,)), True, id="plain text without an end"),
    ],
)
def test_what_is_no_difference(one: Trained, other: Asked, plain: bool) -> None:
    assert difference(one, other, ANSWER, plain=plain) is None


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (trained(), asked(prompts=((1, 50, 51, 9, 2),), texts=("<u>hi there\n<a>",)), "part at token 3: training has"),
        (
            trained(),
            asked(prompts=((1, 50, 51, 2, 2),), texts=("<u>hi there<a><a>",)),
            "evaluation '<u>hi there<a><a>'",
        ),
        (trained(prompt=(70, 50, 51, 2)), asked(), "not the same special tokens (at token 0)"),  # "<u>" as letters
        (trained(start="<think></think>"), asked(), "puts '<think></think>' before each answer"),
        (trained(start=None, target_text="swer is 5."), asked(), "does not learn the whole answer, but 'swer is 5.'"),
        (trained(end=()), asked(), "no token that ends an answer"),
        (trained(end=((4, "<other>"),)), asked(), "with '<other>', at which evaluation does not stop"),
        (trained(target=(60, 200)), asked(), "training uses token 200, and the model knows 100"),
        (Trained(), asked(), "of 1 conversations training keeps 0"),
    ],
)
def test_what_is_one(one: Trained, other: Asked, said: str) -> None:
    assert said in str(difference(one, other, ANSWER, plain=False))


# Both programs, for real


class Bench(Unhurried):
    """Runs jobs on the local runner, and keeps what is said and how often."""

    name, labels = "template-check", dict[str, str]()

    def __init__(self, directory: Path, environments: Environments) -> None:
        self.directory, self._runner = directory, LocalRunner(environments)
        self.said: list[str] = []
        self.jobs = 0

    def spend(self, usage: Usage, *, paid: bool = False) -> None:
        raise AssertionError("no language model is asked here")

    def say(self, message: str) -> None:
        self.said.append(message)

    def run(self, job: Job, progress: Progress | None = None, stop: Stop | None = None) -> Outcome:
        self.jobs += 1
        return self._runner.run(job)


@pytest.fixture(scope="module")
def chatml(environments: Environments, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model: ChatML, its end of turn is the end of sequence."""
    path = tmp_path_factory.mktemp("models") / "chatml"
    program = ROOT / "docker/train/make_demo_model.py"
    subprocess.run([environments.python("train"), program, path], check=True, capture_output=True)
    return path


def altered(model: Path, directory: Path, change: Callable[[str], str | None]) -> Path:
    """A copy of a model with another chat template, or none."""
    path = directory / "altered"
    shutil.copytree(model, path)
    template = path / "chat_template.jinja"
    changed = change(template.read_text())
    template.unlink()
    if changed is not None:
        template.write_text(changed)
    return path


@pytest.fixture
def run(environments: Environments, tmp_path: Path) -> Callable[..., Bench]:
    """The check of a model with an FT_TEMPLATE; the bench it ran on."""
    rows = [{"prompt": f"Reverse {n}.\n", "response": str(n)} for n in range(5)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = write(recognise(tmp_path / "rows.jsonl"), tmp_path / "data")
    bench = Bench(tmp_path / "check", environments)

    def run(model: Path, template: str | None = None, engines: Sequence[Engine] = BOTH) -> Bench:
        plan = TrainingPlan(
            model=inspect(model),
            data=data,
            cutoff_len=128,
            template=template,
            default_epochs=1,
            max_epochs=1,
            debug_timeout=60,
            full_timeout=60,
        )
        check(bench, plan, engines)
        return bench

    return run


@pytest.mark.slow
def test_the_models_own_template_passes_and_is_rendered_once(run: Callable[..., Bench], chatml: Path) -> None:
    bench = run(chatml)
    assert bench.said == ["template check: training and evaluation render the same 94 tokens"]
    assert bench.jobs == 2
    run(chatml)
    assert bench.jobs == 2, "the same is not rendered twice"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("alpaca", "part at token 0: training has 'Below is an instruction"),
        ("llama3", "training has '<|start_header_id|>user"),
        ("qwen3", "training puts '<think>\\n\\n</think>\\n\\n' before each answer, and the chat template nothing"),
    ],
)
def test_another_template_is_refused_and_both_are_named(
    run: Callable[..., Bench], chatml: Path, template: str, said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        run(chatml, template, ["lm_eval"])
    assert f"FT_TEMPLATE: training renders with LLaMA-Factory's template {template}, and " in refused.value.message
    assert f"asks with the chat template of {chatml}: " in refused.value.message
    assert said in refused.value.message
    assert refused.value.hint.startswith("unset FT_TEMPLATE")
    assert "qwen3_nothink" in refused.value.hint
    assert refused.value.exit_code == 2


@pytest.mark.slow
def test_the_command_line_ends_before_anything_is_trained(tmp_path: Path, environments: Environments) -> None:
    user = User(tmp_path)
    options = ("--dataset", "demo/reverse", "--runner", "local", "--loop_n", "1")
    said = user.loop(*options, env={"FT_TEMPLATE": "alpaca"}, code=2)
    assert "LLaMA-Factory's template alpaca, and lm-eval asks with the chat template of" in said
    assert "Traceback" not in said
    assert not user.studies(), "what was refused before it began is no study"
    assert not list(user.workspace.rglob("train.log"))


@pytest.mark.slow
def test_an_unknown_template_is_refused_with_a_near_name(run: Callable[..., Bench], chatml: Path) -> None:
    with pytest.raises(UsageError, match="FT_TEMPLATE: LLaMA-Factory has no template 'qwen3_nothinking'") as refused:
        run(chatml, "qwen3_nothinking")
    assert "did you mean qwen3_nothink" in refused.value.hint


THINKING = """{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if loop.last else '') }}
{{- message.content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- endif %}"""


@pytest.mark.long
@pytest.mark.slow
def test_a_reasoning_template_as_qwen3_has_it_passes(run: Callable[..., Bench], chatml: Path, tmp_path: Path) -> None:
    """Its think block stands before each answer that is learned, as in the chat template, and in no prompt."""
    bench = run(altered(chatml, tmp_path, lambda _: THINKING))
    assert "render the same" in bench.said[0]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("template", [None, "chatml"])
def test_a_model_without_a_chat_template_is_trained_and_asked_alike(
    run: Callable[..., Bench], chatml: Path, tmp_path: Path, template: str | None
) -> None:
    """Unset: plain text on both sides. Set: the tokenizer that training leaves brings its chat template along."""
    bench = run(altered(chatml, tmp_path, lambda _: None), template)
    assert "render the same" in bench.said[0]


@pytest.mark.long
@pytest.mark.slow
def test_a_tokenizer_that_begins_each_text_with_a_token_of_its_own_passes(
    run: Callable[..., Bench], chatml: Path, tmp_path: Path
) -> None:
    """As Llama's base models: LLaMA-Factory's plain text is without it, so a trained model must be asked without it."""
    model = altered(chatml, tmp_path, lambda _: None)
    first, text = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [first, text],
        "pair": [first, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"bos_token": "<|endoftext|>"}))
    assert "render the same" in run(model).said[0]


@pytest.mark.slow
def test_an_end_of_turn_at_which_evaluation_does_not_stop_is_refused(
    run: Callable[..., Bench], chatml: Path, tmp_path: Path
) -> None:
    model = altered(chatml, tmp_path, lambda text: text)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        settings = json.loads((model / name).read_text())
        (model / name).write_text(json.dumps(settings | {"eos_token": "<|endoftext|>"}))
    settings = json.loads((model / "generation_config.json").read_text())
    (model / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 0}))
    with pytest.raises(
        UsageError, match=r"each answer with '<\|im_end\|>', at which evaluation does not stop"
    ) as refused:
        run(model)
    assert refused.value.hint.startswith("set FT_TEMPLATE to one that renders as the model's own does: chatml")


@pytest.mark.long
@pytest.mark.slow
def test_a_template_that_training_cannot_read_is_refused(
    run: Callable[..., Bench], chatml: Path, tmp_path: Path
) -> None:
    """As the template of Gemma: it has no system turn."""
    forbidding = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    with pytest.raises(UsageError, match="System role not supported") as refused:
        run(altered(chatml, tmp_path, lambda text: forbidding + text))
    assert "set FT_TEMPLATE" in refused.value.hint


@pytest.mark.slow
def test_a_newline_that_one_engine_adds_is_seen(
    run: Callable[..., Bench], chatml: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """OpenCompass without our meta-template, whose default one adds an empty system turn."""
    programs = tmp_path / "share/docker"
    shutil.copytree(ROOT / "docker", programs)
    model = programs / "bench/compass_model.py"
    text = model.read_text()
    ours = '**({"meta_template": TURNS} if tokenizer.chat_template else {}),'
    assert ours in text
    model.write_text(text.replace(ours, ""))
    monkeypatch.setattr("scenarios.finetune.template_check.resource", lambda name: tmp_path / "share" / name)
    with pytest.raises(UsageError, match=r"OpenCompass asks with .*their prompts part at token"):
        run(chatml)
