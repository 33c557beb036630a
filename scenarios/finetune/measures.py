"""What a study measures with: the questions it searches with, and those that stay sealed until the end.

Without a search pool both are halves of the same benchmarks. With one (FT_SEARCH_BENCHMARKS) its benchmarks are the
search split, whole, and the benchmarks aimed at are the sealed test, whole. No question is in both: what the pool
shares with them, or its benchmarks with each other, it loses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import UsageError
from agent.records import Split
from scenarios.finetune.benchmarks import Benchmark, Fetch, require_known, resolve
from scenarios.finetune.contamination import asked_text
from scenarios.finetune.splits import Halves, Item


@dataclass(frozen=True)
class Measures:
    """The benchmarks of a study.

    Attributes:
        search: What candidates are compared on. sealed: what is opened at the end; the same ones without a pool.
        notes: What people should know about them.
    """

    search: tuple[Benchmark, ...]
    sealed: tuple[Benchmark, ...]
    notes: tuple[str, ...] = ()

    @property
    def pooled(self) -> bool:
        """Whether a pool stands in for the search halves."""
        return self.search != self.sealed

    @property
    def names(self) -> str:
        """ "aime25", "aime24, math to search with; aime25 sealed"."""
        sealed = ", ".join(benchmark.name for benchmark in self.sealed)
        search = ", ".join(benchmark.name for benchmark in self.search)
        return f"{search} to search with; {sealed} sealed" if self.pooled else sealed

    @property
    def all(self) -> tuple[Benchmark, ...]:
        """Every benchmark once."""
        return (*self.search, *self.sealed) if self.pooled else self.sealed


def require_names(names: Sequence[str], pool: Sequence[str]) -> None:
    """UsageError for a name that no benchmark can have, or one in both lists; reads no data."""
    for name in (*names, *pool):
        require_known(name)
    if both := [name for name in pool if name in names]:
        raise UsageError(
            f"{', '.join(both)} stands in FT_SEARCH_BENCHMARKS and in FT_BENCHMARK_DATASETS",
            "search with other benchmarks than the one aimed at, or leave FT_SEARCH_BENCHMARKS out to halve that one",
        )


def measures(names: Sequence[str], pool: Sequence[str], root: Path, fetch: Fetch, demo: Path | None = None) -> Measures:
    """The benchmarks of these names, with their data read (`benchmarks.resolve`), split into search and sealed test.

    Args:
        names: What is aimed at. pool: what to search with instead; empty for a half of each.

    Raises:
        UsageError: As `resolve`; a benchmark in both lists, or a pool with no question of its own.
    """
    require_names(names, pool)
    found = resolve((*names, *pool), root, fetch, demo)
    if not pool:
        return Measures(found, found)
    sealed = tuple(_whole(benchmark, "test") for benchmark in found[: len(names)])
    taken = {_asked(item) for benchmark in sealed for item in benchmark.halves.test}
    search: list[Benchmark] = []
    notes: list[str] = []
    for benchmark in found[len(names) :]:
        kept, shared = _without(benchmark, taken)
        if not kept.halves.search:
            raise UsageError(
                f"every question of {benchmark.name} is asked by {', '.join(b.name for b in (*sealed, *search))} too",
                "take it out of FT_SEARCH_BENCHMARKS: there is nothing left to search with",
            )
        if shared:
            notes.append(f"{benchmark.name}: {shared} of its questions are left out, because others ask them too")
        search.append(kept)
        taken |= {_asked(item) for item in kept.halves.search}
    return Measures(tuple(search), sealed, tuple(notes))


def _whole(benchmark: Benchmark, split: Split) -> Benchmark:
    """The benchmark with both halves in one split, in hash order as each half is."""
    halves = benchmark.halves
    items = tuple(sorted((*halves.search, *halves.test), key=lambda item: item.id))
    search, test = (items, ()) if split == "search" else ((), items)
    return dataclasses.replace(benchmark, halves=Halves(search, test, halves.duplicates))


def _without(benchmark: Benchmark, taken: Collection[str]) -> tuple[Benchmark, int]:
    """The whole benchmark as a search split, without these questions; and how many that were."""
    whole = _whole(benchmark, "search")
    kept = tuple(item for item in whole.halves.search if _asked(item) not in taken)
    shared = len(whole.halves.search) - len(kept)
    return dataclasses.replace(whole, halves=Halves(kept, (), whole.halves.duplicates)), shared


def _asked(item: Item) -> str:
    return asked_text(item.row) or item.id
