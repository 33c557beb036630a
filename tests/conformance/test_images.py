"""Images are tagged by their content and built by a real engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from agent.errors import MachineError
from agent.run.containers import DockerRunner, connect
from agent.run.images import build, is_there, tag_of

DOCKERFILE = """\
ARG BASE=python:3.11-slim
FROM ${BASE}
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
    for name in ("requirements.torch", "train/requirements.lock", "train/Dockerfile", "train/overlay/audio.py"):
        (folder / name).write_text((folder / name).read_text() + "# more")
        tags.append(tag_of("train", {}, folder))
    assert len(set(tags)) == 6
    (folder / "train" / "program.py").write_text("mounted by the job")
    assert tag_of("train", {}, folder) == tags[-1]


@pytest.mark.docker
def test_an_image_is_built_with_progress(folder: Path, arguments: dict[str, str]) -> None:
    client, said = connect(), list[str]()
    tag = build(client, "train", arguments, "none", said.append, folder)
    assert tag == tag_of("train", arguments, folder)
    assert is_there(client, tag)
    assert any("Step 5/5" in line for line in said)
    DockerRunner(client, {"train": tag}).ready("train", said.append)


@pytest.mark.docker
def test_a_failed_build_says_why(folder: Path, arguments: dict[str, str]) -> None:
    (folder / "train" / "Dockerfile").write_text(DOCKERFILE.replace("CODE", "raise SystemExit(3)"))
    with pytest.raises(MachineError, match="returned a non-zero code: 3") as caught:
        build(connect(), "train", arguments, "none", print, folder)
    assert "said by the overlay" in caught.value.message
    assert not is_there(connect(), tag_of("train", arguments, folder))
