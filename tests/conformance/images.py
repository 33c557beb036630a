"""A small image with a Python, made from the Python that runs the tests: no registry is needed."""

from __future__ import annotations

import io
import platform
import re
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from agent.run.images import is_there

if TYPE_CHECKING:
    from docker import DockerClient

IMAGE = f"ftloop-conformance:{platform.python_version()}-1"  # raise the last number with what this file puts into it
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "turtledemo"}


def make_image(client: DockerClient) -> str:
    """Load the image into the engine, unless it is there, and return its name."""
    if is_there(client, IMAGE):
        return IMAGE
    client.api.import_image_from_data(
        _root_file_system(),
        repository=IMAGE.split(":")[0],
        tag=IMAGE.split(":")[1],
        changes=["ENV PATH=/usr/local/bin", "ENV BAKED=into-the-image"],
    )
    return IMAGE


def _root_file_system() -> bytes:
    binary = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        _add(archive, binary, "usr/local/bin/python3")
        link = tarfile.TarInfo("usr/local/bin/python")
        link.type, link.linkname = tarfile.SYMTYPE, "python3"
        archive.addfile(link)
        shared_by_all = tarfile.TarInfo("tmp")
        shared_by_all.type, shared_by_all.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(shared_by_all)
        _add(archive, library, f"usr/local/lib/{library.name}")
        for shared in _shared_libraries([binary, *library.glob("lib-dynload/*.so")]):
            _add(archive, shared.resolve(), str(shared).lstrip("/"))
    return content.getvalue()


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if _LEFT_OUT & set(Path(entry.name).parts):
            return None
        entry.uid = entry.gid = 0
        entry.mode = 0o755
        return entry

    archive.add(path, arcname=name, filter=readable)


def _shared_libraries(binaries: list[Path]) -> list[Path]:
    listing = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    return sorted({Path(found) for found in re.findall(r"(/\S+) \(0x", listing)})
