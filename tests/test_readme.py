"""The README is true: every command in it is run by a test or by CI, and every setting stands in its table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.end_to_end.command import User

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
GOLDEN = Path(__file__).parent / "golden"

RUN_ELSEWHERE = {
    "make demo": "tests/end_to_end/test_demo.py",
    "make test": ".ci/run",
    "make setup": ".ci/run",
    "python agent/loop.py --dataset demo/reverse --loop_n 1": "tests/end_to_end/test_studies.py",
    "dotenv run -- python agent/loop.py --dataset HuggingFaceH4/aime_2024 --loop_n 1": (
        "tests/end_to_end/test_studies.py"
    ),
    "ftloop report": "tests/end_to_end/test_studies.py",
    "ftloop doctor": "tests/test_cli.py",
    "ftloop doctor --json": "tests/test_cli.py",
    "ftloop clean --dry-run": "tests/test_cli.py",
    "ftloop clean": "tests/test_cli.py",
    "ftloop clean --images --checkpoints": "tests/test_cli.py",
    "ftloop train --config docs/examples/train.yaml --run_name first": "tests/test_experiment_real.py",
    "outputs/tiny/first/full/eval.sh": "tests/test_experiment_real.py",
    "ftloop train --config outputs/tiny/first/full/train_config.yaml --run_name second --learning_rate 1e-3": (
        "tests/test_experiment_runs.py"
    ),
    "ftloop sweep training_config.yaml --dry-run": "tests/test_sweep.py",
    "ftloop sweep training_config.yaml": "tests/test_sweep.py",
    "ftloop list": "tests/test_sweep.py",
    "ftloop list --detail --purpose hyperparameter_tuning": "tests/test_sweep.py",
    "ftloop trace Data_v2/synthetic/prompt_engineering/copa_mezo_v1/Copa": "tests/test_sweep.py",
}
"""Command -> the file that runs it."""

DRY = {
    "dotenv run -- python agent/loop.py --dataset HuggingFaceH4/aime_2024 --model Qwen/Qwen3-1.7B --timeout 12h": (
        "dry-run-gpu.txt",
        {"FT_BENCHMARK_DATASETS": '["gsm8k"]'},
    ),
    "FT_CHAT_API_BASE=http://127.0.0.1:8000 FT_CHAT_MODEL=Qwen/Qwen3-32B "
    "python agent/loop.py --dataset demo/reverse --loop_n 1": ("dry-run-endpoint.txt", {}),
}
"""Command that needs a GPU, the hub or an endpoint -> its golden dry run."""

SHELL = {"source .venv/bin/activate", "cp .env.example .env"}


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_command_is_run_somewhere() -> None:
    unknown = set(commands()) - set(RUN_ELSEWHERE) - set(DRY) - SHELL
    assert not unknown, f"say in tests/test_readme.py who runs {unknown}"
    assert len(commands()) >= 8


@pytest.mark.parametrize(("command", "file"), RUN_ELSEWHERE.items())
def test_the_named_file_runs_it(command: str, file: str) -> None:
    assert command in (ROOT / file).read_text(), f"{file} does not run {command}"


@pytest.mark.parametrize("command", DRY)
def test_commands_that_need_more_are_held_as_dry_runs(command: str, tmp_path: Path) -> None:
    assert command in commands()
    golden, more = DRY[command]
    user = User(tmp_path)
    words = shlex.split(command)
    given = dict(word.split("=", 1) for word in words if re.match(r"[A-Z_]+=", word))
    words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
    (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in more.items()))
    output = user.run(*words, "--dry-run", env=given).replace(str(tmp_path), "HOME")
    assert output == (GOLDEN / golden).read_text()
    assert not user.workspace.exists(), "a dry run writes nothing"


def test_the_copied_example_env_is_accepted(tmp_path: Path) -> None:
    user = User(tmp_path)
    (tmp_path / ".env").write_text((ROOT / ".env.example").read_text())
    assert "demo/reverse" in user.loop("--dataset", "demo/reverse", "--dry-run")


def test_the_exit_codes_are_those_of_the_errors() -> None:
    from agent import errors

    codes = {cls.exit_code for cls in vars(errors).values() if isinstance(cls, type) and hasattr(cls, "exit_code")}
    table = README[README.index("## Exit codes") :]
    assert all(f"| {code} |" in table for code in (0, 130, *codes))


def test_what_the_page_on_gpus_names_is_there() -> None:
    text = (ROOT / "docs/gpu.md").read_text()
    assert "docs/gpu.md" in README
    named = set(re.findall(r"`((?:agent|docker|tests)/[^`\s]+)`", text))
    assert len(named) >= 8
    missing = [name for name in named if not list(ROOT.glob(name))]
    assert not missing
