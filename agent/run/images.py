"""Builds the images of docker/<environment>/, tagged by the content that they are built from."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import MachineError
from agent.resources import resource
from agent.run import EnvironmentName, Say
from agent.run.logs import plain

if TYPE_CHECKING:
    from docker import DockerClient

_TAIL_LINES = 20


def tag_of(environment: EnvironmentName, arguments: Mapping[str, str], folder: Path | None = None) -> str:
    """The image's name; its tag changes with every file and argument that goes into it, and with nothing else."""
    digest = hashlib.sha256(repr(sorted(arguments.items())).encode())
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

    Raises:
        MachineError: with the end of the build's output.
    """
    root = folder or resource("docker")
    tag = tag_of(environment, arguments, root)
    say(f"{environment} image: building {tag} (once; some minutes)")
    output: deque[str] = deque(maxlen=_TAIL_LINES)
    for event in client.api.build(
        fileobj=_tar(environment, root),
        custom_context=True,
        dockerfile=f"{environment}/Dockerfile",
        tag=tag,
        buildargs=dict(arguments),
        network_mode=network,
        rm=True,
        forcerm=True,
        decode=True,
    ):
        for line in map(plain, str(event.get("stream", "")).split("\n")):
            output += [line] if line else []
            if line.startswith("Step "):
                say(f"{environment} image: {line}")
        if "error" in event:
            raise MachineError(
                f"building {tag} failed: {event['error']}\n" + "\n".join(output),
                "check the network of the engine, and BASE and FIND_LINKS (docker/*/README.md)",
            )
    return tag


def _context(environment: EnvironmentName, root: Path) -> list[Path]:
    """The files that go into the image; the programs of the folder do not, as jobs mount them."""
    folder = root / environment
    overlay = sorted(path for path in (folder / "overlay").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return [root / "requirements.torch", folder / "Dockerfile", folder / "requirements.lock", *overlay]


def _tar(environment: EnvironmentName, root: Path) -> io.BytesIO:
    """The build context, without times and owners, so that equal content hits the engine's layer cache."""

    def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.mtime = 0
        entry.mode = 0o644
        return entry

    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for path in _context(environment, root):
            archive.add(path, arcname=str(path.relative_to(root)), filter=anonymous)
    context.seek(0)
    return context
