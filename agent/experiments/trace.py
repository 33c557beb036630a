"""`ftloop trace`: from a result to its data, and from data to every result that was trained on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from agent.errors import UsageError
from agent.experiments import provenance
from agent.experiments.cells import DataFile, DataUsed
from agent.experiments.listing import label, plain, say, shown
from agent.experiments.results import Every, Result, resolve
from agent.report import words
from scenarios.finetune import data

_MOST_METADATA = 1 << 20
_SHOWN = 20
"""Keys of an experiment_metadata.json, and files of a data set, that are shown."""


@dataclass(frozen=True)
class Now:
    """Some data as they are now: their files' hashes by path, and the fingerprint; both empty where they are gone."""

    files: dict[str, str]
    fingerprint: str = ""


def run(found: Every, what: str, *, as_json: bool = False) -> int:
    """Print it; UsageError where `what` is neither a result nor data."""
    one = _result(found, what)
    if one is not None:
        content: Any = {"result": plain(one), "changed": changes(one.data), "metadata": _metadata(one.data)}
        lines = result_lines(one)
    else:
        users = trained_on(found, what)
        content = [{"result": plain(user), "state": state} for user, state in users]
        lines = data_lines(what, users)
    say(msgspec.json.format(msgspec.json.encode(content), indent=2).decode() if as_json else "\n".join(lines))
    return 0


def _result(found: Every, what: str) -> Result | None:
    """The result that is meant; None where `what` is data."""
    try:
        return resolve(found, what)
    except UsageError:
        if _is_data(found, what):
            return None
        raise


def _is_data(found: Every, what: str) -> bool:
    """Whether it lies on the disk, or is the name or the place of some result's data."""
    if (path := Path(what).expanduser()).exists():
        inside = [one for one in found.trained if Path(one.path).is_relative_to(path.resolve())]
        return not inside
    return any(_names(one, what) for one in found.trained)


# From a result to its data


def result_lines(one: Result) -> Iterator[str]:
    """Model, recipe, data with their hashes, and how the data were made."""
    used = one.data
    yield label(one)
    yield f"  path: {shown(one.path)}"
    yield f"  model: {words.clean(one.model)}" + (f", weights {one.weights[:12]}" if one.weights else "")
    if one.method:
        yield f"  method: {words.clean(one.method)}"
    yield "  recipe: " + ", ".join(f"{key} {words.clean(str(value))}" for key, value in one.hyperparameters.items())
    if one.recipe is not None and one.recipe.script:
        yield f"  data script: {len(one.recipe.script.splitlines())} lines, in the journal"
    if one.recipe is not None and one.recipe.data:
        steps = (", ".join(f"{key} {value}" for key, value in step.items()) for step in one.recipe.data)
        yield f"  data steps: {words.clean('; '.join(steps), 500)}"
    yield f"  data: {words.clean(used.path, 500)}" + (f", {used.rows:,} rows" if used.rows else "")
    yield f"    fingerprint: {used.fingerprint[:12] or 'not recorded'}"
    for file in used.files[:_SHOWN]:
        yield f"    {shown(file.path)}: sha256 {file.sha256[:12]}, {file.bytes:,} bytes"
    if len(used.files) > _SHOWN:
        yield f"    and {len(used.files) - _SHOWN} more files"
    if not used.files:
        yield "    single files' hashes were not recorded"
    changed = changes(used)
    yield from (f"    {change}" for change in changed or ["unchanged since"])
    yield from _metadata_lines(used)


def changes(used: DataUsed) -> list[str]:
    """What of the data is no longer as it was when it was trained on; empty where all of it is."""
    where = _location(used)
    if where is None:
        return ["GONE: the data are not where they were"]
    if used.files:
        return [line for file in used.files if (line := _change(file))]
    now = look(where, used.columns)
    if not used.fingerprint or not now.fingerprint:
        return ["there is nothing to compare with: no fingerprint"]
    return [] if now.fingerprint == used.fingerprint else ["CHANGED since: the fingerprint is now another one"]


def _change(file: DataFile) -> str:
    path = Path(file.path)
    if not path.is_file():
        return f"{shown(file.path)} is GONE"
    now = provenance.hashed(path)
    return "" if now.sha256 == file.sha256 else f"{shown(file.path)} has CHANGED since: sha256 {now.sha256[:12]} now"


def _location(used: DataUsed) -> Path | None:
    for name in (used.location, used.path):
        if name and (path := Path(name).expanduser()).exists():
            return path
    return None


def _metadata(used: DataUsed) -> Any:
    """What experiment_metadata.json says; None where there is none that can be read."""
    where = _location(used)
    file = provenance.metadata(where) if where else None
    try:
        if file is None or file.stat().st_size > _MOST_METADATA:
            return None
        return msgspec.json.decode(file.read_bytes())
    except (OSError, msgspec.MsgspecError, RecursionError):
        return None


def _metadata_lines(used: DataUsed) -> Iterator[str]:
    where = _location(used)
    file = provenance.metadata(where) if where else None
    if file is None:
        yield f"  made by: unknown, as there is no {provenance.METADATA} at the data or above"
        return
    content = _metadata(used)
    if not isinstance(content, dict):
        yield f"  made by: {shown(str(file))}, which cannot be read as a JSON object"
        return
    yield f"  made by: {shown(str(file))}"
    for key, value in list(content.items())[:_SHOWN]:
        yield f"    {words.clean(str(key), 60)}: {words.clean(str(value))}"


# From data to results


def trained_on(found: Every, what: str) -> list[tuple[Result, str]]:
    """The results that were trained on some data, each with what became of these data since.

    By the place and by the content: data that were copied or moved are the same data.
    """
    path = Path(what).expanduser()
    now = look(path) if path.exists() else Now({})
    hashes = set(now.files.values())
    users = []
    for one in found.trained:
        same_place = _names(one, what)
        used = {file.sha256 for file in one.data.files}
        equal = bool(used & hashes) or bool(now.fingerprint and now.fingerprint == one.data.fingerprint)
        if same_place:
            users.append((one, "; ".join(changes(one.data)) or "unchanged since"))
        elif equal:
            users.append((one, f"the same content, read from {shown(one.data.location or one.data.path)}"))
    return users


def data_lines(what: str, users: list[tuple[Result, str]]) -> Iterator[str]:
    """The results, one after another."""
    path = Path(what).expanduser()
    file = provenance.metadata(path) if path.exists() else None
    yield f"{what}: {words.count(len(users), 'result')} trained on it"
    if path.exists():
        made = shown(str(file)) if file else f"unknown, as there is no {provenance.METADATA} at the data or above"
        yield f"  made by: {made}"
    for one, state in users:
        yield f"  {label(one)}"
        yield f"    {one.verdict or one.status}, {words.clean(one.model)}, {shown(one.path)}"
        yield f"    data: {state}"


def look(path: Path, columns: dict[str, str] | None = None) -> Now:
    """Hashes of some data as they are now; of a directory that is no data set, those of the data files below it."""
    try:
        dataset = data.recognise(path, columns or None)
    except UsageError:
        files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()][:1000]
        return Now({str(file.resolve()): provenance.hashed(file).sha256 for file in files})
    hashes = {str(Path(file).resolve()): provenance.hashed(Path(file)).sha256 for file in dataset.files}
    return Now(hashes, data.fingerprint_of(dataset))


def _names(one: Result, what: str) -> bool:
    """Whether `what` is the name of a result's data, a place in them, or one that they lie in."""
    if what.rstrip("/") == one.data.path.rstrip("/"):
        return True
    given = Path(os.path.abspath(Path(what).expanduser()))  # noqa: PTH100 - Path.resolve would follow links
    recorded = (one.data.path, one.data.location, *(file.path for file in one.data.files))
    places = [Path(os.path.abspath(name)) for name in recorded if name]  # noqa: PTH100
    around = [given, given.resolve()]
    return any(place == here or here in place.parents or place in here.parents for place in places for here in around)
