"""Refuses, before anything is trained, a chat template that evaluation does not share.

Two small jobs render the same probes: LLaMA-Factory's own code in the training environment, and in the evaluation
environment each engine that the study uses, up to the model. No weights are loaded. The template is the study's
(FT_TEMPLATE), not a recipe's, so this runs once a study and is kept beside it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from agent.errors import MachineError, UsageError
from agent.records import Recipe
from agent.resources import resource
from agent.run import EnvironmentName, Job, Mount, written
from scenarios import Bench
from scenarios.finetune import data, outputs
from scenarios.finetune.broken import raise_if_broken
from scenarios.finetune.registry import Engine
from scenarios.finetune.rendering import Asked, Trained, difference, resegmented
from scenarios.finetune.training import TrainingPlan, config

ANSWER = "The answer is 5."
PROMPTS = ("What is 2 plus 3?", "Which digit is it?\n\nDigits: 3 4 5\n\n- the last one\n- „fünf“ 五")
ROWS = 2  # of the real data
LONGEST_PROMPT = 2000  # characters
DEADLINE = 600.0  # seconds; it takes about ten
LARGEST = 8 << 20  # bytes that a job may write
TOKENIZER_FILES = ("*token*", "*.json", "*.jinja", "vocab*", "merges*", "*.model")
RENDERERS = {"train": "docker/train/render_conversations.py", "bench": "docker/bench/render_prompts.py"}
DECISIVE = (  # files that decide what is rendered, besides the model's
    *RENDERERS.values(),
    "docker/bench/score.py",
    "docker/bench/compass_model.py",
    "docker/bench/compass_data.py",
    "docker/train/requirements.lock",
    "docker/bench/requirements.lock",
)
ENGINES: dict[str, str] = {"lm_eval": "lm-eval", "opencompass": "OpenCompass"}
DONE = "checked"
T = TypeVar("T")


def check(bench: Bench, plan: TrainingPlan, engines: Sequence[Engine]) -> None:
    """Have both sides rendered, unless that was done for the same model, template, data and engines, and compare.

    Args:
        bench: Its directory receives the files of both jobs.
        plan: The study's.
        engines: Whose prompts to look at.

    Raises:
        UsageError: FT_TEMPLATE is unknown, or training and evaluation would differ.
        MachineError: A job could not be run.
    """
    probes = _probes(plan)
    key = _key(plan, engines, probes)
    done = bench.directory / DONE
    if done.is_file() and done.read_text("utf-8") == key:
        return
    shutil.rmtree(bench.directory, ignore_errors=True)
    trained = _train_side(bench, plan, probes)
    if trained.problem:
        raise _refusal(plan, trained, trained.problem)
    asked = _bench_side(bench, plan, engines, probes)
    _require_alike(plan, trained, asked)
    tokens = sum(len(one.prompt) for one in trained.conversations)
    bench.say(f"template check: training and evaluation render the same {tokens} tokens")
    if others := max(resegmented(trained, one) for one in asked if one.tokenizer == "trained"):
        bench.say(f"template check: the text of {others} of {len(probes)} prompts is cut into other tokens in training")
    done.write_text(key, "utf-8")


def _require_alike(plan: TrainingPlan, trained: Trained, asked: Sequence[Asked]) -> None:
    plain = not any(one.chat for one in asked if one.tokenizer == "base")
    for one in asked:
        if one.tokenizer == "base" and plain:
            continue  # the base is asked in plain text, a trained model as it was trained
        if found := difference(trained, one, ANSWER, plain=plain):
            owner = plan.model.path if one.tokenizer == "base" else "the tokenizer that training leaves"
            template = f"the chat template of {owner}" if one.chat else "plain text, as the model has no chat template"
            raise _refusal(plan, trained, f"{ENGINES[one.engine]} asks with {template}: {found}")


def _refusal(plan: TrainingPlan, trained: Trained, what: str) -> UsageError:
    alike = ", ".join(trained.alike[:8])
    if trained.templates:
        near = difflib.get_close_matches(str(plan.template), trained.templates, n=3, cutoff=0.5)
        known = f"did you mean {' or '.join(near)}?" if near else f"it has {len(trained.templates)}, such as qwen3"
        return UsageError(f"FT_TEMPLATE: {what}", f"{known}; unset, it is read from the model's own chat template")
    if plan.template is not None:
        own = "unset FT_TEMPLATE: the model's own chat template is then read" if plan.model.chat_template else ""
        hint = own or "set FT_TEMPLATE to a template that LLaMA-Factory has for this model, or unset it"
        hint += f"; or set one that renders as that does: {alike}" if alike else ""
        return UsageError(
            f"FT_TEMPLATE: training renders with LLaMA-Factory's template {plan.template}, and {what}", hint
        )
    hint = f"set FT_TEMPLATE to one that renders as the model's own does: {alike}"
    if not alike:
        hint = "set FT_TEMPLATE to the template that LLaMA-Factory has for this model, or choose another model"
    read = f"LLaMA-Factory's reading of the chat template of {plan.model.path}"
    renders = read if plan.model.chat_template else "LLaMA-Factory's template empty (plain text)"
    return UsageError(f"training renders with {renders}, and {what}", hint)


# The two jobs


def _train_side(bench: Bench, plan: TrainingPlan, probes: Sequence[str]) -> Trained:
    given, output = _directories(bench.directory / "train")
    rows = [json.dumps({"prompt": probe, "response": ANSWER}) + "\n" for probe in probes]
    (given / "data").mkdir()
    (given / "data/mini.jsonl").write_text("".join(rows), "utf-8")
    columns = {"prompt": "prompt", "response": "response"}
    (given / "data/dataset_info.json").write_text(json.dumps(data.info(columns, "mini")), "utf-8")
    settings = config(Recipe(train={}), plan, given / "model", mini=True)
    for key in ("bf16", "deepspeed"):
        settings.pop(key, None)
    settings |= {"use_cpu": True, "cutoff_len": 1 << 20, "output_dir": str(output / "unused")}
    (given / "train.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    _run(bench, _job(bench.name, "train", given / "train.yaml", output, (plan.model.path,), str(output)))
    return _answer(output, Trained)


def _bench_side(
    bench: Bench, plan: TrainingPlan, engines: Sequence[Engine], probes: Sequence[str]
) -> tuple[Asked, ...]:
    given, output = _directories(bench.directory / "bench")
    tokenizer = str(bench.directory / "train/output/tokenizer")
    request = {
        "model": plan.model.path,
        "tokenizers": {"base": None, "trained": tokenizer},
        "engines": sorted(set(engines)),
        "probes": [{"question": probe, "answer": ANSWER} for probe in probes],
        "output": str(output),
    }
    (given / "request.json").write_text(json.dumps(request), "utf-8")
    _run(bench, _job(bench.name, "bench", given / "request.json", output, (plan.model.path, tokenizer)))
    return _answer(output, tuple[Asked, ...])


def _directories(here: Path) -> tuple[Path, Path]:
    given, output = here / "given", here / "output"
    given.mkdir(parents=True)
    output.mkdir()
    return given, output


def _job(
    name: str, environment: EnvironmentName, given: Path, output: Path, seen: Sequence[str], *arguments: str
) -> Job:
    program = resource(RENDERERS[environment])
    variables = {
        "HF_HOME": str(output / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "DISABLE_VERSION_CHECK": "1",  # of LLaMA-Factory; the versions are those of the lock file
        "CUDA_VISIBLE_DEVICES": "",  # nothing is computed
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
    readable = (*seen, str(program.parent), str(given.parent))
    return Job(
        name=f"{name}-{environment}",
        environment=environment,
        argv=("python", str(program), str(given), *arguments),
        cwd=str(output),
        log=str(output.parent / "render.log"),
        deadline=DEADLINE,
        mounts=(*map(Mount, readable), Mount(str(output), writable=True)),
        variables=variables,
    )


def _run(bench: Bench, job: Job) -> None:
    outcome = bench.run(job)
    if outcome.kind == "ok":
        return
    said = outputs.telling_line(outcome.tail) or outcome.reason
    raise_if_broken("the template check", job.environment, outcome, said)
    if outcome.kind == "exit":
        raise UsageError(
            f"the template check could not render with this model: {said}",
            f"its tokenizer or configuration may be incomplete, or of another version; the log: {outcome.log}",
        )
    raise MachineError(f"the template check {outcome.reason}", f"run the same command again; the log: {outcome.log}")


def _answer(output: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(written.read(output, "rendered.json", LARGEST), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MachineError(
            f"the template check wrote no valid result ({error})", f"look at the log beside {output}"
        ) from error


# What is rendered, and whether that was done before


def _probes(plan: TrainingPlan) -> tuple[str, ...]:
    """Fixed prompts, and the first of the data that are short enough, without blanks around them.

    Blanks are left out because many chat templates do: a benchmark's questions have none.
    """
    room = min(LONGEST_PROMPT, (plan.model.context or LONGEST_PROMPT) // 4)
    with (Path(plan.data.directory) / f"{plan.data.name}.jsonl").open(encoding="utf-8") as lines:
        found = [prompt for line in islice(lines, 50) if (prompt := _prompt(json.loads(line))) and len(prompt) <= room]
    return (*PROMPTS, *found[:ROWS])


def _prompt(row: dict[str, Any]) -> str:
    if "messages" in row:
        return str(next((turn["content"] for turn in row["messages"] if turn.get("role") == "user"), "")).strip()
    return "\n".join(str(row[role]) for role in ("prompt", "query") if row.get(role)).strip()


def _key(plan: TrainingPlan, engines: Sequence[Engine], probes: Sequence[str]) -> str:
    model = Path(plan.model.path)
    files = sorted({file for pattern in TOKENIZER_FILES for file in model.glob(pattern) if file.is_file()})
    digest = hashlib.sha256(json.dumps([plan.model.path, plan.template, sorted(set(engines)), probes]).encode())
    for file in (*files, *map(resource, DECISIVE)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
