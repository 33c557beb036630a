"""Whether training and evaluation render the same conversation alike: token ids of prompt, target and end of turn.

A pure comparison; `template_check` has both sides rendered. What a model was not trained on it cannot answer: one more
newline, a think block or a system turn on one side alone has cost whole scores without a word from either program.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

SHOWN = 60
"""Characters of a rendered text in a message."""
CONTEXT = 20
"""Those before the first that differs."""


class Conversation(msgspec.Struct, frozen=True):
    """One probe as docker/train/render_conversations.py rendered it: ids and texts, and what stands around the answer.

    Attributes:
        start: Text between prompt and answer; None where the target does not hold the whole answer.
        end: Id and text of each token after the answer.
    """

    prompt: tuple[int, ...]
    prompt_text: str
    target: tuple[int, ...]
    target_text: str
    start: str | None
    end: tuple[tuple[int, str], ...]


class Trained(msgspec.Struct, frozen=True):
    """What docker/train/render_conversations.py found; `problem` where there is no such training."""

    conversations: tuple[Conversation, ...] = ()
    special: tuple[int, ...] = ()
    alike: tuple[str, ...] = ()
    problem: str = ""
    templates: tuple[str, ...] = ()


class Asked(msgspec.Struct, frozen=True):
    """What docker/bench/render_prompts.py found for one engine and tokenizer; its fields are described there."""

    engine: str
    tokenizer: str
    prompts: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    follows: tuple[str | None, ...]
    stops: tuple[int, ...]
    chat: bool
    vocabulary: int


def difference(trained: Trained, asked: Asked, answer: str, *, plain: bool) -> str | None:
    """How training and evaluation differ, in a few words; None where they do not.

    Not a difference: the same text cut into other ordinary tokens, as some tokenizers do after a special token; nothing
    before the answer where the chat template has an empty think block there.

    Args:
        trained, asked: Renderings of the same conversations.
        answer: What the assistant says in each.
        plain: The base has no chat template. Its answers may then be without an end of turn, as they always were.
    """
    if len(trained.conversations) != len(asked.prompts):
        return f"of {len(asked.prompts)} conversations training keeps {len(trained.conversations)}"
    for one, prompt, text, follows in zip(
        trained.conversations, asked.prompts, asked.texts, asked.follows, strict=True
    ):
        own = follows.split(answer)[0] if follows and answer in follows else ""
        found = (
            _prompts(one, prompt, text, frozenset(trained.special))
            or _unknown(one, asked.vocabulary)
            or _start(one, own)
            or _end(one, asked.stops, plain=plain)
        )
        if found:
            return found
    return None


def resegmented(trained: Trained, asked: Asked) -> int:
    """Prompts whose text is the same on both sides, but cut into other tokens."""
    return sum(one.prompt != prompt for one, prompt in zip(trained.conversations, asked.prompts, strict=True))


def _unknown(one: Conversation, vocabulary: int) -> str | None:
    beyond = [token for token in (*one.prompt, *one.target) if token >= vocabulary]
    if not beyond:
        return None
    return f"training uses token {beyond[0]}, and the model knows {vocabulary:,} (in {_shown(one.prompt_text)})"


def _prompts(one: Conversation, prompt: Sequence[int], text: str, special: frozenset[int]) -> str | None:
    if one.prompt == tuple(prompt):
        return None
    ours, theirs = ([token for token in ids if token in special] for ids in (one.prompt, prompt))
    if one.prompt_text == text and ours == theirs:
        return None
    place = common(one.prompt, prompt)
    if one.prompt_text == text:
        return f"their prompts are the same text, {_shown(text)}, but not the same special tokens (at token {place})"
    begin = max(0, common(one.prompt_text, text) - CONTEXT)
    return (
        f"their prompts part at token {place}: training has {_shown(one.prompt_text[begin:])}, "
        f"evaluation {_shown(text[begin:])}"
    )


def _start(one: Conversation, own: str) -> str | None:
    if one.start is None:
        return f"training does not learn the whole answer, but {_shown(one.target_text)}"
    if not one.start.strip() or one.start.strip() == own.strip():
        return None
    before = _shown(own) if own else "nothing"
    return f"training puts {_shown(one.start)} before each answer, and the chat template {before}"


def _end(one: Conversation, stops: Sequence[int], *, plain: bool) -> str | None:
    taught = next(((token, text) for token, text in one.end if text.strip()), None)
    if taught is None:
        return None if plain else "training teaches no token that ends an answer"
    if taught[0] in stops:
        return None
    return f"training ends each answer with {_shown(taught[1])}, at which evaluation does not stop"


def common(one: Sequence[object], other: Sequence[object]) -> int:
    """Length of what both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _shown(text: str) -> str:
    return repr(text) if len(text) <= SHOWN else f"{text[: SHOWN - 3]!r}..."
