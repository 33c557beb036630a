"""Images are tagged by their content, built once by a real engine, listed and removed."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from agent.errors import MachineError
from agent.run import images
from agent.run.containers import DockerRunner, connect
from agent.run.images import IMAGE_LABEL, build, build_network, is_there, ours, remove, tag_of
from tests.test_images import make_wheel

DOCKERFILE = """\
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG FIND_LINKS=""
COPY requirements.torch train/requirements.lock /
COPY train/overlay /overlay
RUN ["python", "-I", "-S", "-c", "print('said by', open('/overlay/audio.py').read()); CODE"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like docker/, whose image needs no network."""
    (tmp_path / "train" / "overlay").mkdir(parents=True)
    (tmp_path / "requirements.torch").write_text("torch==0\n")
    (tmp_path / "train" / "requirements.lock").write_text("")
    (tmp_path / "train" / "overlay" / "audio.py").write_text("the overlay")
    (tmp_path / "train" / "Dockerfile").write_text(DOCKERFILE.replace("CODE", "pass"))
    return tmp_path


@pytest.fixture
def arguments(folder: Path, image: str) -> Iterator[dict[str, str]]:
    """Build arguments; the image that they lead to is removed after the test."""
    given = {"BASE": image}
    yield given
    with contextlib.suppress(docker.errors.ImageNotFound):
        connect().images.remove(tag_of("train", given, folder))


def test_a_tag_follows_what_goes_into_the_image_and_nothing_else(folder: Path) -> None:
    tags = [tag_of("train", {}, folder)]
    tags.append(tag_of("train", {"BASE": "other"}, folder))
    (folder / "train" / "requirements.gpu").write_text("")
    tags.append(tag_of("train", {}, folder))
    inside = ("requirements.lock", "requirements.gpu", "Dockerfile", "overlay/audio.py")
    for path in (folder / "requirements.torch", *(folder / "train" / name for name in inside)):
        path.write_text(path.read_text() + "# more")
        tags.append(tag_of("train", {}, folder))
    assert len(set(tags)) == 8
    (folder / "train" / "program.py").write_text("mounted by the job")
    assert tag_of("train", {}, folder) == tags[-1]
    assert tag_of("train", {"FIND_LINKS": "http://127.0.0.1:1/"}, folder) == tags[-1], "the same packages"


@pytest.mark.docker
def test_an_image_is_built_once_with_progress(
    folder: Path, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, said = connect(), list[str]()
    tag = build(client, "train", arguments, "none", said.append, folder)
    assert tag == tag_of("train", arguments, folder)
    assert client.images.get(tag).labels == {IMAGE_LABEL: "train"}
    assert "train image: step 6 of 7: RUN python -I -S -c print('said by'" in "\n".join(said)
    assert len(said) < 5, "calm"
    said.clear()
    DockerRunner(client, {"train": tag}).ready("train", said.append)
    monkeypatch.setattr("agent.run.images.resource", lambda name: folder)
    DockerRunner(client, build_arguments=arguments).ready("train", said.append)
    assert said == []


@pytest.mark.docker
def test_a_silent_step_is_said_to_go_on(
    folder: Path, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_HEARTBEAT", 0.3)
    (folder / "train" / "Dockerfile").write_text(DOCKERFILE.replace("CODE", "import time; time.sleep(1.5)"))
    said: list[str] = []
    build(connect(), "train", arguments, "none", said.append, folder)
    assert (
        sum(line.startswith("train image: step 6 of 7: ") and line.endswith(" s since the start") for line in said) >= 2
    )


@pytest.mark.docker
def test_a_failed_build_says_why(folder: Path, arguments: dict[str, str]) -> None:
    (folder / "train" / "Dockerfile").write_text(DOCKERFILE.replace("CODE", "raise SystemExit(3)"))
    with pytest.raises(MachineError, match="returned a non-zero code: 3") as caught:
        build(connect(), "train", arguments, "none", print, folder)
    assert "said by the overlay" in caught.value.message
    assert not is_there(connect(), tag_of("train", arguments, folder))


@pytest.mark.docker
def test_a_base_that_cannot_be_had_is_a_broken_machine(folder: Path, image: str) -> None:
    with pytest.raises(MachineError, match=r"no\.such\.registry\.invalid") as caught:
        build(connect(), "train", {"BASE": "no.such.registry.invalid/python:1"}, "none", print, folder)
    assert "BASE" in caught.value.hint


@pytest.mark.docker
def test_ours_are_listed_and_removed_and_nobody_elses(folder: Path, arguments: dict[str, str], image: str) -> None:
    client = connect()
    (folder / "train" / "Dockerfile").write_text(
        DOCKERFILE.replace("CODE", "open('/big', 'wb').write(bytes(5_000_000))")
    )
    tag = build(client, "train", arguments, "none", print, folder)
    assert tag in ours(client)
    assert image not in ours(client), "it was imported by the tests"
    container = client.containers.create(tag, ["python"])
    try:
        assert remove(client, [tag]) == 0, "a container uses it"
        assert tag in ours(client)
    finally:
        container.remove()
    assert 5_000_000 <= remove(client, [tag, "ftloop-train:gone-already"]) < 6_000_000
    assert tag not in ours(client)
    assert is_there(client, image)
    assert remove(client, []) == 0


@pytest.mark.docker
def test_an_engine_without_a_bridge_builds_on_the_hosts_network(image: str) -> None:
    client = connect()
    bridges = [network for network in client.networks.list() if network.name == "bridge"]
    assert build_network(client) == (None if bridges else "host")


@pytest.mark.docker
def test_a_build_reaches_the_wheels_that_only_this_machines_pip_knows(
    folder: Path, arguments: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(folder / "wheels", "torch", "0+mine")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder / "wheels"))
    fetch = "import os, urllib.request as u; print(u.urlopen(os.environ['FIND_LINKS']).read()); raise SystemExit(9)"
    (folder / "train" / "Dockerfile").write_text(DOCKERFILE.replace("CODE", fetch))
    said: list[str] = []
    with pytest.raises(MachineError, match=r"torch-0\+mine-py3-none-any\.whl"):
        build(connect(), "train", arguments, None, said.append, folder)
    assert any(str(folder / "wheels") in line for line in said)


@pytest.mark.docker
def test_ctrl_c_during_a_build_is_not_waited_for(folder: Path, arguments: dict[str, str]) -> None:
    (folder / "train" / "Dockerfile").write_text(DOCKERFILE.replace("CODE", "import time; time.sleep(20)"))

    started = time.monotonic()
    program = (
        "import pathlib, sys; from agent.run.containers import connect; from agent.run.images import build\n"
        "def say(line):\n"
        "    if 'RUN' in line: raise KeyboardInterrupt\n"
        f"build(connect(), 'train', {arguments!r}, 'none', say, pathlib.Path({str(folder)!r}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert "KeyboardInterrupt" in ended.stderr
    assert time.monotonic() - started < 10
