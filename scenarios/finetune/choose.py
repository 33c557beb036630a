"""Chooses a base model where none is named: for the hardware, for what the benchmarks ask, by its licence; with reason.

What lies in the workspace comes first, because nothing has to be downloaded; then the dated list in models.yaml. By
the machine's whole memory, not by what is free just now: the same command must find the same model again.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import UsageError
from agent.hardware import Hardware
from scenarios.finetune.cards import card
from scenarios.finetune.estimate import Device, estimate
from scenarios.finetune.estimate_shapes import Shapes, read_shapes, shapes
from scenarios.finetune.files import MARKER
from scenarios.finetune.models import ModelInfo, inspect
from scenarios.finetune.registry import Skill

LIST = Path(__file__).with_name("models.yaml")
HEADROOM = 0.9
"""Share of the memory that a choice may need: recipes differ, and the estimate may be wrong."""
WITHOUT_GPU = 1_000_000_000
"""Parameters from which on a training on a CPU takes days: of such models the smallest is taken there."""
HALF = 2
"""Bytes of a downloaded weight."""


class Listed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model of the list; `config` has the sizes of its config.json."""

    id: str
    parameters: int
    licence: str
    chat_template: bool
    good_at: tuple[Skill, ...]
    config: dict[str, Any]


class ModelList(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """models.yaml.

    Attributes:
        free: Licences under which a model is chosen without being named.
        named_only: Pattern of names -> why those models are not.
    """

    date: datetime.date
    free: frozenset[str]
    named_only: dict[str, str]
    models: tuple[Listed, ...]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A base model, where it lies (None: on the hub), why it was taken, and which were passed over."""

    name: str
    path: Path | None
    reason: str
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """`memory`: bytes for LoRA. `good_at`: None where nobody says. `licence`: "" where it is not stated."""

    name: str
    path: Path | None
    parameters: int
    memory: int
    chat_template: bool
    good_at: frozenset[Skill] | None
    licence: str
    free: bool

    def suits(self, skills: Set[Skill]) -> bool:
        """Whether nothing is known against it."""
        return self.good_at is None or skills <= self.good_at


def choose(root: Path, machine: Hardware, skills: Set[Skill], *, cutoff_len: int, room: int) -> Choice:
    """The model that suits best, from `root`, else from the list; always one, if need be the smallest of the list.

    A demo's model teaches nothing about a user's data, and what is hidden is not finished: neither is ever chosen. A
    model whose licence is not stated is the user's own.

    Args:
        root: The workspace's models, as `<name>/` or `<organisation>/<name>/`.
        skills: What the benchmarks ask for.
        cutoff_len: Tokens of the longest sequence trained on.
        room: Bytes that a download may take.
    """
    known = read_list()
    there = tuple(_on_disk(root, known, machine, cutoff_len))
    passed = tuple(f"{one.name}: {one.licence}, taken only when named" for one in there if not one.free)
    free = [one for one in there if one.free]
    if fitting := [one for one in free if _fits(one, machine)]:
        best = _best(fitting, machine, skills)
        among = f"of {len(free)} in {root}" if len(free) > 1 else f"the only model in {root}"
        reason = _reason(best, fitting, among, machine, skills)
        return Choice(name=best.name, path=best.path, reason=reason, passed_over=passed)
    for one in free:
        passed += (f"{one.name}: LoRA needs about {_gib(one.memory)}",)
    listed = [_of_list(one, known, machine, cutoff_len) for one in known.models]
    listed = [one for one in listed if one.free]
    among = f"of the list of {known.date}"
    downloadable = [one for one in listed if one.parameters * HALF <= room]
    if fitting := [one for one in downloadable if _fits(one, machine)]:
        best = _best(fitting, machine, skills)
        reason = _reason(best, fitting, among, machine, skills)
    else:
        best = min(listed, key=lambda one: (not one.suits(skills), one.parameters))
        reason = f"the smallest {among}, although LoRA needs about {_gib(best.memory)}, {best.licence}"
    return Choice(name=best.name, path=None, reason=reason, passed_over=passed)


def read_list(file: Path = LIST) -> ModelList:
    """The maintained list."""
    import yaml

    return msgspec.convert(yaml.safe_load(file.read_text("utf-8")), ModelList)


def _fits(one: _Candidate, machine: Hardware) -> bool:
    return one.memory <= HEADROOM * machine.device_memory


def _best(fitting: Sequence[_Candidate], machine: Hardware, skills: Set[Skill]) -> _Candidate:
    """With a chat template (it is then trained and asked in its own format), then suited, then the largest."""

    def rank(one: _Candidate) -> tuple[bool, bool, bool, int]:
        quick = _quick(one, machine)
        return one.chat_template, one.suits(skills), quick, one.parameters if quick else -one.parameters

    return max(fitting, key=rank)


def _quick(one: _Candidate, machine: Hardware) -> bool:
    return bool(machine.gpus) or one.parameters < WITHOUT_GPU


def _reason(best: _Candidate, fitting: Sequence[_Candidate], among: str, machine: Hardware, skills: Set[Skill]) -> str:
    size = "largest" if _quick(best, machine) else "smallest"
    others = [one for one in fitting if one.parameters > best.parameters]
    words = [among if among.startswith("the only") else f"the {size} {among}"]
    if any(one.chat_template < best.chat_template for one in others):
        words.append("with a chat template")
    if any(one.suits(skills) < best.suits(skills) for one in others):
        words.append(f"for {' and '.join(sorted(skills))}")
    words.append(f"that trains with LoRA in {_gib(machine.device_memory)}")
    if any(not _quick(one, machine) for one in (best, *others)):
        words.append(f"without a GPU (where more than {WITHOUT_GPU / 1e9:.0f} B parameters take days)")
    return f"{' '.join(words)}, {best.licence or 'its licence is not stated'}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.0f} GiB"


# The candidates


def _on_disk(root: Path, known: ModelList, machine: Hardware, cutoff_len: int) -> Iterator[_Candidate]:
    for config in sorted([*root.glob("*/config.json"), *root.glob("*/*/config.json")]):
        hidden = any(part.startswith(".") for part in config.relative_to(root).parts)
        if hidden or (config.parent / MARKER).exists():
            continue
        try:
            model = inspect(config.parent)
        except UsageError:
            continue
        if model.adapter or not model.architecture.endswith("ForCausalLM"):
            continue
        name = str(config.parent.relative_to(root))
        listed = next((one for one in known.models if one.id == name), None)
        licence, free = _licence(name, listed.licence if listed else card(config.parent).licence, known)
        yield _Candidate(
            name=name,
            path=config.parent,
            parameters=model.parameters,
            memory=_needs(model, machine, cutoff_len),
            chat_template=model.chat_template,
            good_at=frozenset(listed.good_at) if listed else None,
            licence=licence,
            free=free,
        )


def _of_list(one: Listed, known: ModelList, machine: Hardware, cutoff_len: int) -> _Candidate:
    licence, free = _licence(one.id, one.licence, known)
    return _Candidate(
        name=one.id,
        path=None,
        parameters=one.parameters,
        memory=lora_memory(shapes(one.config), "cuda" if machine.gpus else "cpu", cutoff_len),
        chat_template=one.chat_template,
        good_at=frozenset(one.good_at),
        licence=licence,
        free=free,
    )


def _licence(name: str, stated: str, known: ModelList) -> tuple[str, bool]:
    """The licence, and whether it lets the model be taken unasked."""
    for pattern, words in known.named_only.items():
        if fnmatchcase(name.lower(), pattern.lower()):
            return words, False
    return stated, not stated or stated in known.free


def _needs(model: ModelInfo, machine: Hardware, cutoff_len: int) -> int:
    device: Device = "cuda" if machine.gpus else "cpu"
    try:
        found = read_shapes(Path(model.path), parameters=model.parameters, dtype=model.dtype)
    except (OSError, ValueError, TypeError):
        return model.memory
    return lora_memory(found, device, min(cutoff_len, model.context or cutoff_len))


def lora_memory(model: Shapes, device: Device, tokens: int) -> int:
    """Bytes that the least demanding LoRA training needs: one sequence of so many tokens at a time."""
    keys = {"finetuning_type": "lora", "per_device_train_batch_size": 1, "cutoff_len": tokens}
    return estimate(model, keys | ({"bf16": True} if device == "cuda" else {}), device=device).total
