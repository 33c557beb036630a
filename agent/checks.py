"""What `ftloop doctor` looks at, one function a check: each yields findings, or raises an error that says what to do.

No check leaves anything on disk or shows a key.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from agent import hub
from agent.chat import ALONE, chosen_endpoint
from agent.errors import BudgetEnded, FtloopError, MachineError, UsageError
from agent.gather import best_data_set, best_model
from agent.hardware import Hardware
from agent.hub.client import amount
from agent.report.words import count
from agent.settings import LAYOUT, PREFIX, Endpoint, Settings
from scenarios.finetune import relevance
from scenarios.finetune.benchmarks import data_directory, needs_judge, require_known
from scenarios.finetune.registry import REGISTRY
from scenarios.finetune.tasks import read_task

if TYPE_CHECKING:
    from docker import DockerClient

    from agent.run import EnvironmentName

Status = Literal["ok", "warning", "problem"]

PATIENCE = 10.0
"""Seconds that an endpoint has for one tiny answer; the hub has half of it."""
HUB = "https://huggingface.co"
NEEDED: tuple[EnvironmentName, ...] = ("train", "bench")
_GB = 10**9
_KEYS = ("OPENAI_API_KEY", "HF_TOKEN")
_SET_JUDGE = "set FT_JUDGE_API_BASE and FT_JUDGE_API_KEY"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check found.

    Attributes:
        name: What was looked at. found: What is there, in one line.
        status: "warning" is worth knowing and stops nothing; a study will fail or be refused over a "problem".
        advice: What to do; empty where nothing needs to be done.
    """

    name: str
    status: Status
    found: str
    advice: str = ""


def described_settings(settings: Settings) -> Iterator[Finding]:
    """How many are set, and where."""
    origins = [settings.origin(name).partition(":")[0] for name in Settings.model_fields]
    places = [f"{origins.count(place)} from {place}" for place in dict.fromkeys(origins) if place != "default"]
    yield _ok("settings", f"valid: {', '.join(places) or 'none set'}, the others at their defaults")


def keys(settings: Settings, environ: Mapping[str, str], whole: Mapping[str, str]) -> Iterator[Finding]:
    """Which keys there are and where they come from; never what they are."""
    named = [
        f"{PREFIX}{name.upper()} ({settings.origin(name)})"
        for name in ("chat_api_key", "judge_api_key")
        if getattr(settings, name) is not None
    ]
    named += [f"{name} ({'environment' if environ.get(name) else '.env'})" for name in _KEYS if whole.get(name)]
    yield _ok("keys", ", ".join(named) or "none set")


# The machine


def versions() -> Iterator[Finding]:
    """Program, Python and system; a host package in another version than the pinned one is a warning."""
    here = f"Python {platform.python_version()}, {platform.system()} {platform.release()} {platform.machine()}"
    try:
        pinned = [re.match(r"([\w.-]+)==([\w.]+)$", line) for line in importlib.metadata.requires("ftloop") or ()]
        version = importlib.metadata.version("ftloop")
    except importlib.metadata.PackageNotFoundError:
        yield _ok("versions", f"ftloop, not installed; {here}")
        return
    wrong = [f"{pin[1]} {_version(pin[1])}, not {pin[2]}" for pin in pinned if pin and _version(pin[1]) != pin[2]]
    if wrong:
        advice = "install it anew: pip install -e . (or make setup)"
        yield Finding(name="versions", status="warning", found=f"{here}; {', '.join(wrong)}", advice=advice)
    else:
        yield _ok("versions", f"ftloop {version}, {here}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def gpus(machine: Hardware, chosen: str | None = None) -> Iterator[Finding]:
    """The GPUs that training would use.

    Args:
        chosen: FT_GPUS, by which `machine` was looked at.
    """
    if machine.gpus:
        named = f" (FT_GPUS={chosen})" if chosen else ""
        yield _ok("GPUs", ", ".join(f"{memory / 2**30:.0f} GiB" for memory in machine.gpus) + named)
        return
    if chosen == "none":
        yield _ok("GPUs", "none: FT_GPUS=none")
        return
    if chosen:
        advice = "name GPUs as nvidia-smi counts them (nvidia-smi -L), or leave FT_GPUS out"
        yield Finding(name="GPUs", status="problem", found=f"none of FT_GPUS={chosen} is there", advice=advice)
        return
    there = any(Path("/dev").glob("nvidia[0-9]*"))
    found = "a GPU is there, but nvidia-smi does not list it" if there else f"none: {machine}"
    advice = "mend the NVIDIA driver" if there else "enough for the demo and tiny models; training larger ones is slow"
    yield Finding(name="GPUs", status="problem" if there else "warning", found=found, advice=advice)


def workspace(settings: Settings) -> Iterator[Finding]:
    """Whether it can be written, or made, and how much room there is."""
    root = settings.file_path
    place = _nearest(root)
    try:
        for directory in [place] if place != root else [root, *filter(Path.exists, (root / name for name in LAYOUT))]:
            with tempfile.TemporaryFile(dir=directory):
                pass
    except OSError as error:
        found = f"{root} cannot be written: {error.strerror} (FT_FILE_PATH is from: {settings.origin('file_path')})"
        advice = "set FT_FILE_PATH to a directory that you may write to"
        yield Finding(name="workspace", status="problem", found=found, advice=advice)
        return
    yield _ok("workspace", f"{root}{'' if place == root else ', made by the first study'}")
    yield room("disk, workspace", place, 2 * _GB, 20 * _GB, "FT_FILE_PATH at a larger disk")


def _nearest(path: Path) -> Path:
    """`path`, or the nearest directory above it that exists."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))


def room(name: str, place: Path, least: int, better: int, alternative: str) -> Finding:
    """A problem below `least` free bytes, a warning below `better`; "point `alternative`" is part of the advice."""
    free = shutil.disk_usage(place).free
    found = f"{amount(free)} are free in {place}"
    if free >= better:
        return _ok(name, found)
    advice = f"free some space there, or point {alternative}; {amount(better)} would be enough"
    return Finding(name=name, status="problem" if free < least else "warning", found=found, advice=advice)


# Where jobs run


def places(settings: Settings, machine: Hardware) -> Iterator[Finding]:
    """The engine with its GPU runtime, images and disk, or what the local runner needs instead."""
    import docker
    import requests

    from agent.run.containers import connect, docker_answers

    if settings.runner == "local":
        yield _ok("engine", "not needed: FT_RUNNER=local")
        yield from local_environments(settings)
        return
    if (why_not := docker_answers()) is not None:
        asked = settings.runner == "docker"
        yield Finding(
            name="engine",
            status="problem" if asked else "warning",
            found=why_not if asked else f"{why_not}: jobs run in the local runner, which confines nothing",
            advice="start Docker, or set DOCKER_HOST" + (", or set FT_RUNNER=local" if asked else ""),
        )
        if not asked:
            yield from local_environments(settings)
        return
    client = connect(timeout=PATIENCE / 2)
    try:
        yield from engine(client, settings, machine)
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise MachineError(f"the engine does not say what it has: {error}", "see `docker info`") from None
    finally:
        client.close()


def engine(client: DockerClient, settings: Settings, machine: Hardware) -> Iterator[Finding]:
    """An engine that answers: version, what it can enforce, GPU runtime, images, room for them."""
    from agent.run.images import is_there, tag_of
    from agent.run.lock import weaknesses

    info: dict[str, Any] = client.info()
    yield _ok(
        "engine", f"Docker {info.get('ServerVersion')} at {os.environ.get('DOCKER_HOST') or 'the default socket'}"
    )
    if missing_locks := weaknesses(info):
        found, advice = f"it has no {', no '.join(missing_locks)}", "use an engine with cgroups and seccomp"
        yield Finding(name="confinement", status="warning", found=f"{found}: generated code is refused", advice=advice)
    if not machine.gpus or settings.gpus == "none":
        yield _ok("GPU runtime", "not needed: no GPU" if not machine.gpus else "not needed: FT_GPUS=none")
    elif "nvidia" in (info.get("Runtimes") or {}):
        yield _ok("GPU runtime", "nvidia")
    else:
        yield Finding(
            name="GPU runtime",
            status="problem",
            found="the engine has no nvidia runtime: containers would not see the GPU",
            advice="install the NVIDIA container toolkit and restart Docker, or set FT_RUNNER=local",
        )
    tags = {name: tag_of(name, {}) for name in NEEDED}
    missing = [name for name, tag in tags.items() if not is_there(client, tag)]
    yield _built("images", missing, ", ".join(tags.values()))
    if (root := Path(str(info.get("DockerRootDir")))).is_dir():
        least = 5 * _GB * len(missing)
        yield room("disk, engine", root, least, least + 5 * _GB, "the engine's data-root at a larger disk")


def local_environments(settings: Settings) -> Iterator[Finding]:
    """The virtual environments of the local runner."""
    from agent.run.environments import NEEDED_BYTES, Environments, default_root

    root = settings.environments if settings.origin("environments") != "default" else default_root()
    directories = {name: Environments(root).python(name).parents[1] for name in NEEDED}
    missing = [name for name, directory in directories.items() if not (directory / ".complete").is_file()]
    yield _built("environments", missing, f"in {root}")
    least = NEEDED_BYTES * len(missing)
    yield room("disk, environments", _nearest(root), least, least + 2 * _GB, "FT_ENVIRONMENTS at a larger disk")


def _built(name: str, missing: list[EnvironmentName], where: str) -> Finding:
    if not missing:
        return _ok(name, f"built: {where}")
    advice = "the first study builds them, which takes minutes and needs a package index"
    return Finding(name=name, status="warning", found=f"not built: {', '.join(missing)}", advice=advice)


# What a study starts from


def data_set(settings: Settings) -> Iterator[Finding]:
    """The data set that is taken where none is named."""
    root = settings.file_path / "datasets"
    if not relevance.directories(root):
        yield _ok("data set", f"none in {root}: named with --dataset")
        return
    try:
        chosen = best_data_set(settings)
    except UsageError as error:
        yield _ok("data set", f"none to choose, name one with --dataset ({error.message})")
        return
    if chosen is None:
        among = ", ".join(relevance.directories(root))
        yield _ok("data set", f"chosen of {among} once the benchmarks' data are there; --dataset names one")
    else:
        yield _ok("data set", f"{chosen.name}, {chosen.reason}")


def model(settings: Settings, machine: Hardware) -> Iterator[Finding]:
    """The model that is taken where none is named."""
    found = best_model((*settings.benchmark_datasets, *settings.search_benchmarks), settings, machine)
    if found.path is not None:
        yield _ok("model", f"{found.name}, {found.reason}")
        return
    none = f"none in {settings.file_path / 'models'} that fits"
    advice = f"name one with --model; else {found.name} is downloaded, {found.reason} (a demo makes its own)"
    yield Finding(name="model", status="warning", found="; ".join((none, *found.passed_over)), advice=advice)


def benchmarks(settings: Settings) -> Iterator[Finding]:
    """Whether each configured benchmark is known, and its data on disk."""
    unset = settings.origin("benchmark_datasets") == "default"
    aimed, pool = settings.benchmark_datasets, settings.search_benchmarks
    named = [(name, "FT_BENCHMARK_DATASETS") for name in aimed] + [(name, "FT_SEARCH_BENCHMARKS") for name in pool]
    for name, setting in named:
        default = unset and setting == "FT_BENCHMARK_DATASETS"
        try:
            require_known(name, setting)
            yield _benchmark(name, settings.file_path)
        except UsageError as error:
            found = f"{error.message} (the default)" if default else error.message
            advice = f"set FT_BENCHMARK_DATASETS, unless a demo brings its own; {error.hint}" if default else error.hint
            status: Status = "warning" if default else "problem"
            yield Finding(name="benchmark", status=status, found=found, advice=advice)


def _benchmark(name: str, root: Path) -> Finding:
    if name.endswith((".yaml", ".yml")):
        task = read_task(Path(name).expanduser())
        return _ok("benchmark", f"{task.name}: {count(len(task.questions), 'question')} in {task.path}")
    laid = data_directory(name, root)
    if name not in REGISTRY:
        if any(laid.rglob("*.jsonl")):
            return _ok("benchmark", f"{name}: in {laid}")
        raise UsageError(f"{name}: no data in {laid}", "lay it there by hand: docs/benchmarks.md")
    entry = REGISTRY[name]
    if entry.source is None:
        return _ok("benchmark", f"{name}: comes with demo/{name}")
    if all((laid / f"{split}.jsonl").is_file() for split in entry.files):
        return _ok("benchmark", f"{name}: in {laid}")
    if (found := hub.find("dataset", entry.source.dataset, root)) is not None:
        return _ok("benchmark", f"{name}: in {found.path}")
    files = " and ".join(f"{split}.jsonl" for split in entry.files)
    advice = f"the first study downloads {entry.source.dataset}; without the hub, lay {files} into {laid}"
    return Finding(name="benchmark", status="warning", found=f"{name}: not on disk", advice=advice)


# Who is asked over the network


def proposer(settings: Settings) -> Iterator[Finding]:
    """Who proposes; a language model must answer now."""
    if (endpoint := chosen_endpoint(settings)) is not None:
        yield _ok("proposer", answered(endpoint, "FT_CHAT"))
    elif settings.proposer in ALONE:
        yield _ok("proposer", f"{ALONE[settings.proposer]} (FT_PROPOSER={settings.proposer})")
    else:
        yield _ok("proposer", "TPE, because no endpoint is configured (FT_CHAT_API_KEY, FT_CHAT_API_BASE)")


def judge(settings: Settings) -> Iterator[Finding]:
    """The model that marks answers, where a benchmark needs one; a demo does without the default benchmark."""
    judged = [name for name in settings.benchmark_datasets if needs_judge(name)]
    searched = [name for name in settings.search_benchmarks if needs_judge(name)]
    default = settings.origin("benchmark_datasets") == "default" and not searched
    needed = ", ".join((*judged, *searched)) + (", the default benchmark," if default and judged else "")
    if not needed:
        yield _ok("judge", "not needed by the configured benchmarks")
        return
    try:
        if (endpoint := settings.judge_endpoint()) is None:
            raise UsageError(f"{needed} needs one, and none is configured", _SET_JUDGE)
        yield _ok("judge", answered(endpoint, "FT_JUDGE"))
    except FtloopError as error:
        if not default:
            raise
        advice = f"{error.hint}; or set FT_BENCHMARK_DATASETS to a benchmark without a judge (a demo needs none)"
        yield Finding(name="judge", status="warning", found=error.message, advice=advice)


def answered(endpoint: Endpoint, prefix: str, patience: float = PATIENCE) -> str:
    """Which model answered one tiny request, where and how fast; MachineError or UsageError where it did not."""
    import openai  # noqa: F401 - now, because its import takes longer than an answer

    from agent import llm

    started = time.monotonic()
    where = llm.Endpoint(
        model=endpoint.model,
        base_url=endpoint.base_url,
        key=llm.Secret(endpoint.api_key) if endpoint.api_key else None,
        settings=prefix,
    )
    asked = llm.ChatModel(where, timeout=patience, retries=0, left=lambda: started + patience - time.monotonic())
    try:
        asked.complete([{"role": "user", "content": "Answer with the word ready and nothing else."}])
    except BudgetEnded:
        hint = f"check that it is up and that {prefix}_API_BASE is right"
        raise MachineError(f"{where.address} did not answer within {patience:.0f} s", hint) from None
    return f"{endpoint.model} at {where.address} answered in {time.monotonic() - started:.1f} s"


def huggingface(environ: Mapping[str, str], patience: float = PATIENCE / 2) -> Iterator[Finding]:
    """Whether the Hugging Face hub answers at all; no token is sent."""
    import http.client
    import urllib.error
    import urllib.request

    url = environ.get("HF_ENDPOINT") or HUB
    by_hand = "data sets and models on disk can be used all the same"
    if environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield Finding(
            name="hub", status="warning", found="HF_HUB_OFFLINE is set: nothing is downloaded", advice=by_hand
        )
        return
    if not re.match(r"https?://[^/\s]+", url):
        raise UsageError("HF_ENDPOINT is not an http(s) URL", f"set it as in HF_ENDPOINT={HUB}, or unset it")
    shown = re.sub(r"//[^/@]*@", "//", url)  # without a password; a hub that asks for one is there
    started = time.monotonic()
    try:
        request = urllib.request.Request(shown, method="HEAD")  # noqa: S310 - http(s), as just checked
        urllib.request.urlopen(request, timeout=patience).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code >= 500:
            found = f"{shown} answers with status {error.code}"
            yield Finding(name="hub", status="warning", found=found, advice=f"try again later; {by_hand}")
            return
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        found, advice = f"{shown} is out of reach: {reason}", f"check the network and HF_ENDPOINT; {by_hand}"
        yield Finding(name="hub", status="warning", found=found, advice=advice)
        return
    yield _ok("hub", f"{shown} answered in {time.monotonic() - started:.1f} s")


def _ok(name: str, found: str) -> Finding:
    return Finding(name=name, status="ok", found=found)
