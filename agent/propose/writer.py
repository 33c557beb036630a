"""The proposer that is a language model: it writes a hypothesis and a recipe; the program checks, and asks again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import TrialFailed
from agent.llm import ChatModel, ContextOverflow, Message, Replay, Reply, Transcript, charge
from agent.prompts import clip, one_line, printable, render
from agent.propose import Check, Policy, critique
from agent.propose.brief import AllowedKey, StudyBrief
from agent.propose.context import TOKENS, Asked, TokenMeasure, opening
from agent.propose.dialogue import BAD_REPLY, Dialogue, Read, T, Unusable
from agent.propose.draft import PROSE, DraftReader, reply_schema, script_problems
from agent.propose.duplicates import same_script
from agent.propose.tools import Toolbox
from agent.records import History, Lesson, Proposal, Trial, Usage

REFUSAL = 200  # characters of why a reply was refused, in the proposal that came of it
PROBLEM = 6_000  # characters of what went wrong with a script
SCRIPT_SCHEMA = {
    "type": "object",
    "properties": {"script": {"type": "string"}},
    "required": ["script"],
    "additionalProperties": False,
}


class ProposalFailed(TrialFailed):
    """Nothing valid came of all attempts; `usage` is what they consumed."""

    def __init__(self, kind: str, failed: Unusable, what: str) -> None:
        reason = f"no valid {what} in {failed.replies} replies; the last one: {failed}"
        super().__init__(kind, one_line(reason, 4 * PROSE), clip(printable(failed.text), BAD_REPLY))
        self.usage = failed.usage


def author(model: ChatModel | Replay) -> str:
    """Who is named as the author of a model's proposals."""
    return f"llm:{model.endpoint.model}"


class Writer:
    """Implements `agent.propose.Author` with a chat model.

    Args:
        check: The scenario's verdict on a recipe.
        allowed: The keys that are offered; `check` decides.
        repairs: Further attempts for one proposal after an unusable reply.
        transcript: JSONL file that receives every request and reply, without keys.
        policy: Says what kind of attempt comes next; None leaves that to the model.
        tokens: Most tokens of a prompt (FT_CONTEXT_TOKENS).
        say: Told where a prompt had to be made shorter than that.
    """

    def __init__(
        self,
        model: ChatModel | Replay,
        brief: StudyBrief,
        check: Check,
        allowed: Sequence[AllowedKey],
        repairs: int = 3,
        transcript: Path | None = None,
        *,
        policy: Policy | None = None,
        tokens: int = TOKENS,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._brief = brief
        self._allowed = tuple(allowed)
        self._policy = policy
        self._reader = DraftReader(brief, check, self._allowed, author(model))
        self._schema = reply_schema(allowed, brief.steps, scripts=brief.scripts_allowed)
        self._dialogue = Dialogue(model, Transcript(transcript, model.endpoint), repairs, tokens, say)

    @property
    def name(self) -> str:
        """The author of its proposals."""
        return self._reader.author

    def propose(self, history: History, pending: Sequence[Proposal]) -> Proposal:
        """The next proposal; raises ProposalFailed after too many unusable replies, EndpointError, BudgetEnded.

        Whatever leaves it, KeyboardInterrupt included, carries in `usage` what was consumed until then.
        """
        asked = Asked(
            brief=self._brief,
            allowed=self._allowed,
            history=history,
            pending=tuple(pending),
            directive=self._policy(history) if self._policy else None,
        )
        toolbox = Toolbox(history, self._brief.library, logs=self._brief.logs) if self._brief.tools else None

        refused: list[str] = []

        def read(reply: Reply) -> tuple[Proposal | None, list[str]]:
            proposal, problems = self._reader.read(reply, history, pending)
            refused.extend(one_line(problem, REFUSAL) for problem in problems[:1])
            return proposal, problems

        def begin(tokens: int, measure: TokenMeasure) -> list[Message]:
            return opening(asked, tokens, measure).messages

        try:
            proposal, usage = self._dialogue.hold("propose", begin, self._schema, read, toolbox)
        except Unusable as failed:
            raise ProposalFailed("proposal", failed, "proposal") from None
        return msgspec.structs.replace(proposal, usage=usage, refused=tuple(refused))

    def mend(self, proposal: Proposal, problem: str) -> Proposal:
        """The proposal with a corrected data script; `usage` is what the correction consumed.

        Raises: TrialFailed, of the kind "data", after too many unusable replies, and where script and problem are too
            long for the model's context; EndpointError; BudgetEnded.
        """
        recipe = proposal.recipe
        told = render(
            "mend",
            brief=self._brief,
            change=one_line(proposal.change, PROSE),
            hypothesis=one_line(proposal.hypothesis, PROSE),
            columns=[one_line(column, 60) for column in self._brief.work_columns[:40]],
            script=recipe.script,
            problem=clip(problem, PROBLEM),
        )
        messages: list[Message] = [{"role": "user", "content": told}]
        try:
            script, usage = self.ask("mend", messages, SCRIPT_SCHEMA, lambda reply: _read_script(reply, recipe.script))
        except Unusable as failed:
            raise ProposalFailed("data", failed, "script") from None
        except ContextOverflow as error:
            finding = TrialFailed("data", f"the script cannot be mended: {error.message}")
            charge(finding, error.usage)
            raise finding from None
        mended = msgspec.structs.replace(recipe, script=script)
        return msgspec.structs.replace(proposal, recipe=mended, usage=usage)

    def reflect(self, history: History, trial: Trial, found: str) -> Lesson:
        """What the trial teaches, in the harness's words, then in the model's; raises EndpointError, BudgetEnded."""
        return critique.reflect(self.ask, history, trial, found, logs=self._brief.logs)

    def ask(self, role: str, messages: Sequence[Message], schema: dict[str, Any], read: Read[T]) -> tuple[T, Usage]:
        """What the model answers to a conversation, once `read` finds nothing wrong with it, and what that consumed.

        Args:
            role: Names the conversation in the transcript; a replay knows those of `agent.llm.transcript.AGENT`.

        Raises: Unusable, EndpointError, BudgetEnded; they carry `usage`.
        """
        return self._dialogue.hold(role, lambda *_: list(messages), schema, read, trims=0)


def _read_script(reply: Reply, before: str) -> tuple[str | None, list[str]]:
    """The script in a reply: as JSON, or in a fenced block of Python; or what is wrong with it."""
    script = (reply.data or {}).get("script")
    if script is None and (fenced := re.search(r"```(?:python|py)?\n(.*?)```", reply.text, re.DOTALL)):
        script = fenced[1]
    if not isinstance(script, str) or not script.strip():
        return None, [reply.problem or 'wanted {"script": "the whole corrected script"}']
    if problems := script_problems(script):
        return None, problems
    if same_script(script) == same_script(before):
        return None, ["script: it is the same script; correct what went wrong"]
    return script, []
