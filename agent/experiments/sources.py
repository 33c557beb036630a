"""Where arguments come from: the command line, a YAML file, the defaults. The first that says something wins.

The environment says nothing here: what defines a training must not depend on the shell that it was started from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from agent.errors import UsageError
from agent.experiments.fields import Field, nearest, read_scalar, read_value, require_parts

CONFIG = "config"
COMMAND_LINE, DEFAULT = "command line", "default"


@dataclass(frozen=True)
class Values:
    """Every argument with its value, and where those that were given came from ("train.yaml:3", "command line")."""

    values: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)

    def origin(self, name: str) -> str:
        """Where a value came from."""
        return self.origins.get(name, DEFAULT)

    def part(self, fields: Mapping[str, Field], *parts: str) -> dict[str, Any]:
        """The arguments of some parts that are not unset."""
        return {name: value for name, value in self.values.items() if fields[name].part in parts and value is not None}


@dataclass
class _Given:
    """What one source said: values of whole keys, and of keys below a dotted one."""

    whole: dict[str, tuple[Any, str]] = field(default_factory=dict)
    below: dict[str, list[tuple[list[str], Any]]] = field(default_factory=dict)


def read(
    fields: Mapping[str, Field], argv: Sequence[str], cwd: Path, parser: argparse.ArgumentParser | None = None
) -> Values:
    """All arguments of one call; prints and exits where --help is asked for.

    Args:
        fields: By name, as `agent.experiments.arguments.fields` has them.
        argv: The words after `ftloop train`.
        cwd: Where a relative --config starts from.
        parser: Made by `make_parser`; None for one without a description.

    Raises:
        UsageError: An unknown key, a value of the wrong type, or a required argument that is missing.
    """
    config, typed = _command_line(fields, argv, parser or make_parser(fields))
    file = _yaml(fields, cwd / Path(config).expanduser(), config) if config else _Given()
    values: dict[str, Any] = {name: one.default for name, one in fields.items()}
    origins: dict[str, str] = {}
    for given, is_text in ((file, False), (typed, True)):
        for name, (value, origin) in given.whole.items():
            values[name], origins[name] = _convert(fields[name], value, origin, typed=not is_text), origin
        for name, cells in given.below.items():
            values[name], origins[name] = _below(fields[name], values[name], cells), COMMAND_LINE
    missing = [name for name, one in fields.items() if one.required and not str(values[name] or "").strip()]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} must be given", f"on the command line (--{missing[0]} ...) or in --config FILE.yaml"
        )
    return Values(values, origins)


def make_parser(fields: Mapping[str, Field], **described: Any) -> argparse.ArgumentParser:
    """The parser of these arguments, whose --help shows each with its default; `described` goes to argparse."""
    parser = _Parser(fields, allow_abbrev=False, usage="%(prog)s [--config FILE.yaml] [--KEY VALUE ...]", **described)
    parser.add_argument("--config", metavar="FILE", help="YAML file with what differs from the defaults")
    groups = {
        part: parser.add_argument_group(title)
        for part, title in (
            ("run", "the run"),
            ("call", "this call (kept in no snapshot)"),
            ("recipe", "the recipe: LLaMA-Factory's keys that an agent sets too (unset: its default, or ftloop's)"),
            ("trainer", "the trainer: LLaMA-Factory's keys that only people set"),
        )
    }
    for one in fields.values():
        switch: dict[str, Any] = {"nargs": "?", "const": "true"} if "bool" in one.types else {}
        groups[one.part].add_argument(
            f"--{one.name}",
            metavar=_metavar(one),
            default=argparse.SUPPRESS,
            help=_help(one).replace("%", "%%"),
            **({"nargs": "+"} if "list" in one.types else switch),
        )
    return parser


class _Parser(argparse.ArgumentParser):
    """Raises a UsageError, with the nearest name, instead of printing usage."""

    def __init__(self, fields: Mapping[str, Field], **described: Any) -> None:
        super().__init__(**({"formatter_class": _HelpFormatter} | described))
        self._fields = fields

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"command line: {message}", f"{self.prog} --help lists all arguments")

    def refuse(self, word: str) -> NoReturn:
        """UsageError for a word that no argument took."""
        name = word.lstrip("-").split("=")[0].split(".")[0]
        if not word.startswith("-") and "=" not in word:
            raise UsageError(f"command line: {word!r} belongs to no argument", "write --key value, or key=value")
        raise unknown(name, self._fields, "command line")


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=34, width=118)


def unknown(name: str, fields: Mapping[str, Field], where: str) -> UsageError:
    """The error for a name that is no argument."""
    if name.startswith("FT_"):
        return UsageError(f"{where}: {name} is a setting of the machine", "set it in the environment or in .env")
    rarer = [known for known, one in fields.items() if one.part == "trainer"]
    near = nearest(name, [known for known in fields if known not in rarer], rarer)
    return UsageError(
        f"{where}: there is no argument {name!r}", f"did you mean {near}?" if near else "--help lists all of them"
    )


def _command_line(
    fields: Mapping[str, Field], argv: Sequence[str], parser: argparse.ArgumentParser
) -> tuple[str | None, _Given]:
    """The file named with --config, and what the command line says itself."""
    given, words = _Given(), []
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        key, equals, value = word.partition("=")
        name = key.lstrip("-").replace("-", "_")
        if word == "--" or not (word.startswith("--") or (equals and name.split(".")[0] in fields)):
            words.append(word)
        elif "." not in key:
            words.append(f"--{name}{equals}{value}")
        else:
            head, *path = key.lstrip("-").split(".")
            if (head := head.replace("-", "_")) not in fields:
                raise unknown(head, fields, COMMAND_LINE)
            if not equals and not waiting:
                raise UsageError(f"command line: {key} has no value", f"write {key} VALUE or {key}=VALUE")
            cell = value if equals else waiting.pop(0)
            given.below.setdefault(head, []).append((path, read_scalar(cell)))
    found, rest = parser.parse_known_args(words)
    if rest and isinstance(parser, _Parser):
        parser.refuse(next((word for word in rest if word.startswith("-")), rest[0]))
    parsed = vars(found)
    config = parsed.pop(CONFIG, None)
    for name, text in parsed.items():
        given.whole[name] = (",".join(text) if isinstance(text, list) else text, COMMAND_LINE)
    return config, given


def _yaml(fields: Mapping[str, Field], path: Path, shown: str) -> _Given:
    """What a YAML file says, with the line of each key."""
    import yaml

    from agent.experiments import yaml_text

    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UsageError(f"--config {shown} cannot be read: {reason}", f"check the file {path}") from error
    try:
        node, values = yaml_text.parse(text)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{shown}:{mark.line + 1}" if mark else shown
        raise UsageError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}", "correct it") from None
    if node is None or values is None:
        return _Given()
    if not isinstance(node, yaml.MappingNode):
        raise UsageError(f"{shown}: must hold one mapping of arguments", "write one `key: value` a line")
    given = _Given()
    for key_node, _ in node.value:
        name, where = str(key_node.value), f"{shown}:{key_node.start_mark.line + 1}"
        if name not in fields:
            raise unknown(name, fields, where)
        if name in given.whole:
            raise UsageError(f"{where}: {name} is given twice (also at {given.whole[name][1]})", "keep one of them")
        given.whole[name] = (values[name], where)
    return given


def _convert(one: Field, value: Any, origin: str, *, typed: bool) -> Any:
    try:
        return read_value(one, value, typed=typed)
    except ValueError as error:
        raise UsageError(f"{origin}: {one.name}: {error}", f"{one.name}: {one.help}") from None


def _below(one: Field, current: Any, cells: Sequence[tuple[list[str], Any]]) -> dict[str, Any]:
    """A mapping with the cells that dotted keys name laid into it."""
    if "dict" not in one.types:
        name = ".".join([one.name, *cells[0][0]])
        raise UsageError(f"command line: {name}: {one.name} is no mapping", f"{one.name}: {one.help}")
    found: dict[str, Any] = dict(current) if isinstance(current, Mapping) else {}
    for path, value in cells:
        inner = found
        for step in path[:-1]:
            inner[step] = dict(inner[step]) if isinstance(inner.get(step), Mapping) else {}
            inner = inner[step]
        inner[path[-1]] = value
    try:
        require_parts(one, found)
    except ValueError as error:
        raise UsageError(f"command line: {one.name}: {error}", f"{one.name}: {one.help}") from None
    return found


def _metavar(one: Field) -> str:
    if one.choices and all(isinstance(choice, str) for choice in one.choices) and len(one.choices) <= 4:
        return "|".join(map(str, one.choices))
    return next(name for name in one.types if name != "null").upper()


def _help(one: Field) -> str:
    if one.required:
        return f"{one.help} (required)"
    empty = one.default is None or one.default in ([], "")
    return (
        one.help
        if empty
        else f"{one.help} (default: {str(one.default).lower() if isinstance(one.default, bool) else one.default})"
    )


def show(values: Values, stream: Any = None) -> None:
    """Print every argument that is not unset, and where it comes from."""
    width = max(map(len, values.values))
    for name, value in values.values.items():
        if value is not None:
            print(f"{name:<{width}}  {value!r}  ({values.origin(name)})", file=stream or sys.stdout)
