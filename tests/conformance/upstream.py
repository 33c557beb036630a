"""A git repository that stands in for LLaMA-Factory's, and an image that stands in for the training image."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from .images import make_image

if TYPE_CHECKING:
    from docker import DockerClient

# A build backend without dependencies, so that nothing is fetched while its wheel is made.
BACKEND = """
import pathlib, re, zipfile
def build_wheel(directory, settings=None, metadata=None):
    version = re.search(r'VERSION = "(.*)"', pathlib.Path("llamafactory/hparams/parser.py").read_text())[1]
    requires = pathlib.Path("requires.txt").read_text()
    name = f"llamafactory-{version}-py3-none-any.whl"
    info = f"llamafactory-{version}.dist-info"
    with zipfile.ZipFile(pathlib.Path(directory, name), "w") as wheel:
        for path in pathlib.Path("llamafactory").rglob("*.py"):
            wheel.write(path, str(path))
        metadata = f"Metadata-Version: 2.1\\nName: llamafactory\\nVersion: {version}\\n{requires}"
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return name
"""
PARSER = """
import dataclasses
VERSION = "{version}"
@dataclasses.dataclass
class Arguments:
    stage: str = "sft"
    output_dir: str = ""
    model_name_or_path: str = ""
    {key}: int = 1
_TRAIN_ARGS = [Arguments]
"""


class Repository:
    """A git repository that looks like LLaMA-Factory's, as far as an update goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("llamafactory/__init__.py", "llamafactory/hparams/__init__.py"):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text("")
        (path / "backend.py").write_text(BACKEND)
        (path / "pyproject.toml").write_text(
            '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        )
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        return f"file://{self.path}"

    def commit(self, version: str, parser: str = "", key: str = "key", requires: tuple[str, ...] = ()) -> str:
        text = parser or PARSER.format(version=version, key=key)
        (self.path / "llamafactory/hparams/parser.py").write_text(text)
        (self.path / "requires.txt").write_text("".join(f"Requires-Dist: {line}\n" for line in requires))
        self._git("add", "--all")
        self._git("-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "--message", version)
        return self._git("rev-parse", "HEAD").strip()

    def commits(self) -> list[str]:
        """From the first to the newest."""
        return self._git("log", "--format=%H", "--reverse").split()

    def _git(self, *argv: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.path)}
        done = subprocess.run(
            ["git", *argv], cwd=self.path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout


def make_installed(client: DockerClient) -> str:
    """A Python with pip and a llamafactory whose lock leaves `audio` out; returns the image's name."""
    base = make_image(client)
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        archive.add(Path(sysconfig.get_path("purelib"), "pip"), arcname="packages/pip")
        dockerfile = (
            f"FROM {base}\nCOPY packages /usr/local/lib/python3.{sys.version_info.minor}/site-packages\n"
            "USER 1000:1000\n"
        )
        info = "-0.9.5.dist-info"
        metadata = "Metadata-Version: 2.1\nName: llamafactory\nVersion: 0.9.5\nRequires-Dist: audio>=1\n"
        record = "".join(f"llamafactory{name},,\n" for name in ("/__init__.py", f"{info}/METADATA", f"{info}/RECORD"))
        for name, text in {
            "Dockerfile": dockerfile,
            "packages/llamafactory/__init__.py": "",
            "packages/llamafactory-0.9.5.dist-info/METADATA": metadata,
            "packages/llamafactory-0.9.5.dist-info/RECORD": record,
            "packages/numlike-2.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: numlike\nVersion: 2.0\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    context.seek(0)
    tag = "ftloop-conformance-train:1"
    for event in client.api.build(fileobj=context, custom_context=True, tag=tag, rm=True, decode=True):
        assert "error" not in event, event
    return tag
