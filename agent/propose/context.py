"""What the language model is told, within a number of tokens: sections, the less important ones shortened first.

The host has no tokenizer. A token is taken for three bytes, which is less than it has in most texts, until the endpoint
says how many tokens a prompt really had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from types import SimpleNamespace

import msgspec

from agent.llm import Message
from agent.prompts import clip, one_line, render
from agent.propose import Directive
from agent.propose.brief import AllowedKey, BenchmarkBrief, StudyBrief
from agent.propose.digest import (
    best_text,
    children_text,
    mistakes_text,
    pending_text,
    scores_text,
    silenced,
    trials_text,
)
from agent.propose.lessons import compact
from agent.records import History, Proposal, Value

TOKENS = 24_000  # of a prompt, unless FT_CONTEXT_TOKENS says otherwise
HISTORY = (24_000, 12_000, 6_000, 3_000, 1_200)  # characters for the finished trials
EXAMPLES, EXAMPLE = 3, 600  # rows shown, characters of each
FACTS, NAME = 400, 100  # ... for each free text of the brief, and for each name
SCORES = 1_500  # ... for the base's scores
DEFAULTS = 8_000  # ... for the defaults
FIGURES = 6_000  # ... for the statistics of the data
SCRIPT = 12_000  # ... for the script that the next recipe may build on
LESSONS = (4_000, 2_000, 600)  # ... for lessons


class TokenMeasure(msgspec.Struct, frozen=True):
    """Counts tokens by bytes of UTF-8; learns from what an endpoint counted."""

    bytes_per_token: float = 3.0

    def count(self, text: str) -> int:
        """About how many tokens a text has."""
        return math.ceil(len(text.encode("utf-8", "replace")) / self.bytes_per_token)

    def of(self, messages: Iterable[Message]) -> int:
        """... and a conversation."""
        return sum(self.count(json.dumps(message, ensure_ascii=False)) for message in messages)

    def calibrated(self, messages: Sequence[Message], counted: int) -> TokenMeasure:
        """The measure after an endpoint counted a prompt; what no tokenizer gives is not believed."""
        if not counted:
            return self
        size = sum(len(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")) for message in messages)
        return TokenMeasure(min(max(0.95 * size / counted, 1.0), 4.0))


class Cut(msgspec.Struct, frozen=True):
    """A shorter text of a section; cuts are made in the order of their rank until everything fits."""

    rank: int
    text: str


class Section(msgspec.Struct, frozen=True):
    """A part of the prompt. `title` names it where the model is told that it was cut."""

    name: str
    title: str
    text: str
    cuts: tuple[Cut, ...] = ()


class Fitted(msgspec.Struct, frozen=True):
    """The texts that fit, by section, and the titles of the sections that were shortened or left out."""

    texts: dict[str, str]
    shortened: tuple[str, ...]


def fit(sections: Sequence[Section], tokens: int, measure: TokenMeasure) -> Fitted:
    """The sections in at most so many tokens: cuts by rank, and where all of them are not enough, blunt ones."""
    texts = {section.name: section.text for section in sections}
    cuts = sorted(
        ((cut.rank, section.name, cut.text) for section in sections for cut in section.cuts), key=lambda cut: cut[0]
    )
    left = tokens - sum(map(measure.count, texts.values()))
    for _, name, text in cuts:
        if left >= 0:
            break
        if len(text) < len(texts[name]):
            left += measure.count(texts[name]) - measure.count(text)
            texts[name] = text
    while left < 0:
        name = max(texts, key=lambda one: len(texts[one]))
        if len(texts[name]) < 100:
            break
        shorter = clip(texts[name], len(texts[name]) // 2)
        left += measure.count(texts[name]) - measure.count(shorter)
        texts[name] = shorter
    changed = tuple(section.title for section in sections if texts[section.name] != section.text)
    return Fitted(texts, changed)


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """All that a prompt for the next proposal is made of."""

    brief: StudyBrief
    allowed: tuple[AllowedKey, ...]
    history: History
    pending: tuple[Proposal, ...] = ()
    directive: Directive | None = None


class Opening(msgspec.Struct, frozen=True):
    """The first messages of a conversation, and which sections were cut for their length."""

    messages: list[Message]
    shortened: tuple[str, ...]


def opening(asked: Asked, tokens: int, measure: TokenMeasure) -> Opening:
    """The prompt for the next proposal in at most so many tokens."""
    sections = _sections(asked)
    empty = Fitted({section.name: "" for section in sections}, tuple(section.title for section in sections))
    fitted = fit(sections, tokens - measure.of(_messages(asked, empty)), measure)
    return Opening(_messages(asked, fitted), fitted.shortened)


def defaults_text(brief: StudyBrief) -> str:
    """The defaults of an empty recipe, then for each method what is different with it."""
    usual = brief.defaults({})
    lines = [json.dumps(usual, ensure_ascii=False)]
    for method in brief.methods:
        found = {**brief.defaults(method), **method}
        other = {key: value for key, value in found.items() if usual.get(key) != value}
        other |= {key: None for key in usual if key not in found}
        if other:
            lines.append(f"  - with {json.dumps(method, ensure_ascii=False)}: {json.dumps(other, ensure_ascii=False)}")
    return "\n".join(lines)


def _sections(asked: Asked) -> list[Section]:
    """In the order of the prompt."""
    brief, history = asked.brief, asked.history
    base = 0 if asked.directive is None else asked.directive.parent or 0
    trials = [
        trials_text(history, brief.defaults, limit, logs=brief.logs, whole={base} if base else frozenset())
        for limit in HISTORY
    ]
    script = _script(history, base)
    figures = brief.statistics
    lessons = [compact(history if brief.logs else silenced(history), limit) for limit in LESSONS]
    examples = "\n".join(clip(one_line(row, 10 * EXAMPLE), EXAMPLE) for row in brief.examples[:EXAMPLES])
    return [
        _keys(asked),
        Section("defaults", "defaults", clip(defaults_text(brief), DEFAULTS)),
        Section("figures", "figures of the data", clip(figures, FIGURES), _clips(figures, (2_000, 22), (500, 62))),
        Section("examples", "training rows", examples, (Cut(30, clip(examples, 700)), Cut(64, ""))),
        Section("best", "the best recipe", best_text(history)),
        Section("script", "the script to build on", clip(script, SCRIPT), _clips(script, (4_000, 54), (0, 74))),
        Section(
            "trials",
            "finished trials",
            trials[0],
            tuple(map(Cut, (20, 50, 70, 90), trials[1:])),
        ),
        Section("children", "trials built on the parent", clip(children_text(history, base), 3_000), (Cut(40, ""),)),
        Section("lessons", "lessons", lessons[0], tuple(map(Cut, (44, 80), lessons[1:]))),
        Section(
            "mistakes",
            "wrong answers",
            mistakes_text(history),
            _clips(mistakes_text(history), (1_500, 24), (0, 60)),
        ),
        Section(
            "pending",
            "running trials",
            clip(pending_text(asked.pending), HISTORY[2]),
            _clips(pending_text(asked.pending), (1_000, 76)),
        ),
    ]


def _keys(asked: Asked) -> Section:
    methods: tuple[dict[str, Value], ...] = ({}, *asked.brief.methods)
    overruled = {key for method in methods for key in asked.brief.defaults(method)}
    texts = [
        "\n".join(_key_line(key, about, manual, told=key.name not in overruled) for key in asked.allowed)
        for about, manual in ((200, 240), (200, 0), (80, 0), (0, 0))
    ]
    return Section("keys", "help of the keys", texts[0], tuple(map(Cut, (10, 56, 78), texts[1:])))


def _key_line(key: AllowedKey, about: int, manual: int, *, told: bool) -> str:
    """One key, with so many characters of help. `told`: its own default may hold."""
    low, high = key.bounds
    values = f" one of {json.dumps(list(key.choices))}" if key.choices else ""
    if low is not None or high is not None:
        values += f" from {'any' if low is None else f'{low:g}'} to {'any' if high is None else f'{high:g}'}"
    texts = ((key.help, about), (key.manual, manual))
    words = ". ".join(clip(one_line(text, 1_000), limit).rstrip(".") for text, limit in texts if text and limit)
    default = f", default {json.dumps(key.default)}" if told else ""
    return f"{key.name} ({key.type}{default}{values})" + (f": {words}." if words else "")


def _messages(asked: Asked, fitted: Fitted) -> list[Message]:
    brief, parts = asked.brief, SimpleNamespace(**fitted.texts)
    system = render("propose_system", brief=_bounded(brief), parts=parts)
    user = render(
        "propose_user",
        base=clip(scores_text(asked.history.base), SCORES),
        budget=brief.budget(),
        directive=asked.directive,
        finished=bool(asked.history.trials),
        parts=parts,
        shortened=", ".join(fitted.shortened),
        tools=brief.tools,
    )
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


def _script(history: History, base: int) -> str:
    """The data script of the trial to build on, else of the best."""
    number = base or history.best
    trained = next((trial.trained for trial in history.trials if trial.number == number), None)
    return f"trial {number}:\n{trained.script}" if trained is not None and trained.script else ""


def _clips(text: str, *cuts: tuple[int, int]) -> tuple[Cut, ...]:
    """Cuts to so many characters, each with its rank; 0 leaves the section out."""
    return tuple(Cut(rank, clip(text, limit) if limit else "") for limit, rank in cuts)


def _bounded(brief: StudyBrief) -> StudyBrief:
    """The brief with every free text on one line of bounded length."""
    return msgspec.structs.replace(
        brief,
        dataset=one_line(brief.dataset, NAME),
        model=one_line(brief.model, NAME),
        columns=tuple(one_line(column, NAME // 2) for column in brief.columns[:20]),
        work_columns=tuple(one_line(column, NAME // 2) for column in brief.work_columns[:30]),
        hardware=one_line(brief.hardware, FACTS),
        model_facts={name: one_line(value, NAME) for name, value in list(brief.model_facts.items())[:12]},
        benchmarks=tuple(
            BenchmarkBrief(
                name=one.name,
                description=one_line(one.description, FACTS),
                answer_format=one_line(one.answer_format, FACTS),
            )
            for one in brief.benchmarks[:20]
        ),
    )
