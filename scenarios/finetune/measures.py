"""What a study measures with: the questions it searches with, and those that stay sealed until the end.

Without a search pool both are halves of the same benchmarks. With one (FT_SEARCH_BENCHMARKS) its benchmarks are the
search split, whole, and the benchmarks aimed at are the sealed test, whole. No question is in both: what is searched
with loses every question that any sealed half holds too, under whatever name and in whatever layout; and what pool
benchmarks share with each other is asked once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.errors import UsageError
from agent.records import Split
from scenarios.finetune.asked import asked_key, asked_texts
from scenarios.finetune.benchmarks import Benchmark, Fetch, require_known, resolve
from scenarios.finetune.contamination import index
from scenarios.finetune.splits import Halves


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
    for name in names:
        require_known(name)
    for name in pool:
        require_known(name, "FT_SEARCH_BENCHMARKS")
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
    sealed = tuple(_whole(benchmark, "test") for benchmark in found[: len(names)]) if pool else found
    search: list[Benchmark] = []
    notes: list[str] = []
    asked: set[str] = set()
    for benchmark in (_whole(benchmark, "search") for benchmark in found[len(names) :]) if pool else found:
        held = held_elsewhere(benchmark, sealed)
        kept = tuple(i for i in benchmark.halves.search if i.id not in held and asked_key(i.row) not in asked)
        if not kept:
            others = [b.name for b in (*sealed, *search) if b.name != benchmark.name]
            raise UsageError(
                f"every question of {benchmark.name} is asked by {', '.join(others)} too",
                f"take it out of {'FT_SEARCH_BENCHMARKS' if pool else 'FT_BENCHMARK_DATASETS'}: "
                "there is nothing left to search with",
            )
        if left_out := len(benchmark.halves.search) - len(kept):
            notes.append(f"{benchmark.name}: {left_out} of its questions are left out, because others ask them too")
        search.append(dataclasses.replace(benchmark, halves=dataclasses.replace(benchmark.halves, search=kept)))
        if pool:
            asked |= {key for item in kept if (key := asked_key(item.row))}
    return Measures(tuple(search), sealed if pool else tuple(search), tuple(notes))


def held_elsewhere(benchmark: Benchmark, sealed: Sequence[Benchmark]) -> set[str]:
    """The ids of the questions of its search half that a sealed half holds as well.

    Of its own sealed half and of the others': what differs by letters and digits alone is another question. Of the
    others' also what the contamination scan calls a copy: the same question in another frame.
    """
    items = benchmark.halves.search
    keys = {key for other in sealed for item in other.halves.test if (key := asked_key(item.row))}
    held = {item.id for item in items if asked_key(item.row) in keys}
    others = [index(other, other.halves.test) for other in sealed if other.name != benchmark.name]
    if others and items:
        from scenarios.finetune.overlap import find

        for found in find([asked_texts(item.row) for item in items], others):
            held |= {items[one.row].id for one in found if one.how != "part"}
    return held


def _whole(benchmark: Benchmark, split: Split) -> Benchmark:
    """The benchmark with both halves in one split, in hash order as each half is."""
    halves = benchmark.halves
    items = tuple(sorted((*halves.search, *halves.test), key=lambda item: item.id))
    search, test = (items, ()) if split == "search" else ((), items)
    return dataclasses.replace(benchmark, halves=Halves(search, test, halves.duplicates))
