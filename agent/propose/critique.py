"""After a trial its author says what it teaches: from scores, losses and counts of errors, never from a question.

The verdict is the harness's: its own sentence opens every lesson, whatever the author says behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from agent.llm import Message, Reply
from agent.prompts import clip, one_line, render
from agent.propose.dialogue import Read, T, Unusable
from agent.propose.digest import PROSE, READS_DATA, RECIPE, recipe_text, scores_text
from agent.records import History, Lesson, Loss, Proposal, Recipe, Score, Trial, Usage

ROLE = "reflect"
POINTS = 12  # of the loss curve
WORDS = 80  # that are asked for; about 100 tokens
LONGEST = 600  # characters of the author's words that are kept
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"lesson": {"type": "string"}},
    "required": ["lesson"],
    "additionalProperties": False,
}
READS_QUESTIONS = ("bench", "judge")
"""Failures of jobs that see the benchmark, whose words may quote it."""


class Ask(Protocol):
    """Holds a conversation with the model (`agent.propose.writer.Writer.ask`)."""

    def __call__(
        self, role: str, messages: Sequence[Message], schema: dict[str, Any], read: Read[T], /
    ) -> tuple[T, Usage]:
        """What `read` took from its reply, and what that consumed; raises Unusable."""
        ...


def reflect(ask: Ask, history: History, trial: Trial, found: str, *, logs: bool = True) -> Lesson:
    """The lesson of a trial that is not yet part of the history: the harness's words, then its author's.

    Where no reply could be used, the harness's words are the lesson.

    Args:
        found: What the harness's numbers say.
        logs: Whether what a failed job said about the training data may be told.
    """
    told = found if trial.failure is None or _tellable(trial.failure.kind, logs) else f"failed ({trial.failure.kind})"
    prompt = render("critique", found=one_line(told, 2 * PROSE), facts=facts(history, trial), words=WORDS)
    try:
        said, usage = ask(ROLE, [{"role": "user", "content": prompt}], SCHEMA, read_lesson)
    except Unusable as failed:
        return Lesson(text=found, usage=failed.usage)
    return Lesson(text=f"{found.rstrip('.')}. Its author: {said}", usage=usage)


def read_lesson(reply: Reply) -> tuple[str | None, list[str]]:
    """One bounded paragraph, or what is wrong with the reply."""
    lesson = (reply.data or {}).get("lesson")
    if not isinstance(lesson, str) or not lesson.strip():
        return None, [reply.problem or f'wanted {{"lesson": "one paragraph of at most {WORDS} words"}}']
    return one_line(lesson, LONGEST), []


def facts(history: History, trial: Trial) -> str:
    """What was tried and what was measured, as lines; no text of a question or of an answer."""
    lines = []
    if (proposal := trial.proposal) is not None:
        lines += [f"{name}: {one_line(text, PROSE)}" for name, text in _claims(proposal) if text]
        lines.append(f"recipe: {clip(recipe_text(proposal.recipe.train), RECIPE)}{_work(proposal.recipe)}")
        if proposal.parent is not None and 0 < proposal.parent <= len(history.trials):
            parent = history.trials[proposal.parent - 1]
            lines.append(f"parent: trial {parent.number}, {parent.verdict}, {scores_text(parent.scores)}")
    against, best = history.incumbent
    lines.append(f"to be beaten: {against}, {scores_text(best)}")
    lines += [f"errors on {score.benchmark}: {errors(score)}" for score in trial.scores]
    if (score := trial.comparison) is not None:
        lines.append(
            f"paired difference: {score.difference:+.3f} [{score.low:+.3f}, {score.high:+.3f}], {score.verdict}"
        )
    if trial.checkpoint is not None:
        lines.append(f"training loss: {curve(trial.checkpoint.losses)}")
        if trial.checkpoint.why:
            lines.append(f"changed before the training: {one_line(trial.checkpoint.why, PROSE)}")
    if trial.data is not None:
        lines.append(f"training data: {trial.data.rows:,} rows, {trial.data.repairs} repairs of the script")
    return "\n".join([*lines, f"took: {trial.seconds:.0f} s"])


def errors(score: Score) -> str:
    """ "0.350 ± 0.048 of 100: 65 wrong, 12 of them without an answer that could be read, 2 unscored"."""
    wrong = round(score.n * (1 - score.mean))
    form = f", {score.unformatted} without an answer that could be read" if score.unformatted else ""
    unscored = f", {score.unscored} unscored" if score.unscored else ""
    partial = "" if score.asked is None else f", dropped after {score.asked} of {score.planned}"
    return f"{score.mean:.3f} ± {score.stderr:.3f} of {score.n}: about {wrong} wrong{form}{unscored}{partial}"


def curve(losses: Sequence[Loss]) -> str:
    """At most `POINTS` of the points, evenly spaced, the first and the last among them: "2.41 (step 10), ..."."""
    if not losses:
        return "not logged"
    step = max(1.0, (len(losses) - 1) / (POINTS - 1))
    chosen = sorted({min(round(index * step), len(losses) - 1) for index in range(POINTS)})
    return ", ".join(f"{losses[index].loss:.3g} (step {losses[index].step})" for index in chosen)


def _work(recipe: Recipe) -> str:
    steps = f", {len(recipe.data)} data steps" if recipe.data else ""
    return (", a data script" if recipe.script else "") + steps


def _claims(proposal: Proposal) -> list[tuple[str, str]]:
    named = [("change", proposal.change), ("hypothesis", proposal.hypothesis), ("expected", proposal.expected)]
    return [("attempt", proposal.mode), *named]


def _tellable(kind: str, logs: bool) -> bool:
    return kind not in READS_QUESTIONS and (logs or kind not in READS_DATA)
