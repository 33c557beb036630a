"""Stands in for `python:3.11-slim` where the engine reaches no registry: this machine's Python, pip, libc and a shell.

What the Dockerfiles of docker/ run is in it, and nothing else. It is imported, so it takes seconds and no network.
"""

from __future__ import annotations

import ast
import contextlib
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from agent.run.images import is_there
from tests.conformance.images import add, add_libraries, add_python

if TYPE_CHECKING:
    from docker import DockerClient

NAME, TAG = "python", "3.11-slim"
_PROGRAMS = ("sh", "cat", "cp", "env", "id", "ls", "mkdir", "rm", "uname")
_FOR_WHEELS = ("libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_PATH = "/usr/local/bin:/usr/local/local/bin:/usr/bin:/bin"  # Debian's Python installs below its prefix's local/


@contextlib.contextmanager
def base_image(client: DockerClient) -> Iterator[None]:
    """Let `FROM python:3.11-slim` work: the engine's own, the registry's, or one made here, which loses its name again.

    Nothing that is built later from that name is then based on a stand-in by accident.
    """
    import docker

    if is_there(client, f"{NAME}:{TAG}"):
        yield
        return
    try:
        client.images.pull(NAME, TAG)
    except docker.errors.APIError:
        pass
    else:
        yield
        return
    assert sys.version_info[:2] == (3, 11), "the stand-in is made from the Python that runs the tests: use 3.11"
    client.api.import_image_from_data(_root_file_system(), NAME, TAG, changes=[f"ENV PATH={_PATH}"])
    try:
        yield
    finally:
        client.images.remove(f"{NAME}:{TAG}", noprune=True)


def _root_file_system() -> bytes:
    programs = [Path(shutil.which(name) or f"/bin/{name}") for name in _PROGRAMS]
    pip = find_spec("pip")
    assert pip is not None
    assert pip.origin is not None
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        add_python(archive)
        add(archive, Path(pip.origin).parent, "usr/local/lib/python3.11/pip")  # where nothing can shadow or remove it
        for program in programs:
            add(archive, program.resolve(), f"bin/{program.name}")
        add_libraries(archive, *programs)
        _add_libraries_for_wheels(archive)
        _add_text(archive, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        _add_text(archive, "etc/group", "root:x:0:\n")
        _add_text(archive, "etc/pip.conf", _pip_configuration())
        if _CERTIFICATES.is_file():
            add(archive, _CERTIFICATES.resolve(), str(_CERTIFICATES).lstrip("/"))
    return content.getvalue()


def _add_libraries_for_wheels(archive: tarfile.TarFile) -> None:
    """What wheels for Linux may expect of any system, beside libc (PEP 600)."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    places = {line.split()[0]: Path(line.split()[-1]) for line in reversed(cache.splitlines()[1:]) if "=>" in line}
    for name in _FOR_WHEELS:
        add(archive, places[name].resolve(), str(places[name]).lstrip("/"))
    add_libraries(archive, *(places[name] for name in _FOR_WHEELS))


def _pip_configuration() -> str:
    """How pip reaches its index from here; folders of this machine are left out."""
    argv = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    settings = dict(line.split("=", 1) for line in listed.splitlines())
    lines = ["[global]"]
    for key in ("cert", "index-url", "trusted-host"):
        value = settings.get(f":env:.{key}", settings.get(f"global.{key}"))
        lines += [f"{key} = {ast.literal_eval(value)}"] if value else []
    return "\n".join(lines) + "\n"


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), 0o644
    archive.addfile(entry, io.BytesIO(text.encode()))
