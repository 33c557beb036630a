"""Prepares a trial's training data: its script, its steps, a look at the result, and the benchmarks' questions out.

directory/                   of the study; no job sees more of it than its own mounts
  input/                     the data set as scripts and steps get it, without the benchmarks' questions
  scripts/<key>/             what scripts wrote, by content (data_script.py)
  mended/<stage>/            the repairs of a trial's script, by their number and what was repaired
  made/<key>/                what is trained on, as LLaMA-Factory reads it; goes when its trials are dropped
  made/<key>.json            the record of it; <key>.found.jsonl says which rows held which question
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import msgspec

from agent.errors import BudgetEnded, TrialFailed, UsageError
from agent.records import Recipe, TrainingData
from scenarios import Bench, Mend
from scenarios.finetune import cells, contamination, data, data_script, step_rows, steps, synthesis
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data import Dataset
from scenarios.finetune.data_report import LEAST, DataReport, examine
from scenarios.finetune.data_script import Limits, Patience, ScriptInput, ScriptRun
from scenarios.finetune.data_statistics import describe
from scenarios.finetune.files import replacing
from scenarios.finetune.rows import Row, read
from scenarios.finetune.steps import Step
from scenarios.finetune.training import TrainingPlan

REPAIRS = 3
"""Times that a script which cannot be used goes back to its author."""
RULES = 1
"""Counted up when the same script and steps give other data than before."""
SUMMARY = 4_000  # characters
WHOLE_DISK = 0.5
"""Share of the free disk that steps may fill."""
LOOKED = 512  # rows after which steps look at the clock and the disk
TOKENIZED = 200  # rows that say how long a token is


class Unusable(Exception):
    """Data that cannot be trained on; `report` says all of why, to whoever wrote script and steps."""

    def __init__(self, reason: str, report: str = "") -> None:
        super().__init__(reason)
        self.report = report or reason


@dataclass(frozen=True, kw_only=True)
class DataWork:
    """What is the same for the data work of all trials of a study.

    Attributes:
        dataset: The study's, as recognised. columns: Those of its first rows.
        directory: See above.
        benchmarks: All whose questions must not be trained on.
        refuse: Data that holds one fails its trial (FT_CONTAMINATION=refuse); else the rows are taken out.
        most: Rows of one trial's data (FT_UPPER_DATA_SIZE_LIMIT).
        no_scripts: Why scripts cannot run here; empty where they can.
        models: The way to the models that scripts may ask; None for none.
        environment: What scripts run in, beyond the locked requirements.
        patience: Seconds for a script.
    """

    dataset: Dataset
    columns: tuple[str, ...]
    directory: Path
    benchmarks: tuple[Benchmark, ...]
    refuse: bool = False
    most: int = 100_000
    no_scripts: str = ""
    models: synthesis.Open | None = None
    environment: str = ""
    patience: Patience = field(default_factory=Patience)

    def problems(self, recipe: Recipe) -> list[str]:
        """Why a recipe's data work cannot be tried, one line each. Nothing is run."""
        found = []
        if recipe.script and self.no_scripts:
            found.append(f"script: {self.no_scripts}; use steps (data), or the data as it is")
        elif recipe.script and (reason := data_script.refused(recipe.script)):
            found.append(reason)
        return found + steps.problems(recipe.data, None if recipe.script else self.columns)


def columns_of(dataset: Dataset) -> tuple[str, ...]:
    """The columns that the first rows of a data set have, which steps may name."""
    first = islice(read(Path(dataset.files[0])), data_script.DEBUG_ROWS)
    return tuple(dict.fromkeys(str(column) for row in first for column in row))


def prepare(bench: Bench, recipe: Recipe, plan: TrainingPlan, work: DataWork, mend: Mend) -> TrainingData:
    """The data of a recipe that has any data work, ready to be trained on.

    Raises:
        TrialFailed: "data": there are no usable rows, after `REPAIRS` repairs of a script.
        BudgetEnded, MachineError: As `bench.run`, and where models did not answer for want of money or an endpoint.
    """
    given = data_script.lay_out(work.dataset, work.directory / "input", work.benchmarks)
    if given.left_out:
        bench.say(f"data work: {given.left_out:,} rows that hold benchmark questions are not given to it")
    if given.rows < LEAST:
        raise TrialFailed("data", f"data work needs {LEAST} rows, and this data set has {given.rows} for it")
    attempt = _Attempt(bench, recipe, plan, work, given, _limits(recipe, plan, work, given))
    script, reason, report = recipe.script, "", ""
    for repairs in range(REPAIRS + 1 if script else 1):
        if repairs:
            bench.say(f"the data script goes back to its author: {reason}")
            script = _mended(work.directory / "mended" / bench.name, script, repairs, partial(mend, script, report))
        try:
            made = attempt(script, repairs)
        except Unusable as error:
            reason, report = (contamination.without_questions(t, work.benchmarks) for t in (str(error), error.report))
        else:
            return msgspec.structs.replace(made, script=script, repairs=repairs)
    again = f" after {REPAIRS} repairs" if script else ""
    raise TrialFailed("data", f"no data that can be trained on{again}: {reason}", report)


def _mended(directory: Path, script: str, number: int, mend: Callable[[], str]) -> str:
    """The script's `number`-th repair in this trial; kept, so that a stage that was broken off asks for it once.

    Else it would be paid for twice, and a replay of the transcript would take the second one for the next repair.
    """
    file = directory / f"{number}-{hashlib.sha256(script.encode()).hexdigest()[:16]}.py"
    with suppress(FileNotFoundError):
        return file.read_bytes().decode()
    mended = mend()
    directory.mkdir(parents=True, exist_ok=True)
    with replacing(file) as target:
        target.write(mended)
    return mended


def _limits(recipe: Recipe, plan: TrainingPlan, work: DataWork, given: ScriptInput) -> Limits:
    cutoff = recipe.train.get("cutoff_len")
    first = islice(read(Path(given.debug) / data_script.ROWS), TOKENIZED)
    texts = ("\n".join(map(cells.text, row.values())) for row in first)
    return Limits(
        cutoff_len=cutoff if isinstance(cutoff, int) else plan.cutoff_len,
        rows=work.most,
        bytes_per_token=round(cells.bytes_per_token(Path(plan.model.path) / "tokenizer.json", texts), 3),
        columns=work.dataset.columns,
    )


@dataclass(frozen=True)
class _Attempt:
    """One script and the steps after it, tried; raises Unusable."""

    bench: Bench
    recipe: Recipe
    plan: TrainingPlan
    work: DataWork
    given: ScriptInput
    limits: Limits

    def __call__(self, script: str, number: int) -> TrainingData:
        rows, digest, columns, report = self.given.file, self.given.sha256, self.work.dataset.columns, None
        if script:
            ran = self._run(script, number)
            assert ran.data is not None
            rows, digest, columns, report = Path(ran.data), ran.sha256, ran.report.columns, ran.report
        try:
            chosen = steps.parse(self.recipe.data, None if script else self.given.columns)
        except UsageError as error:
            raise Unusable(f"the steps cannot be applied: {error.message}") from None
        key = self._key(digest, chosen, columns)
        if (known := _load(self._record(key))) is not None:
            return msgspec.structs.replace(known, reused=True)
        told = ""
        if chosen:
            rows, told = self._step(rows, chosen)
            kept = self.bench.directory / "kept.jsonl"
            report = self._examine(rows, kept, columns)
            rows, columns = kept, report.columns
        assert report is not None
        return self._write(key, rows, columns, report, told)

    def _run(self, script: str, number: int) -> ScriptRun:
        """Run the script; what it wrote is usable. Its logs end in the stage's directory.

        It runs in a place that is cleared as what a hostile program left must be; a stage's directory is not.
        """
        asking, place = synthesis.Session(self.work.models, self.bench), self.work.directory / "running"
        ran = data_script.run(
            script,
            self.given,
            self.limits,
            execute=lambda job, watch: self.bench.run(job, stop=watch),
            stage=place,
            cache=self.work.directory / "scripts",
            name=self.bench.name,
            patience=self.work.patience,
            door=asking.door,
            environment=self.work.environment,
        )
        if place.exists() and not ran.reused:
            shutil.move(place, self.bench.directory / f"script-{number + 1}")
        if not ran.report.usable:
            asking.require_money()
            raise Unusable(ran.report.reason, ran.report.for_agent())
        return ran

    def _step(self, rows: Path, chosen: Sequence[Step]) -> tuple[Path, str]:
        """Apply the steps; the file that they gave, and what each did, in words."""
        target = self.bench.directory / "stepped.jsonl"
        try:
            applied = step_rows.apply(
                chosen, read(rows), bytes_per_token=self.limits.bytes_per_token, scratch=self.bench.directory
            )
            with target.open("w", encoding="utf-8") as file:
                file.writelines(self._within_limits(iter(applied)))
        except UsageError as error:
            raise Unusable(f"the steps cannot be applied: {error.message}") from None
        return target, step_rows.for_agent(applied.statistics)

    def _within_limits(self, rows: Iterator[Row]) -> Iterator[str]:
        """Lines of JSON, as long as there is time and room."""
        free = int(shutil.disk_usage(self.bench.directory).free * WHOLE_DISK)
        room, size = min(free, self.plan.disk or free), 0
        for number, row in enumerate(rows):
            if number % LOOKED == 0 and (left := self.bench.left()) is not None and left <= 0:
                raise BudgetEnded("the call's time is over")
            line = json.dumps(row, default=str) + "\n"
            size += len(line)
            if size > room:
                raise TrialFailed("data", f"the steps write more than {room / 1e9:.3g} GB; make fewer or shorter rows")
            yield line

    def _examine(self, rows: Path, kept: Path, columns: dict[str, str]) -> DataReport:
        report = examine(
            rows,
            kept,
            run="steps",
            cutoff_len=self.limits.cutoff_len,
            most=self.limits.rows,
            seed=self.limits.seed,
            bytes_per_token=self.limits.bytes_per_token,
            columns=columns,
        )
        if not report.usable:
            raise Unusable(report.reason, report.for_agent())
        return report

    def _write(self, key: str, rows: Path, columns: dict[str, str], report: DataReport, told: str) -> TrainingData:
        """Write what is trained on, without the benchmarks' questions, and its figures for the author."""
        record = self._record(key)
        directory = record.with_suffix("")
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        try:
            recognised = data.recognise(rows, columns)
            listing = record.with_suffix(".found.jsonl")
            made = contamination.prepare(recognised, directory, self.work.benchmarks, "remove", listing, self.bench.say)
        except UsageError as error:
            raise Unusable(error.message) from None
        held = made.contamination
        assert held is not None
        if held.action == "kept" or (held.flagged and self.work.refuse):
            shutil.rmtree(directory)
            setting = " (FT_CONTAMINATION=refuse)" if self.work.refuse else ""
            raise TrialFailed("data", f"{held.flagged:,} of {held.rows:,} rows are questions of a benchmark{setting}")
        figures = describe(read(directory / f"{made.name}.jsonl"), bytes_per_token=self.limits.bytes_per_token)
        words = [msgspec.structs.replace(report, statistics=None).for_agent(), told, figures.for_agent()]
        summary = contamination.without_questions("\n".join(filter(None, words)), self.work.benchmarks)
        found = TrainingData(path=str(directory), rows=made.rows, summary=summary[:SUMMARY])
        with replacing(record) as target:
            target.write(msgspec.json.encode(found).decode())
        return found

    def _record(self, key: str) -> Path:
        return self.work.directory / "made" / f"{key}.json"

    def _key(self, digest: str, chosen: Sequence[Step], columns: dict[str, str]) -> str:
        """Hash of all that the data depends on."""
        marks = sorted(benchmark.fingerprint for benchmark in self.work.benchmarks)
        parts = [RULES, contamination.RULES, digest, msgspec.to_builtins(chosen), columns, marks]
        parts += [msgspec.to_builtins(self.limits), self.work.refuse]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _load(record: Path) -> TrainingData | None:
    """What was made before; None where it is not there any more."""
    with suppress(OSError, msgspec.MsgspecError):
        known = msgspec.json.decode(record.read_bytes(), type=TrainingData)
        return known if data.load(Path(known.path)) is not None else None
    return None
