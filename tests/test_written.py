"""What a job wrote is read below its own directory, or not at all."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from agent.run import written

PLANTS = (
    "a link",
    "a relative link",
    "a chain of links",
    "a linked directory",
    "a pipe",
    "a directory",
    "an endless file",
)


def put(plant: str, model: Path, secret: Path) -> None:
    """What a hostile job leaves in the place of model/state.json."""
    state = model / "state.json"
    if plant == "a link":
        state.symlink_to(secret)
    elif plant == "a relative link":
        state.symlink_to("../../secret/state.json")
    elif plant == "a chain of links":
        (model / "a").symlink_to(secret)
        state.symlink_to("a")
    elif plant == "a linked directory":
        model.rmdir()
        model.symlink_to(secret.parent)
    elif plant == "a pipe":
        os.mkfifo(state)
    elif plant == "a directory":
        state.mkdir()
    else:
        state.touch()
        os.truncate(state, 1 << 40)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "state.json").write_text("a secret")
    return tmp_path / "secret" / "state.json"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "stage" / "model").mkdir(parents=True)
    return tmp_path / "stage" / "model"


def test_plain_files_are_read(model: Path) -> None:
    (model / "state.json").write_bytes(b"0123456789")
    assert written.read(model.parent, "model/state.json", 10) == b"0123456789"
    assert written.read_end(model.parent, "model/state.json", 4) == b"6789"
    assert written.strange(model) is None
    with pytest.raises(OSError, match="larger than 9 bytes"):
        written.read(model.parent, "model/state.json", 9)


@pytest.mark.parametrize("plant", PLANTS)
def test_anything_else_is_not(model: Path, secret: Path, plant: str) -> None:
    put(plant, model, secret)
    with pytest.raises(OSError):
        written.read(model.parent, "model/state.json", 1000)
    if plant not in ("an endless file", "a directory"):
        assert written.strange(model)
        with pytest.raises(OSError):
            written.read_end(model.parent, "model/state.json", 1000)


def test_a_pipe_with_a_silent_writer_is_not_waited_for(model: Path) -> None:
    os.mkfifo(model / "state.json")
    writer = os.open(model / "state.json", os.O_RDWR)
    try:
        with pytest.raises(OSError, match="not a regular file"):
            written.read(model.parent, "model/state.json", 1000)
    finally:
        os.close(writer)


@pytest.mark.parametrize("name", ["../secret/state.json", "model/../../secret/state.json", "/etc/hostname", "", "."])
def test_a_name_cannot_leave_its_root(model: Path, secret: Path, name: str) -> None:
    with pytest.raises(OSError, match="not a plain relative path"):
        written.read(model.parent, name, 1000)


def test_a_directory_that_becomes_a_link_while_we_look_is_not_followed(model: Path, secret: Path) -> None:
    """The race itself: one side swaps the directory for a link, the other reads; the secret must never come back."""
    (model / "state.json").write_text("plain")
    link, spare, done = model.with_name("link"), model.with_name("spare"), threading.Event()
    link.symlink_to(secret.parent)

    def swap() -> None:
        while not done.is_set():
            model.rename(spare)
            link.rename(model)
            model.rename(link)
            spare.rename(model)

    thread = threading.Thread(target=swap)
    thread.start()
    naive, ours = set[str](), set[str]()
    try:
        for _ in range(3000):
            with contextlib.suppress(OSError):
                naive.add((model / "state.json").read_text())
            with contextlib.suppress(OSError):
                ours.add(written.read(model.parent, "model/state.json", 1000).decode())
    finally:
        done.set()
        thread.join()
    assert ours == {"plain"}
    assert "a secret" in naive, "the control: a reader that follows links is caught"


def test_strange_things_are_named(tmp_path: Path, model: Path) -> None:
    (model / "deep").mkdir()
    (model / "deep" / "link").symlink_to("/etc/passwd")
    assert written.strange(model) == "model/deep/link is a symbolic link"
    (model / "deep" / "link").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(model / "s"))
    assert written.strange(model) == "model/s is a pipe, a socket or a device"
    assert written.strange(tmp_path / "nothing") is None
    (tmp_path / "file").write_text("")
    assert written.strange(tmp_path / "file") == "file is no directory"
