"""Renders the prompts, which are files: `prompts/<name>.md.j2`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from agent.resources import resource

if TYPE_CHECKING:
    from jinja2 import Environment


def render(name: str, **values: object) -> str:
    """The prompt `name` with these values; a value that the prompt names and nobody gave is an error.

    Raises: jinja2.UndefinedError.
    """
    return str(_environment().get_template(f"{name}.md.j2").render(**values)).strip() + "\n"


@cache
def _environment() -> Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(resource("prompts")),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - prompts are plain text, no HTML
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data"] = fence
    return environment


def fence(text: str, label: str) -> str:
    """`text` as a block of data that it cannot close by itself: for everything that a program or a model wrote."""
    inside = printable(text).replace("<data", "<\\data").replace("</data", "<\\/data").strip()
    return f'<data of="{label}">\n{inside}\n</data>'


def printable(text: str) -> str:
    """`text` with its lines, but without terminal escapes and other control characters."""
    if text.replace("\n", "").replace("\t", "").isprintable():  # nearly every text, and a hundred times faster
        return text
    return "".join(char if char.isprintable() or char in "\n\t" else " " for char in text)


def one_line(text: str, limit: int) -> str:
    """At most `limit` characters of `text` without line breaks: nothing in it can pass for a line of ours."""
    return clip(" ".join(printable(text).split()), limit)


def clip(text: str, limit: int, *, keep_end: bool = False) -> str:
    """At most `limit` characters of `text`; what was left out is marked."""
    if len(text) <= limit:
        return text
    kept = text[-limit:] if keep_end else text[:limit]
    left_out = f"[{len(text) - limit:,} characters left out]"
    return f"{left_out} {kept}" if keep_end else f"{kept} {left_out}"
