"""Runs the data script that a language model wrote: `python process_data.py --input DIR --output FILE [--debug]`.

What the script may do, and what it finds, is in docs/data-scripts.md. It runs twice, as an untrusted job of the train
environment: on about a hundred rows first, then on all. What it wrote is examined by data_report.py.

    stage/program/process_data.py, ftloop_llm.py     read-only
    stage/debug/, stage/full/    work/output/data.jsonl by the script, job.log, kept.jsonl by us
    cache/<key>/                 data.jsonl and run.json of a script whose data was usable
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path

import msgspec

from agent.errors import MachineError
from agent.resources import resource
from agent.run import Job, Mount, Outcome, Watch, disk, written
from scenarios.finetune import cells, contamination
from scenarios.finetune.benchmarks import Benchmark
from scenarios.finetune.data import Dataset
from scenarios.finetune.data_report import DataReport, Run, examine
from scenarios.finetune.files import replacing, scratch, sync_tree
from scenarios.finetune.outputs import telling_line
from scenarios.finetune.rows import read

SCRIPT, CLIENT, OUTPUT = "process_data.py", "ftloop_llm.py", "data.jsonl"
KEPT, RUN = "kept.jsonl", "run.json"
ROWS = "train.jsonl"
"""What lies in the script's input directory."""
LLM_SOCKET = "FTLOOP_LLM_SOCKET"
MOST_ROWS = "FTLOOP_MOST_ROWS"
DEBUG_ROWS = 100
LONGEST_SCRIPT = 200_000  # characters
LARGEST_LOG = 64 << 20  # bytes; a disk limit of the runner may stop it earlier
TAIL = 3_000  # characters of a log that are told

Execute = Callable[[Job, Watch], Outcome]
"""Runs a job as `agent.run.Runner` does, or as a stage does under the call's budget."""
Door = Callable[[], AbstractContextManager[Path | None]]
"""Opens the gateway for one job: its socket, or None where no model is to be asked."""


class ScriptInput(msgspec.Struct, frozen=True, kw_only=True):
    """A data set laid out for scripts.

    Attributes:
        full, debug: Directories that hold `train.jsonl`: all rows, and about a hundred.
        rows: All of them. sha256: Of the file with all rows. columns: Those of the first rows.
        left_out: Rows that hold a question of a benchmark, and are therefore not there.
    """

    full: str
    debug: str
    rows: int
    sha256: str
    columns: tuple[str, ...] = ()
    left_out: int = 0

    @property
    def file(self) -> Path:
        """All rows."""
        return Path(self.full) / ROWS


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a script's data must keep to.

    Attributes:
        cutoff_len: Tokens after which a training cuts a row.
        rows: Most rows that are kept (FT_UPPER_DATA_SIZE_LIMIT). seed: Of the draw where there are more.
        bytes_per_token: How lengths are counted; see `cells.bytes_per_token`.
        columns: Role -> column of the study's data, for rows that still have these.
    """

    cutoff_len: int
    rows: int = 100_000
    seed: int = 0
    bytes_per_token: float = cells.BYTES_PER_TOKEN
    columns: dict[str, str] | None = None


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds that the two runs may take."""

    debug: float = 300.0
    full: float = 3600.0


class ScriptRun(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a script.

    Attributes:
        report: Of the full run, or of the debug run where that failed.
        data: JSON Lines that `data.recognise` takes; None unless the report is usable.
        sha256: Of that file. key: What the result is kept under.
        reused: It was run before, with the same input and limits. seconds: That both runs took.
    """

    report: DataReport
    key: str
    data: str | None = None
    sha256: str = ""
    reused: bool = False
    seconds: float = 0.0


def lay_out(dataset: Dataset, directory: Path, benchmarks: Sequence[Benchmark] = ()) -> ScriptInput:
    """Write all columns of the chosen training files as JSON Lines, for scripts; what is there already is kept.

    A script is given this copy and never the data set's own directory, where held-out splits may lie. Rows that hold a
    question of one of the benchmarks, in whichever column, are left out: what a script prints goes to its author.

    Raises:
        UsageError: A file cannot be read.
    """
    source = _source(dataset, benchmarks)
    with suppress(OSError, msgspec.MsgspecError, ValueError):
        kept = json.loads((directory / "input.json").read_bytes())
        if kept["source"] == source and all((directory / run / ROWS).is_file() for run in ("full", "debug")):
            return msgspec.convert(kept["input"], ScriptInput)
    for run in ("full", "debug"):
        (directory / run).mkdir(parents=True, exist_ok=True)
    draft = scratch(directory / ROWS)
    try:
        with draft.open("x", encoding="utf-8") as target:
            target.writelines(f"{json.dumps(row, default=str)}\n" for file in dataset.files for row in read(Path(file)))
        held = {one.row for found in contamination.scan(draft, benchmarks).values() for one in found}
        laid = _laid(draft, directory, held)
    finally:
        draft.unlink(missing_ok=True)
    with replacing(directory / "input.json") as target:
        target.write(json.dumps({"source": source, "input": msgspec.to_builtins(laid)}))
    return laid


def _laid(rows: Path, directory: Path, held: set[int]) -> ScriptInput:
    """Write the rows but those `held`, all of them and a sample."""
    draw = random.Random(0)  # noqa: S311 - a sample, not a secret
    drawn: list[tuple[int, str]] = []
    columns: dict[str, None] = {}
    digest, count = hashlib.sha256(), 0
    with replacing(directory / "full" / ROWS) as target, rows.open(encoding="utf-8") as source:
        for number, line in enumerate(source):
            if number in held:
                continue
            digest.update(line.encode())
            target.write(line)
            if count < DEBUG_ROWS:
                drawn.append((count, line))
                columns.update(dict.fromkeys(map(str, json.loads(line))))
            elif (place := draw.randrange(count + 1)) < DEBUG_ROWS:
                drawn[place] = (count, line)
            count += 1
    with replacing(directory / "debug" / ROWS) as target:
        target.writelines(line for _, line in sorted(drawn))
    return ScriptInput(
        full=str(directory / "full"),
        debug=str(directory / "debug"),
        rows=count,
        sha256=digest.hexdigest(),
        columns=tuple(columns),
        left_out=len(held),
    )


def run(
    script: str,
    given: ScriptInput,
    limits: Limits,
    *,
    execute: Execute,
    stage: Path,
    cache: Path,
    name: str,
    patience: Patience = Patience(),  # noqa: B008 - frozen
    door: Door = nullcontext,
    environment: str = "",
    watch: Watch | None = None,
) -> ScriptRun:
    """Run a script, first on a few rows and then on all, unless the same one was run before.

    Args:
        script: What the language model wrote.
        given: The data. limits: What the result must keep to.
        execute: Its runner must confine the job, or have been told not to.
        stage: The trial's directory for this; emptied first. cache: Keeps usable data by content.
        name: Of the job. patience: Seconds for each run.
        door: Opens the gateway's socket for each run; its directory is mounted.
        environment: Names what the job runs in, beyond the locked requirements (an updated image, say).
        watch: Called while a run lasts; a reason that it returns stops it.

    Raises:
        MachineError: A job was lost, the disk is full, or the runner cannot confine it. Also whatever `execute` raises.
    """
    key = _key(script, given, limits, environment)
    if (known := _load(cache / key)) is not None:
        return known
    if problem := refused(script):
        return ScriptRun(report=DataReport(run="debug", failure=problem), key=key)
    _remove(stage)
    program = stage / "program"
    program.mkdir(parents=True)
    (program / SCRIPT).write_text(script, "utf-8")
    shutil.copyfile(resource(f"docker/train/{CLIENT}"), program / CLIENT)
    runs: tuple[tuple[Run, str, float], ...] = (
        ("debug", given.debug, patience.debug),
        ("full", given.full, patience.full),
    )
    seconds = 0.0
    for which, source, deadline in runs:
        place = stage / which
        (place / "work" / "output").mkdir(parents=True)
        with door() as socket:
            job = _job(f"{name}-{which}", program, source, place, deadline, limits, socket, debug=which == "debug")
            outcome = execute(job, _watched(Path(job.log), watch))
        seconds += outcome.seconds
        report = _report(outcome, place, which, limits)
        _remove(place / "work")
        if not report.usable:
            return ScriptRun(report=report, key=key, seconds=seconds)
    return _store(cache / key, ScriptRun(report=report, key=key, seconds=seconds), stage / "full" / KEPT)


def _job(
    name: str,
    program: Path,
    source: str,
    place: Path,
    deadline: float,
    limits: Limits,
    door: Path | None,
    *,
    debug: bool,
) -> Job:
    work = place / "work"
    argv = ("python", str(program / SCRIPT), "--input", source, "--output", str(work / "output" / OUTPUT))
    variables = {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    variables[MOST_ROWS] = str(limits.rows)
    mounts = [Mount(str(program)), Mount(source), Mount(str(work), writable=True)]
    if door is not None:
        variables[LLM_SOCKET] = str(door)
        mounts.append(Mount(str(door.parent)))
    return Job(
        name=name,
        environment="train",
        argv=(*argv, "--debug") if debug else argv,
        cwd=str(work),
        log=str(place / "job.log"),
        deadline=deadline,
        mounts=tuple(mounts),
        variables=variables,
        untrusted=True,
    )


def _watched(log: Path, watch: Watch | None) -> Watch:
    """The given watch, and one over how much the script prints."""

    def look() -> str | None:
        with suppress(OSError):
            if log.lstat().st_size > LARGEST_LOG:
                return f"it printed more than {LARGEST_LOG >> 20} MiB"
        return watch() if watch else None

    return look


def _report(outcome: Outcome, place: Path, which: Run, limits: Limits) -> DataReport:
    """What the run gave; MachineError where the machine is to blame."""
    if outcome.kind in ("lost", "full"):
        hint = "bring the engine back" if outcome.kind == "lost" else "free some disk space"
        raise MachineError(f"the data script's {which} run: {outcome.reason}", f"{hint}; the log: {outcome.log}")
    tail = outcome.tail[-TAIL:]
    if outcome.kind != "ok":
        said = telling_line(outcome.tail)
        return DataReport(run=which, failure=f"{outcome.reason}: {said}" if said else outcome.reason, tail=tail)
    output = place / "work" / "output"
    if strange := written.strange(output):
        return DataReport(run=which, failure=f"{strange}, where a plain file is wanted", tail=tail)
    file = output / OUTPUT
    if not file.is_file():
        return DataReport(run=which, failure="it ended normally, but wrote no file to --output", tail=tail)
    return examine(
        file,
        place / KEPT,
        run=which,
        cutoff_len=limits.cutoff_len,
        most=limits.rows,
        seed=limits.seed,
        bytes_per_token=limits.bytes_per_token,
        columns=limits.columns,
    )


def _remove(directory: Path) -> None:
    """With all that a script may have left in it: nests of directories, directories that it closed."""
    if directory.exists():
        disk.remove(str(directory))


def refused(script: str) -> str | None:
    """Why a script is not even tried; its syntax is for the debug run to find, in a container."""
    if not script.strip():
        return "the script is empty"
    if len(script) > LONGEST_SCRIPT:
        return f"the script has {len(script):,} characters, at most {LONGEST_SCRIPT:,} are allowed"
    try:
        script.encode()
    except UnicodeEncodeError as error:
        return f"the script is no text: {error.reason} at character {error.start}"
    return None


def _key(script: str, given: ScriptInput, limits: Limits, environment: str) -> str:
    """sha256 over all that the result depends on."""
    locked = ("docker/requirements.torch", "docker/train/requirements.lock", f"docker/train/{CLIENT}")
    parts = {
        "script": hashlib.sha256(script.encode("utf-8", "surrogatepass")).hexdigest(),
        "input": given.sha256,
        "limits": msgspec.to_builtins(limits),
        "environment": [environment, *(hashlib.sha256(resource(name).read_bytes()).hexdigest() for name in locked)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _load(entry: Path) -> ScriptRun | None:
    """What is kept under a key; None where it is not there, or damaged."""
    try:
        kept = msgspec.json.decode((entry / RUN).read_bytes(), type=ScriptRun)
        whole = _file_hash(entry / OUTPUT) == kept.sha256
    except (OSError, msgspec.MsgspecError):
        return None
    return msgspec.structs.replace(kept, data=str(entry / OUTPUT), reused=True, seconds=0.0) if whole else None


def _store(entry: Path, made: ScriptRun, data: Path) -> ScriptRun:
    """Keep usable data; whoever comes second gets the first one's."""
    made = msgspec.structs.replace(made, data=str(entry / OUTPUT), sha256=_file_hash(data))
    draft = scratch(entry)
    draft.mkdir(parents=True)
    try:
        shutil.move(data, draft / OUTPUT)
        (draft / RUN).write_bytes(msgspec.json.encode(made))
        sync_tree(draft)
        if _load(entry) is None:
            shutil.rmtree(entry, ignore_errors=True)  # what is there is damaged
        with suppress(OSError):  # another call was faster, with the same content
            draft.rename(entry)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    if (kept := _load(entry)) is None:
        raise MachineError(f"{entry} cannot be kept", "see whether the disk is full, or written to by somebody else")
    return msgspec.structs.replace(kept, reused=False, seconds=made.seconds)


def _source(dataset: Dataset, benchmarks: Sequence[Benchmark]) -> str:
    """What the data set's files are, without reading them all (names, sizes and times), and what may not be in them."""
    stats = [(file, Path(file).stat()) for file in dataset.files]
    named = [[file, status.st_size, status.st_mtime_ns] for file, status in stats]
    without = [contamination.RULES, sorted(benchmark.fingerprint for benchmark in benchmarks)]
    return hashlib.sha256(json.dumps([named, without]).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
