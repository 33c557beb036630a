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

IMAGE = f"ftloop-conformance:{platform.python_version()}-2"  # raise the last number with what this file puts into it
_PACKAGES = {"site-packages", "dist-packages", "ensurepip", "EXTERNALLY-MANAGED"}
_LEFT_OUT = {*_PACKAGES, "test", "tests", "idlelib", "tkinter", "lib2to3", "turtledemo"}


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
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        add_python(archive)
    return content.getvalue()


def add_python(archive: tarfile.TarFile) -> None:
    """The Python that runs the tests, below /usr/local with nothing but its standard library, and a /tmp."""
    binary = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    add(archive, binary, "usr/local/bin/python3")
    link = tarfile.TarInfo("usr/local/bin/python")
    link.type, link.linkname = tarfile.SYMTYPE, "python3"
    archive.addfile(link)
    shared_by_all = tarfile.TarInfo("tmp")
    shared_by_all.type, shared_by_all.mode = tarfile.DIRTYPE, 0o1777
    archive.addfile(shared_by_all)
    add(archive, library, f"usr/local/lib/{library.name}")
    add_libraries(archive, binary, *library.glob("lib-dynload/*.so"))


def add_libraries(archive: tarfile.TarFile, *binaries: Path) -> None:
    """The shared libraries that these programs need, where the loader finds them."""
    listing = subprocess.run(["ldd", *binaries], capture_output=True, text=True, check=False).stdout
    present = set(archive.getnames())
    for shared in sorted({Path(found) for found in re.findall(r"(/\S+) \(0x", listing)}):
        standard = shared.is_relative_to("/usr/lib") or shared.parts[1].startswith("lib")
        name = str(shared).lstrip("/") if standard else f"usr/lib/{shared.name}"
        if name not in present:
            add(archive, shared.resolve(), name)


def add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """A file or directory as `name`, owned by root and readable and executable by all."""

    def readable(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if _LEFT_OUT & set(Path(entry.name).parts):
            return None
        entry.uid = entry.gid = 0
        entry.mode = 0o755
        return entry

    archive.add(path, arcname=name, filter=readable)
