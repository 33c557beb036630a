"""Chooses a data set of the workspace where none is named: the one whose rows are worded most like the benchmarks.

Compared are centroids of tf-idf vectors: of a sample of rows, and of the benchmark's description, answer format and the
questions of its search half. A card's tags or a name that say "math" or "code" count a little too. The sealed half is
looked at for one thing alone, whether a data set is a copy of the benchmark, and only that is said.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from agent import hub
from agent.errors import UsageError
from scenarios.finetune import data, data_files
from scenarios.finetune.asked import asked_texts, strings
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.cards import card
from scenarios.finetune.contamination import index
from scenarios.finetune.files import MARKER
from scenarios.finetune.registry import Skill, registered, skill_of, skills_in
from scenarios.finetune.rows import SUFFIXES, read, suffix

READ, SAMPLED = 5000, 200
"""Rows read of a data set, and how many of them are looked at, evenly spaced."""
LONGEST = 4000
"""Characters of a row that are looked at."""
TAGGED = 0.1
"""What a tag that names the benchmarks' subject is worth; likenesses of related texts are 0.2 to 0.8."""
PARTS = {"data", *data_files.PREFERRED, *data_files.TRAIN, *data_files.HELD_OUT}
"""Directories that are parts of a data set."""
WORD = re.compile(r"\d+|[\u2e80-\u9fff\uac00-\ud7a3]|[^\W\d_\u2e80-\u9fff\uac00-\ud7a3]{2,}")

T = TypeVar("T")
Text = frozenset[str]
"""The different words of a row."""


@dataclass(frozen=True, kw_only=True)
class Relevant:
    """The chosen data set, why, and one line on each of the others."""

    name: str
    path: Path
    reason: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class _Read:
    name: str
    path: Path
    rows: tuple[str, ...]

    @property
    def texts(self) -> list[Text]:
        return [words(row) for row in self.rows]


def directories(root: Path) -> dict[str, Path]:
    """The directories that may be data sets, by name: `<name>/` and `<owner>/<name>/`; no demo's, nothing hidden."""
    found: dict[str, Path] = {}
    for top in _below(root):
        inside = list(_below(top))
        if _is_data_set(top) or any(path.name.lower() in PARTS for path in inside):
            found[top.name] = top
        else:
            found |= {f"{top.name}/{path.name}": path for path in inside if not (path / MARKER).exists()}
    return found


def choose(root: Path, benchmarks: Sequence[Benchmark], columns: Mapping[str, str] | None = None) -> Relevant:
    """The most relevant of the data sets in `root`; the only one whatever it holds, unless it is a benchmark's own.

    Args:
        benchmarks: All of the study's.
        columns: Role -> column, as `data.recognise` takes it; data sets without these columns do not count.

    Raises:
        UsageError: None can be chosen; the message says why.
    """
    usable: list[_Read] = []
    passed: list[str] = []
    for name, path in directories(root).items():
        try:
            rows = _sample(path, columns)
            why_not = _source_of(name, benchmarks) or _copy_of(rows, benchmarks)
        except UsageError as error:
            why_not = f"not usable: {error.message}"
        if why_not:
            passed.append(f"{name}: {why_not}")
        else:
            usable.append(_Read(name=name, path=path, rows=rows))
    if not usable:
        raise UsageError(
            f"nothing in {root} can be chosen as the data set: {'; '.join(passed)}",
            "name a data set with --dataset, or lay one into that directory",
        )
    if len(usable) == 1:
        (only,) = usable
        reason = f"the only one in {root}" + (" that can be chosen" if passed else "")
        return Relevant(name=only.name, path=only.path, reason=reason, others=tuple(passed))
    return _most_relevant(usable, benchmarks, root, passed)


def _most_relevant(
    usable: Sequence[_Read], benchmarks: Sequence[Benchmark], root: Path, passed: Sequence[str]
) -> Relevant:
    aims = ", ".join(one.name for one in benchmarks)
    skills = {skill_of(one.name) for one in benchmarks}
    wording = likeness([one.texts for one in usable], [_texts_of(one) for one in benchmarks])
    ranked: list[tuple[float, str, str, Path]] = []
    for one, alike in zip(usable, wording, strict=True):
        tags = sorted(skills & _tags(one))
        said = f"wording {alike:.2f}" + (f", named or tagged {' and '.join(tags)}" if tags else "")
        ranked.append((-round(alike, 2) - TAGGED * bool(tags), one.name, said, one.path))
    (score, name, said, path), *others = sorted(ranked)
    if not score:
        raise UsageError(
            f"no data set in {root} has a word in common with {aims}",
            f"name one with --dataset: {', '.join(one.name for one in usable)}",
        )
    return Relevant(
        name=name,
        path=path,
        reason=f"the most like {aims} of {len(usable)} in {root} ({said})",
        others=(*(f"{other}: {how}" for _, other, how, _ in others), *passed),
    )


# Likeness


def words(text: str) -> Text:
    """The different words of a text: letters whatever their case, any number as one word, Han and Hangul by letter."""
    found = WORD.findall(text[:LONGEST].casefold())
    return frozenset("0" if word.isdigit() else word for word in found)


def likeness(data_sets: Sequence[Sequence[Text]], aims: Sequence[Sequence[Text]]) -> list[float]:
    """How alike each data set is to the aims, from 0 to 1: the mean cosine between tf-idf centroids."""
    every = [text for texts in (*data_sets, *aims) for text in texts]
    held = Counter(word for text in every for word in text)
    weight = {word: math.log((1 + len(every)) / count) for word, count in held.items()}
    centroids = [_centroid(texts, weight) for texts in aims]
    return [
        sum(_cosine(centroid, one) for one in centroids) / max(1, len(centroids))
        for centroid in (_centroid(texts, weight) for texts in data_sets)
    ]


def _centroid(texts: Sequence[Text], weight: Mapping[str, float]) -> dict[str, float]:
    counts = Counter(word for text in texts for word in text)
    return {word: weight[word] * count / len(texts) for word, count in counts.items()}


def _cosine(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    product = math.fsum(value * other[word] for word, value in one.items() if word in other)
    lengths = math.sqrt(math.fsum(v * v for v in one.values()) * math.fsum(v * v for v in other.values()))
    return product / lengths if lengths else 0.0


# What is compared


def _texts_of(benchmark: Benchmark) -> list[Text]:
    """Its description and answer format, and what its search half asks (nothing of one that is sealed whole)."""
    asked = ("\n".join(asked_texts(item.row)) for item in _evenly(benchmark.halves.search))
    return [words(text) for text in (f"{benchmark.description} {benchmark.answer_format}", *asked)]


def _evenly(items: Sequence[T]) -> Sequence[T]:
    return items[:: max(1, len(items) // SAMPLED)][:SAMPLED]


def _sample(path: Path, columns: Mapping[str, str] | None) -> tuple[str, ...]:
    """Rows as texts; UsageError where none can be trained on."""
    dataset = data.recognise(path, columns)
    wanted = tuple(dataset.columns.values())
    found = chain.from_iterable(read(Path(file), wanted) for file in dataset.files)
    rows = _evenly(list(islice(found, READ)))
    kept = [canonical for row in rows if (canonical := data.canonical(row, dataset.columns)) is not None]
    if not kept:
        raise UsageError(f"{path}: no row has both a prompt and a response")
    return tuple("\n".join(strings(row)) for row in kept)


def _source_of(name: str, benchmarks: Sequence[Benchmark]) -> str:
    """Why a data set that a benchmark of the study is downloaded from is not trained on unasked."""
    for one in benchmarks:
        entry = registered(one.name)
        if entry is not None and entry.source is not None and entry.source.dataset == name:
            return f"the benchmark {one.name} is taken from it"
    return ""


def _copy_of(rows: Sequence[str], benchmarks: Sequence[Benchmark]) -> str:
    """Why a data set most of whose rows hold a benchmark's questions is not chosen; of both halves."""
    from scenarios.finetune.overlap import find

    for benchmark, held in zip(benchmarks, find([[row] for row in rows], [index(b) for b in benchmarks]), strict=True):
        share = len({one.row for one in held}) / len(rows)
        if share > 0.5:
            return f"a copy of the benchmark {benchmark.name} ({share:.0%} of its rows hold questions)"
    return ""


def _tags(one: _Read) -> set[Skill]:
    return {skill for words in (one.name, *card(one.path).tags) for skill in skills_in(words)}


# Directories


def _below(directory: Path) -> Iterator[Path]:
    if directory.is_dir():
        yield from (path for path in sorted(directory.iterdir()) if path.is_dir() and path.name[0] not in "._")


def _is_data_set(directory: Path) -> bool:
    """Whether ftloop downloaded it, or data files lie in it."""
    return (directory / hub.RECORD).exists() or any(
        path.is_file() and suffix(path) in SUFFIXES for path in directory.iterdir()
    )
