"""Word problems that nobody wrote: as much alike as those of one benchmark are, and never twice the same."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

SYLLABLES = "ba chi do fe gu ha jo ki lu ma ni po ra sa te vi wo ya zu len mar sol tim ron".split()  # noqa: SIM905
VERBS = "carries collects paints trades repairs counts sorts buries lends borrows wraps weighs sells hides".split()  # noqa: SIM905
SENTENCES = (
    "{who} {verb} {many} {adjective} {thing} at the {place} with {other}, who has only {some} {adjective} {thing}.",
    "On the way to the {place} {other} {verb} {some} more {thing} and gives every third of them to {who}.",
    "In the {time} the {adjective} {thing} cost {some} dollars each, while a {adjective} box for the {thing} is free.",
    "{who} drops {some} of the {thing} near the {place} and {other} finds {some} {adjective} ones in the {time}.",
    "Before the {time}, {other} {verb} twice as many {adjective} {thing} as there are {thing} in the {place}.",
    "There are {many} {thing} in the {place}, and in the {time} somebody {verb} half of the {adjective} ones.",
    "A {adjective} cart can hold {many} {thing} or {some} {adjective} {thing}, and {who} {verb} both kinds.",
)
QUESTIONS = (
    "How many {thing} are left?",
    "How many {adjective} {thing} does {who} have after the {time}?",
    "How much money does {who} need for the {thing} from the {place}?",
    "What is the number of {thing} that {who} can give to {other}?",
)


def problems(seed: int) -> Iterator[tuple[str, str]]:
    """Endless questions with worked answers; always the same for a seed. Their nouns are made up, their frames not."""
    draw = random.Random(seed)
    while True:
        words: dict[str, str] = {}

        def word(match: re.Match[str], words: dict[str, str] = words) -> str:
            kind = match[1]
            if kind in ("many", "some"):
                return str(draw.randint(2, 19) * (40 if kind == "many" else 1))
            if kind == "verb":
                return draw.choice(VERBS)
            return words.setdefault(kind, "".join(draw.choices(SYLLABLES, k=draw.randint(2, 4))))

        patterns = [*draw.sample(SENTENCES, draw.randint(2, 3)), draw.choice(QUESTIONS)]
        question = " ".join(re.sub(r"\{(\w+)\}", word, pattern) for pattern in patterns)
        many, some = draw.randint(20, 900), draw.randint(2, 19)
        yield question, f"{words['thing']}: {many} - {some} = {many - some}.\n#### {many - some}"
