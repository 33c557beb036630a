"""What the language model's tools may look up of a study: training rows, their columns, and the logs of some jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec

from agent.prompts import one_line
from agent.propose.tools import LogStage
from agent.run import logs
from agent.store import StudyPaths
from scenarios.finetune import cells, data_statistics
from scenarios.finetune.rows import Row, read

SAMPLE = 50  # rows whose texts say how many bytes a token has
MOST_VALUES, VALUE = 8, 80  # frequent values of a column that are told, characters of each
LOGS: dict[LogStage, tuple[str, ...]] = {
    "data": tuple(f"script-{number}/{run}/job.log" for number in range(9, 0, -1) for run in ("full", "debug")),
    "mini-run": ("train.log",),
    "train": ("train.log",),
}
"""Where a stage's jobs write; the first that exists is read. No stage that sees a benchmark is among them."""


@dataclass(frozen=True)
class StudyLibrary:
    """Implements `agent.propose.tools.Library`.

    Attributes:
        file: The study's training rows.
        held: Those, from 1, that hold a benchmark's question; None where nobody knows which.
        tokenizer: The model's `tokenizer.json`, by which lengths are counted.
        whole: Lays out the data set as scripts get it, when first asked: all columns, no row that holds a question.
        cleaned: A text without lines that hold a benchmark's question; a script may print what a model knew by heart.
    """

    file: Path
    held: Set[int] | None
    paths: StudyPaths
    tokenizer: Path
    whole: Callable[[], Path] | None = None
    cleaned: Callable[[str], str] = str

    def rows(self, start: int, count: int) -> Sequence[str]:
        """Rows as JSON, numbered among those that may be shown: what is left out leaves no gap."""
        wanted = islice(self._given(), start - 1, start - 1 + count)
        return [f"{number}: {data_statistics.shown_row(row, 1_000)}" for number, row in enumerate(wanted, start)]

    def column(self, name: str) -> str:
        """Its figures, and its most frequent values where rows share some."""
        found = self._describe(self._given, shown=0)
        column = next((column for column in found.columns if column.name == name), None)
        if column is None:
            names = ", ".join(one.name for one in found.columns)
            raise ValueError(f"there is no column {name[:80]!r}; there is {names}")
        said = (cells.text(row.get(name)) for row in islice(self._given(), data_statistics.SAMPLE))
        counts = Counter(one_line(text, VALUE) for text in said if text)
        frequent = [f"{count:,} rows: {text}" for text, count in counts.most_common(MOST_VALUES) if count > 1]
        figures = msgspec.structs.replace(found, columns=(column,)).for_agent()
        return "\n".join([figures, "most frequent, shortened:" if frequent else "no value twice", *frequent])

    def log(self, trial: int, stage: LogStage) -> str:
        """The end of what the stage's job printed."""
        directory = self.paths.stage(trial, stage)
        said = next((said for name in LOGS[stage] if (said := logs.tail(directory / name, 80, 6_000))), "")
        return self.cleaned(said) if said else ""

    def statistics(self, shown: int = data_statistics.SHOWN) -> data_statistics.DataStatistics:
        """Figures of what is trained on, as far as it may be shown."""
        return self._describe(self.shown, shown)

    def shown(self) -> Iterator[Row]:
        """What is trained on, without rows that hold a benchmark's question; none where nobody knows which do."""
        if self.held is None or not self.file.is_file():
            return
        for number, row in enumerate(read(self.file), 1):
            if number not in self.held:
                yield row

    def _given(self) -> Iterator[Row]:
        """The rows that tools look at: with all columns, where recipes may work on them."""
        return self.shown() if self.whole is None else read(self.whole())

    def _describe(self, source: Callable[[], Iterator[Row]], shown: int) -> data_statistics.DataStatistics:
        sample = (cells.text(cell) for row in islice(source(), SAMPLE) for cell in row.values())
        per_token = cells.bytes_per_token(self.tokenizer, sample)
        return data_statistics.describe(source(), shown=shown, bytes_per_token=per_token)
