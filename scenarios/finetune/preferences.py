"""Data that says which answers are better: pairs of a chosen and a rejected answer, or answers with a yes-or-no label.

However a data set lays them out, LLaMA-Factory gets conversations: `messages` up to the last question with `chosen` and
`rejected` beside them, or whole `messages` with a `label`. Supervised fine-tuning reads the better answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from scenarios.finetune import conversations
from scenarios.finetune.conversations import Message
from scenarios.finetune.rows import Row

PAIRS, LABELS = "preference", "labelled"
"""Names of the layouts."""
PROMPTS = ("instruction", "prompt", "question", "problem", "query", "input")
TALKS = ("messages", "conversations", "conversation")
ANSWERS = ("completion", "response", "output", "answer")
LABELLED = ("label", "kto_tag")
TRUTHS = {"true": True, "false": False}
STAGES: dict[str, tuple[str, ...]] = {PAIRS: ("sft", "dpo"), LABELS: ("sft", "kto")}
"""Layout -> the stages of LLaMA-Factory that such data can be trained in. Those without preferences: sft."""


def kind(columns: Mapping[str, str]) -> str | None:
    """The layout that a column map means; None for data without preferences."""
    if {"chosen", "rejected"} & columns.keys():
        return PAIRS
    return LABELS if "label" in columns else None


def stages(columns: Mapping[str, str]) -> tuple[str, ...]:
    """The stages that data with these roles, or these columns of the canonical form, can be trained in."""
    found = kind(columns)
    return STAGES[found] if found else ("sft",)


def layout(sample: Sequence[Row], names: Mapping[str, str]) -> tuple[str, dict[str, str]] | None:
    """The layout's name and role -> column; None where the rows hold no preferences.

    Args:
        sample: Some rows. names: Their columns, by their names in lower case.
    """
    pairs = {role: names[role] for role in ("chosen", "rejected") if role in names}
    if len(pairs) == 2 and any(row.get(column) for row in sample for column in pairs.values()):
        found = _best(sample, _maps(names, pairs))
        return None if found is None else (PAIRS, found)
    for column in (names[name] for name in LABELLED if name in names):
        said = [row[column] for row in sample if row.get(column) is not None]
        if said and all(label(cell) is not None for cell in said):
            answers: list[dict[str, str]] = [{"response": names[name]} for name in ANSWERS if name in names]
            maps = [found for answer in (*answers, {}) for found in _maps(names, answer | {"label": column})]
            if (found := _best(sample, maps)) is not None:
                return LABELS, found
    return None


def canonical(row: Row, columns: Mapping[str, str]) -> dict[str, Any] | None:
    """A row of preferences in the canonical form; None for one that cannot be trained on.

    Args:
        row: As read. columns: Role -> column, with `chosen` and `rejected`, or with `label`.
    """
    cell = {role: row.get(column) for role, column in columns.items()}
    before = _opening(cell)
    if before is None:
        return None
    if "label" in columns:
        answered = _whole(cell["response"], before) if "response" in columns else before
        verdict = label(cell["label"])
        return (
            {"messages": answered, "label": verdict} if answered and verdict is not None and _even(answered) else None
        )
    chosen, rejected = (_whole(cell.get(role), before) for role in ("chosen", "rejected"))
    if not chosen or not rejected or chosen[:-1] != rejected[:-1] or chosen[-1] == rejected[-1] or not _even(chosen):
        return None
    if rejected[-1]["role"] != "assistant":
        return None
    return {"messages": chosen[:-1], "chosen": chosen[-1], "rejected": rejected[-1]}


def label(cell: object) -> bool | None:
    """Whether an answer is a good one; None where the cell does not say."""
    return cell if isinstance(cell, bool) else TRUTHS.get(str(cell).strip().lower())


def supervised(row: Mapping[str, Any]) -> dict[str, Any]:
    """The conversation that supervised fine-tuning learns from, of a canonical row of preferences (or its answer)."""
    return {"messages": [*row["messages"], row["chosen"]] if "chosen" in row else row["messages"]}


def good(row: Mapping[str, Any]) -> bool:
    """Whether `supervised` gives an answer to learn: not one that was called bad."""
    return bool(row.get("label", True))


def longest_sequence(row: dict[str, Any]) -> dict[str, Any]:
    """Of a canonical row, what the longest sequence that it becomes holds: of a pair, one answer."""
    if not (isinstance(row.get("chosen"), dict) and isinstance(row.get("rejected"), dict)):
        return row
    shorter = min("chosen", "rejected", key=lambda role: len(row[role]["content"]))
    return {name: cell for name, cell in row.items() if name != shorter}


def sequence_length(line: str) -> int:
    """Characters of that, of a row as a line of JSON."""
    return (
        len(json.dumps(longest_sequence(json.loads(line)), ensure_ascii=False)) if '"rejected"' in line else len(line)
    )


def _maps(names: Mapping[str, str], answers: dict[str, str]) -> list[dict[str, str]]:
    """Column maps that may say what was asked: in the answers themselves, in a prompt, in a conversation."""
    system = {"system": names["system"]} if "system" in names else {}
    prompts = [{"prompt": names[name]} for name in PROMPTS if name in names]
    if names.keys() >= {"instruction", "input"}:
        prompts[0] |= {"query": names["input"]}
    talks = [{"messages": names[name]} for name in TALKS if name in names]
    return [{**opening, **system, **answers} for opening in ({}, *prompts, *talks)]


def _best(sample: Sequence[Row], maps: Sequence[dict[str, str]]) -> dict[str, str] | None:
    """The first of the maps that fit most rows; what else is wrong with single rows is no matter of the layout."""
    fitting = [sum(_fits(row, columns) for row in sample) for columns in maps]
    return maps[fitting.index(max(fitting))] if any(fitting) else None


def _fits(row: Row, columns: Mapping[str, str]) -> bool:
    """Whether the map says what was asked, and where no answer has a column, whether the conversation ends with one."""
    cell = {role: row.get(column) for role, column in columns.items()}
    before = _opening(cell)
    if before is None:
        return False
    answer = next((role for role in ("chosen", "response") if role in columns), None)
    if answer is None:
        return _even(before)
    whole = before if conversations.roles(before) else _whole(cell[answer], before) or []
    return conversations.roles(whole)[:1] == ["user"]


def _opening(cell: Mapping[str, Any]) -> list[Message] | None:
    """What is said before the answers; empty where the answers are whole conversations."""
    system = conversations.text(cell.get("system"))
    if "messages" in cell:
        return conversations.spoken(cell["messages"], system)
    start: list[Message] = [{"role": "system", "content": system}] if system.strip() else []
    if "prompt" not in cell:
        return start
    if isinstance(cell["prompt"], list):
        return conversations.spoken(cell["prompt"], system)
    asked = [conversations.text(cell.get(role)) for role in ("prompt", "query")]
    if not asked[0].strip():
        return None
    return [*start, {"role": "user", "content": "\n".join(part for part in asked if part.strip())}]


def _whole(cell: object, before: list[Message]) -> list[Message] | None:
    """A conversation that ends with an answer: the cell's own, or what was said before and the answer in the cell."""
    if isinstance(cell, Mapping):
        cell = [cell]
    if isinstance(cell, list):
        said = conversations.spoken(cell)
    else:
        answer = conversations.text(cell)
        said = [{"role": "assistant", "content": answer}] if answer.strip() else None
        if said and not conversations.roles(before):
            said = conversations.dialogue(answer)
    if not said:
        return None
    if conversations.roles(said)[:1] == ["user"]:  # all of it
        start = before[:1] if before and before[0]["role"] == "system" and said[0]["role"] != "system" else []
        return [*start, *said]
    return [*before, *said]


def _even(found: list[Message]) -> bool:
    """Whether user and assistant speak in turn, the assistant last, and say something each time."""
    return conversations.messages(found) is not None
