"""What a run leaves to be run again: train_config.yaml, eval_config.yaml and eval.sh."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from agent.experiments import yaml_text
from agent.experiments.fields import Field
from agent.experiments.places import Mode
from scenarios.finetune.files import replacing

_WHAT = {
    "train": "What was trained, in full. This file trains the same again: ftloop train --config FILE --run_name OTHER",
    "eval": "How it is evaluated, in full. This file evaluates the same again: ftloop eval --config FILE",
}


def snapshot(fields: Mapping[str, Field], values: Mapping[str, Any], mode: Mode) -> str:
    """Every argument but those of one call alone, as YAML that `--config` takes; null is what the trainer decides."""
    kept = {name: _plain(values[name]) for name, one in fields.items() if one.part != "call"}
    return f"# {_WHAT[mode]}\n{yaml.safe_dump(kept, sort_keys=False, allow_unicode=True)}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def differences(text: str, other: str) -> list[str]:
    """The arguments in which two snapshots differ, as "learning_rate: 0.001, now 0.002"."""
    try:
        before, now = (yaml_text.parse(one)[1] or {} for one in (text, other))
    except (yaml.YAMLError, ValueError) as error:
        return [f"it cannot be read: {' '.join(str(error).split())}"]
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return ["it holds no arguments"]
    names = dict.fromkeys([*before, *now])
    return [f"{name}: {before.get(name)}, now {now.get(name)}" for name in names if before.get(name) != now.get(name)]


def write(path: Path, text: str) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text)


def write_script(path: Path, config: Path, cwd: Path, weights: tuple[str, Path] | None = None) -> None:
    """Write eval.sh, beside `config`: it runs from anywhere, with more arguments behind it.

    Args:
        cwd: Where the evaluation starts from.
        weights: The argument that names the weights, and where they lie, if that is below the script's directory. Where
            this was renamed or moved, they are found, and the results put, below its new place.
    """
    moved = '--output_dir "$here"'
    if weights is not None:
        moved += f' --{weights[0]} "$here"/{shlex.quote(str(weights[1].relative_to(path.parent)))}'
    text = f"""#!/bin/sh
# Evaluates this run again, as {config.name} says: ./eval.sh [--KEY VALUE ...]
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd -P)
[ "$here" = {shlex.quote(str(path.parent.resolve()))} ] || set -- {moved} "$@"
cd -- {shlex.quote(str(cwd))}
exec {shlex.quote(sys.executable)} -P -m agent.cli eval --config "$here"/{shlex.quote(config.name)} "$@"
"""
    write(path, text)
    path.chmod(0o755)
