"""What an agent is told about a data set: columns, lengths, duplicates, scripts and a few rows; bounded and quick.

Rows and duplicates are counted over all rows (duplicates over the first million); everything else is taken from a
sample that a stated seed draws.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from scenarios.finetune import cells
from scenarios.finetune.rows import Row

SAMPLE = 10_000
COUNTED = 1_000_000
"""Rows whose duplicates are counted; their digests take about 100 MB."""
MOST_COLUMNS = 40
SHOWN = 3
SHOWN_CELL = 300  # characters of a cell in a shown row
NAME = 60  # characters of a column's name
PERCENTILES = (5, 50, 95, 100)


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column, as the sample shows it.

    Attributes:
        name: Its name. kind: What most of its cells are: "text", "number", "list", "object", "true/false", "empty".
        filled: Share of the rows where it says something.
        tokens: Approximate length in tokens at `PERCENTILES` of the rows that say something.
        values: Number of different values in the sample.
    """

    name: str
    kind: str
    filled: float
    tokens: tuple[int, ...]
    values: int


class DataStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A data set in figures.

    Attributes:
        rows: All of them. sampled: How many the columns' figures are from. seed: What drew the sample.
        columns: At most `MOST_COLUMNS`. tokens: Length of whole rows at `PERCENTILES`.
        duplicates: Rows whose prompt (without roles: whose whole content) an earlier row has. counted: Of how many.
        scripts: Script -> share of the sampled rows.
        samples: A few rows, as JSON, cells cut.
    """

    rows: int
    sampled: int
    seed: int
    columns: tuple[Column, ...]
    tokens: tuple[int, ...]
    duplicates: int
    counted: int
    scripts: dict[str, float]
    samples: tuple[str, ...]

    def for_agent(self) -> str:
        """The figures as text; the rows in it were written by nobody whom one may trust."""
        if not self.rows:
            return "no rows"
        heads = ", ".join("max" if percent == 100 else f"p{percent}" for percent in PERCENTILES)
        lines = [
            f"{self.rows:,} rows; figures from {self.sampled:,} of them (seed {self.seed}); tokens are approximate",
            f"tokens a row ({heads}): {_joined(self.tokens)}",
            f"duplicates: {self.duplicates:,} of {self.counted:,} rows ({self.duplicates / max(1, self.counted):.1%})",
            "scripts: " + ", ".join(f"{name} {share:.0%}" for name, share in self.scripts.items()),
        ]
        for column in self.columns:
            length = f", tokens ({heads}): {_joined(column.tokens)}" if column.tokens else ""
            lines.append(
                f"column {json.dumps(column.name[:NAME], ensure_ascii=False)}: {column.kind}, "
                f"{column.filled:.0%} filled, {column.values:,} different{length}"
            )
        return "\n".join([*lines, *(f"row: {sample}" for sample in self.samples)])


def describe(
    rows: Iterable[Row],
    columns: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    sample: int = SAMPLE,
    shown: int = SHOWN,
    bytes_per_token: float = cells.BYTES_PER_TOKEN,
) -> DataStatistics:
    """The statistics of a data set, read once.

    Args:
        rows: All of them. columns: Role -> column, where that is known: duplicates are then those of the prompt.
        seed: Of the sample. sample: Its size. shown: Rows to show.
        bytes_per_token: How lengths are counted; see `cells.bytes_per_token`.
    """
    roles = columns or {}
    prompt = [roles[role] for role in ("prompt", "query", "messages") if role in roles] or None
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    drawn: list[tuple[int, Row]] = []
    seen: set[int] = set()
    count, due, weight = 0, sample, _shrink(draw, sample)
    for row in rows:
        if count < COUNTED:
            seen.add(_key(row, prompt))
        if count < sample:
            drawn.append((count, row))
            if count == sample - 1:
                due = count + _gap(draw, weight)
        elif count == due:  # algorithm L (Li 1994): the gap to the next drawn row is drawn, not each row's fate
            drawn[draw.randrange(sample)] = (count, row)
            weight *= _shrink(draw, sample)
            due = count + _gap(draw, weight)
        count += 1
    drawn.sort(key=lambda entry: entry[0])
    return _figures([row for _, row in drawn], count, len(seen), seed, shown, bytes_per_token)


def percentiles(numbers: Iterable[int]) -> tuple[int, ...]:
    """The values at `PERCENTILES`, by nearest rank; empty where there are no numbers."""
    ordered = sorted(numbers)
    return tuple(ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)] for percent in PERCENTILES if ordered)


def shares(names: Iterable[str]) -> dict[str, float]:
    """Name -> share, the most frequent first."""
    counts = Counter(names)
    return {name: count / counts.total() for name, count in counts.most_common()}


def shown_row(row: Row, longest: int = SHOWN_CELL) -> str:
    """A row as one line of JSON; long cells are cut, and say by how much."""
    cut = {}
    for name, cell in list(row.items())[:MOST_COLUMNS]:
        said = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
        whole = len(said) <= longest
        cut[str(name)[:NAME]] = cell if whole else f"{said[:longest]}... ({len(said) - longest:,} characters more)"
    return json.dumps(cut, ensure_ascii=False, default=str).encode("utf-8", "replace").decode()


def _figures(
    sampled: Sequence[Row], count: int, different: int, seed: int, shown: int, per_token: float
) -> DataStatistics:
    names = list(dict.fromkeys(str(name) for row in sampled for name in row))[:MOST_COLUMNS]
    whole = [" ".join(filter(None, map(cells.text, row.values()))) for row in sampled]
    return DataStatistics(
        rows=count,
        sampled=len(sampled),
        seed=seed,
        columns=tuple(_column(name, sampled, per_token) for name in names),
        tokens=percentiles(cells.tokens(said, per_token) for said in whole),
        duplicates=min(count, COUNTED) - different,
        counted=min(count, COUNTED),
        scripts=shares(map(cells.script, whole)),
        samples=tuple(shown_row(row) for row in sampled[:: max(1, len(sampled) // max(1, shown))][:shown]),
    )


def _column(name: str, sampled: Sequence[Row], per_token: float) -> Column:
    said = [found for row in sampled if (found := cells.text(row.get(name)))]
    kinds = Counter(_kind(row.get(name)) for row in sampled)
    del kinds["empty"]
    return Column(
        name=name,
        kind=max(kinds, key=lambda kind: kinds[kind], default="empty"),
        filled=sum(kinds.values()) / len(sampled),
        tokens=percentiles(cells.tokens(text, per_token) for text in said),
        values=len(set(said)),
    )


def _kind(cell: object) -> str:
    if cell is None or cell == "":
        return "empty"
    if isinstance(cell, bool):
        return "true/false"
    kinds = ((str, "text"), (int | float, "number"), (list | tuple, "list"), (dict, "object"))
    return next((word for kind, word in kinds if isinstance(cell, kind)), "other")


def _key(row: Row, prompt: Sequence[str] | None) -> int:
    if prompt is None:
        said = "\0".join(cells.text(cell) for cell in row.values())
    else:
        said = "\0".join(cells.text(row.get(name)) for name in prompt)
    return hash(cells.normalised(said))  # 64 bits; Python salts it, so nobody can make two texts meet


def _shrink(draw: random.Random, sample: int) -> float:
    return math.exp(math.log(1 - draw.random()) / max(1, sample))


def _gap(draw: random.Random, weight: float) -> int:
    return math.floor(math.log(1 - draw.random()) / math.log1p(-min(weight, 1 - 1e-12))) + 1


def _joined(numbers: Iterable[int]) -> str:
    return ", ".join(f"{number:,}" for number in numbers)
