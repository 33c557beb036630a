"""What counts as a verdict: exactly one of the allowed words, once the judge's thoughts are taken away.

the judge says ...                                         that is ...
"A", "B\\n", "<think>A or B?</think>B", "hm, A?</think>B"     a verdict (some templates leave out the opening tag)
"CORRECT", "a", "A.", "After review, ... wrong. B"         none: asked again, then unscored
"", "<think>A", "B <think>or</think> A", a cut-off "A"     none
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from agent.llm import Message

UNSCORED = "UNSCORED"
"""What a job is answered where the judge gave no verdict."""
_OPENING = re.compile(r"<think(?:ing)?>")
_CLOSING = re.compile(r"</think(?:ing)?>")


def verdict(content: str, allowed: Sequence[str]) -> str | None:
    """The verdict in the content of a judge's message, None if it is none."""
    said = content.strip()
    closing, opening = _CLOSING.search(said), _OPENING.search(said)
    if closing and (opening is None or opening.start() == 0):
        said = said[closing.end() :].strip()
    return said if said in allowed else None


def reminded(messages: Sequence[Message], allowed: Sequence[str]) -> list[Message]:
    """The messages with a reminder of what the answer must be.

    It joins the last message, because some chat templates refuse two turns of one role.
    """
    words = " or ".join(allowed)
    *before, last = messages
    reminder = f"Answer with exactly one of these and nothing else: {words}"
    if last["role"] != "user":
        return [*before, last, {"role": "user", "content": reminder}]
    return [*before, {**last, "content": f"{last['content']}\n\n{reminder}"}]
