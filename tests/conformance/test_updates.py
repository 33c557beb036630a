"""LLaMA-Factory's newest commit becomes an image, or the installed version stays; from a repository of the test's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.run import updates
from agent.run.containers import connect
from agent.run.images import is_there, ours, remove

from .images import make_image

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

    def _git(self, *argv: str) -> str:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.path)}
        done = subprocess.run(
            ["git", *argv], cwd=self.path, env=environment, check=True, capture_output=True, text=True
        )
        return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture(scope="module")
def installed() -> Iterator[str]:
    """A stand-in for the training image: a Python with pip and a llamafactory whose lock leaves `audio` out."""
    client = connect()
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
    yield tag
    client.images.remove(tag, force=True)


def test_a_repository_out_of_reach_is_one_line_within_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    started = time.monotonic()
    url = "https://no-such-host.invalid/LLaMA-Factory"
    # No engine is needed to find that out.
    assert updates.newest(None, "ftloop-train:x", said.append, url=url, patience=5.0) is None  # type: ignore[arg-type]
    assert time.monotonic() - started < 7
    assert len(said) == 1
    assert url in said[0]
    assert said[0].endswith("going on with the installed version")


def test_a_repository_that_never_answers_is_given_up(tmp_path: Path) -> None:
    """The transport hangs; git and its helper are ended."""
    said: list[str] = []
    program = tmp_path / "git-remote-hang"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        started = time.monotonic()
        found = updates.newest(None, "x", said.append, url="hang://host/repository", patience=6.0)  # type: ignore[arg-type]
    assert found is None
    assert time.monotonic() - started < 20
    assert "no answer in 6 s" in said[0]
    process = (tmp_path / "pid").read_text().strip()
    deadline = time.monotonic() + 5
    while (state := process_state(process)) not in ("Z", ""):  # ended, though perhaps not yet waited for
        assert time.monotonic() < deadline, f"the helper of git is still there, in state {state}"
        time.sleep(0.05)


def process_state(process: str) -> str:
    """The state letter of proc(5); empty for a process that is gone."""
    try:
        return Path("/proc", process, "stat").read_text().split()[2]
    except OSError:
        return ""


def test_a_machine_without_git_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    assert updates.newest(None, "x", said.append) is None  # type: ignore[arg-type]
    assert "git cannot be run" in said[0]


def test_a_branch_that_is_gone_is_told(repository: Repository) -> None:
    repository.commit("0.9.6")
    said: list[str] = []
    assert updates.newest(None, "x", said.append, url=repository.url, branch="gone") is None  # type: ignore[arg-type]
    assert "no branch gone" in said[0]


@pytest.mark.docker
def test_the_newest_commit_becomes_an_image_with_its_arguments(repository: Repository, installed: str) -> None:
    client, said = connect(), list[str]()
    repository.commit("0.9.6")
    commit = repository.commit("0.9.7.dev0", key="newest_key", requires=("audio>=2", "numlike<3"))
    found = updates.newest(client, installed, said.append, url=repository.url, network="none")
    assert found is not None, said
    try:
        assert found.commit == commit
        assert found.image == updates.image_of(installed, commit)
        assert found.image in ours(client)
        image = client.images.get(found.image)
        assert image.labels[updates.COMMIT_LABEL] == commit
        assert image.attrs["Config"]["User"] == "1000:1000"
        arguments = json.loads(found.arguments)
        assert arguments["newest_key"]["types"] == ["int"]
        assert client.images.list(filters={"dangling": True, "label": "ftloop.step=wheel"}) == []
        said.clear()
        again = updates.at(client, installed, commit, said.append, url="file:///gone", network="none")
        assert again == found, "nothing is built or fetched twice"
        assert said == []
    finally:
        remove(client, [found.image])


@pytest.mark.docker
@pytest.mark.parametrize(
    ("requires", "words"),
    [
        (("audio", "numlike>=3"), "numlike>=3 (the lock has numlike 2.0)"),
        (("audio", "brand-new>=1"), "needs brand-new;"),
    ],
)
def test_what_the_locked_versions_do_not_satisfy_is_not_taken(
    repository: Repository, installed: str, requires: tuple[str, ...], words: str
) -> None:
    client, said = connect(), list[str]()
    commit = repository.commit("0.9.8", requires=requires)
    assert updates.newest(client, installed, said.append, url=repository.url, network="none") is None
    assert words in said[-1]
    assert "audio" not in said[-1], "the lock leaves it out on purpose"
    assert not is_there(client, updates.image_of(installed, commit))


@pytest.mark.docker
def test_a_commit_that_does_not_build_is_not_taken(repository: Repository, installed: str) -> None:
    client, said = connect(), list[str]()
    (repository.path / "backend.py").write_text("raise SystemExit('broken upstream')")
    commit = repository.commit("0.9.9")
    assert updates.newest(client, installed, said.append, url=repository.url, network="none") is None
    assert said[-1].endswith("going on with the installed version")
    assert not is_there(client, updates.image_of(installed, commit))


@pytest.mark.docker
def test_arguments_that_cannot_be_read_are_not_taken(repository: Repository, installed: str) -> None:
    client, said = connect(), list[str]()
    repository.commit("0.9.10", parser='VERSION = "0.9.10"\nraise ImportError("moved")\n')
    assert updates.newest(client, installed, said.append, url=repository.url, network="none") is None
    assert "ImportError: moved" in said[-1]
