"""What the trials of a study taught, as short as it can be said: near-equal lessons once, with all their trials."""

from __future__ import annotations

import re

from agent.prompts import clip, one_line
from agent.records import History, Trial

LIMIT = 4_000
"""Characters of all lessons: about 1,000 tokens."""
LESSON = 450
"""Characters of one lesson: about 100 tokens."""
ALIKE = 0.8
"""Share of their words that two lessons have in common (Jaccard), from which on they say the same."""
TELLING = {"better": 3.0, "worse": 2.0, "tie": 1.0}
"""How much a verdict tells; a failure as much as "worse"."""
FADING = 0.9
"""How much of that is left with each later trial."""


def compact(history: History, limit: int = LIMIT) -> str:
    """The lessons in at most `limit` characters, a line each, the newest and most telling first."""
    lines: list[str] = []
    left = limit
    for numbers, text, verdict in _ranked(history):
        trials = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {', '.join(map(str, numbers))}"
        line = f"- {trials} ({verdict}): {text}"
        if len(line) + 1 <= left:
            lines.append(line)
            left -= len(line) + 1
    return "\n".join(lines)


def _ranked(history: History) -> list[tuple[list[int], str, str]]:
    """Each lesson with the trials that taught it and the verdict, best first; of equal ones the newest text is kept."""
    found: list[tuple[list[int], str, str]] = []
    weights: list[float] = []
    last = len(history.trials)
    for trial in reversed(history.trials):
        text = clip(one_line(trial.lesson, 4 * LESSON), LESSON)
        if not text:
            continue
        weight = TELLING.get(trial.verdict, 2.0 if trial.failure else 1.0) * FADING ** (last - trial.number)
        same = next((i for i, (_, other, verdict) in enumerate(found) if _same(trial, text, other, verdict)), None)
        if same is None:
            found.append(([trial.number], text, trial.verdict))
            weights.append(weight)
        else:
            found[same][0].insert(0, trial.number)
            weights[same] += weight  # what was seen more than once tells more
    order = sorted(range(len(found)), key=lambda index: (-weights[index], -found[index][0][-1]))
    return [found[index] for index in order]


def _same(trial: Trial, text: str, other: str, verdict: str) -> bool:
    if trial.verdict != verdict:
        return False
    mine, theirs = _words(text), _words(other)
    return len(mine & theirs) >= ALIKE * len(mine | theirs)


def _words(text: str) -> set[str]:
    """Its words; numbers count as words, since they may be all that differs in what was tried."""
    return set(re.findall(r"[\w.+-]*\w", text.lower()))
