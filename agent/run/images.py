"""Builds the images of docker/<environment>/, tagged by the content that they are built from, and removes them."""

from __future__ import annotations

import hashlib
import io
import json
import queue
import re
import tarfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from agent.errors import MachineError
from agent.resources import resource
from agent.run import EnvironmentName, Say, wheels
from agent.run.logs import plain

if TYPE_CHECKING:
    from docker import DockerClient

IMAGE_LABEL = "ftloop.image"
_TAIL_LINES = 20
_HEARTBEAT = 15.0
_STEP = re.compile(r"Step (\d+)/(\d+) : (FROM|RUN) (.*)")


def tag_of(environment: EnvironmentName, arguments: Mapping[str, str], folder: Path | None = None) -> str:
    """The image's name; its tag changes with every file and argument that goes into it, and with nothing else.

    FIND_LINKS does not count: it is a place where the pinned packages are fetched from.
    """
    decisive = sorted((name, value) for name, value in arguments.items() if name != "FIND_LINKS")
    digest = hashlib.sha256(repr(decisive).encode())
    root = folder or resource("docker")
    for path in _context(environment, root):
        digest.update(f"\0{path.relative_to(root)}\0".encode())
        digest.update(path.read_bytes())
    return f"ftloop-{environment}:{digest.hexdigest()[:12]}"


def is_there(client: DockerClient, image: str) -> bool:
    """Whether the engine has the image."""
    import docker

    try:
        client.images.get(image)
    except docker.errors.ImageNotFound:
        return False
    return True


def build(
    client: DockerClient,
    environment: EnvironmentName,
    arguments: Mapping[str, str],
    network: str | None,
    say: Say,
    folder: Path | None = None,
) -> str:
    """Build the image and return its name; progress goes to `say`.

    Args:
        client: The engine.
        environment: Its folder below `folder`.
        arguments: BASE, FIND_LINKS. Without FIND_LINKS, wheels that only this machine's pip knows are brought along.
        network: Of the build; None for the engine's own, or the host's where it has none or wheels are served.
        say: Gets a line a step, and one every quarter of a minute.
        folder: By default docker/.

    Raises:
        MachineError: with the end of the build's output.
    """
    root = folder or resource("docker")
    tag = tag_of(environment, arguments, root)
    say(f"{environment} image: building {tag} (once; some minutes)")
    context = tar({str(path.relative_to(root)): path for path in _context(environment, root)})
    file = f"{environment}/Dockerfile"
    with _wheels_of_this_machine(client, environment, root, arguments, network, say) as (given, chosen):
        return run_build(client, tag, context, given, chosen, say, environment=environment, dockerfile=file)


def run_build(
    client: DockerClient,
    tag: str,
    context: IO[bytes],
    arguments: Mapping[str, str],
    network: str | None,
    say: Say,
    *,
    environment: EnvironmentName,
    dockerfile: str,
    labels: Mapping[str, str] = {},
) -> str:
    """Have the engine build `tag` from a tar file; `build` says what else."""
    output: deque[str] = deque(maxlen=_TAIL_LINES)
    started = last = time.monotonic()
    step = "sending the files"

    def tell(words: str) -> None:
        nonlocal last
        last = time.monotonic()
        say(f"{environment} image: {words}")

    for event in _events(
        client,
        fileobj=context,
        custom_context=True,
        dockerfile=dockerfile,
        tag=tag,
        buildargs=dict(arguments),
        labels={IMAGE_LABEL: environment, **labels},
        network_mode=network or build_network(client),
        rm=True,
        forcerm=True,
        decode=True,
    ):
        for line in map(plain, str(event.get("stream", "")).split("\n")):
            output += [line] if line else []
            if found := _STEP.match(line):
                step = f"step {found[1]} of {found[2]}"
                tell(f"{step}: {_shortened(f'{found[3]} {found[4]}')}")
        if time.monotonic() - last >= _HEARTBEAT:
            tell(f"{step}: {time.monotonic() - started:.0f} s since the start")
        if "error" in event:
            raise MachineError(f"building {tag} failed: {event['error']}\n" + "\n".join(output), _hint(event["error"]))
    return tag


def build_network(client: DockerClient) -> str | None:
    """The network of a build: the engine's default one, or the host's where the engine has no bridge."""
    bridges = [network for network in client.networks.list(names=["bridge"]) if network.name == "bridge"]
    return None if bridges else "host"


def ours(client: DockerClient) -> list[str]:
    """The names of all images that ftloop built on this engine, whatever version of it."""
    return sorted(tag for image in client.images.list(filters={"label": IMAGE_LABEL}) for tag in image.tags)


def remove(client: DockerClient, tags: Iterable[str]) -> int:
    """Remove images, with the layers that nothing else needs, and return the bytes that this freed.

    One that is gone already, or that a container uses, is left as it is.
    """
    import docker

    before = _layers(client)
    for tag in tags:
        try:
            client.api.remove_image(tag)
        except docker.errors.APIError as error:
            if error.status_code not in (404, 409):
                raise MachineError(
                    f"the image {tag} cannot be removed: {error.explanation}", f"remove it by hand: docker rmi {tag}"
                ) from None
    return max(0, before - _layers(client))


def tar(files: Mapping[str, Path]) -> io.BytesIO:
    """A build context, without times and owners, so that equal content hits the engine's layer cache."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = 0
        entry.mode = 0o644
        return entry

    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, path in files.items():
            archive.add(path, arcname=name, filter=anonymous)
    context.seek(0)
    return context


def _context(environment: EnvironmentName, root: Path) -> list[Path]:
    """The files that go into the image; the programs of the folder do not, as jobs mount them."""
    folder = root / environment
    overlay = sorted(path for path in (folder / "overlay").rglob("*") if path.is_file() and path.suffix != ".pyc")
    more = [path for path in (folder / "requirements.gpu",) if path.exists()]
    return [root / "requirements.torch", folder / "Dockerfile", folder / "requirements.lock", *more, *overlay]


@contextmanager
def _wheels_of_this_machine(
    client: DockerClient,
    environment: EnvironmentName,
    root: Path,
    arguments: Mapping[str, str],
    network: str | None,
    say: Say,
) -> Iterator[tuple[Mapping[str, str], str | None]]:
    """A build's arguments and network, with FIND_LINKS where only this machine's pip knows the pinned torch."""
    found = wheels.pinned(root / "requirements.torch") if "FIND_LINKS" not in arguments and network is None else {}
    if not found:
        yield arguments, network
    elif not _shares_our_loopback(client):
        say(f"{environment} image: the engine cannot reach the wheels that pip knows here; the published ones are used")
        yield arguments, network
    else:
        say(f"{environment} image: with the wheels in {next(iter(found.values())).parent}")
        with wheels.served(found) as address:
            yield {**arguments, "FIND_LINKS": address}, "host"


def _events(client: DockerClient, **arguments: Any) -> Iterator[dict[str, Any]]:
    """What the engine says about a build; an empty event whenever it has been silent for a while."""
    import docker
    import requests

    said: queue.SimpleQueue[dict[str, Any] | BaseException | None] = queue.SimpleQueue()

    def listen() -> None:
        try:
            for event in client.api.build(**arguments):
                said.put(event)
            said.put(None)
        except (docker.errors.DockerException, requests.RequestException, OSError) as error:
            said.put(error)

    threading.Thread(target=listen, name="image build", daemon=True).start()
    while True:
        try:
            event = said.get(timeout=_HEARTBEAT)
        except queue.Empty:
            yield {}
            continue
        if event is None:
            return
        if isinstance(event, BaseException):
            reason = getattr(event, "explanation", None) or event
            raise MachineError(f"the Docker engine cannot build {arguments['tag']}: {reason}", _hint(str(reason)))
        yield event


def _shortened(instruction: str, width: int = 100) -> str:
    """An instruction as a person wants to see it: without what is only for the shell or the parser."""
    name, _, words = instruction.partition(" ")
    if words.startswith("["):
        words = " ".join(json.loads(words))
    words = " ".join([name, *re.sub(r"\$\{\w+:\+[^}]*\}", "", words).split()])
    return words if len(words) <= width else words[: width - 1] + "…"


def _hint(reason: str) -> str:
    if "no space left on device" in reason:
        return "free some space where the engine keeps its data: ftloop clean --images, docker system prune"
    return "check the network of the engine, and BASE and FIND_LINKS (docker/*/README.md)"


def _shares_our_loopback(client: DockerClient) -> bool:
    """Whether a build on the host's network reaches us: an engine of this machine that is not rootless."""
    options = client.info().get("SecurityOptions") or ()
    return str(client.api.base_url).startswith("http+docker://") and "name=rootless" not in options


def _layers(client: DockerClient) -> int:
    return int(client.df().get("LayersSize") or 0)
