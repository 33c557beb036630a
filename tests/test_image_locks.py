"""Locks of images, held by processes that end in every way."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.run.image_locks import Uses, alone

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "ftloop-train:0123456789ab"
SHARE = f"""
from agent.run.image_locks import Uses
uses = Uses()
uses.share({IMAGE!r})
print(flush=True)
input()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def unused(image: str = IMAGE) -> bool:
    with alone(image) as found:
        return found


def test_an_image_is_used_until_its_process_ends_however_that_ends() -> None:
    assert unused()
    for _ in range(2):
        with subprocess.Popen([sys.executable, "-c", SHARE], stdin=subprocess.PIPE, stdout=-1, cwd=ROOT) as process:
            assert process.stdout
            process.stdout.readline()
            assert not unused()
            assert unused("ftloop-bench:0123456789ab")
            process.kill()
    assert unused()


def test_many_share_and_each_gives_back_its_own() -> None:
    first, second = Uses(), Uses()
    first.share(IMAGE)
    first.share(IMAGE)
    second.share(IMAGE)
    first.release()
    assert not unused()
    second.release()
    assert unused()


def test_whoever_needs_an_image_that_is_being_removed_waits_for_the_end() -> None:
    uses, shared = Uses(), threading.Event()

    def share() -> None:
        uses.share(IMAGE)
        shared.set()

    with alone(IMAGE) as found:
        assert found
        thread = threading.Thread(target=share)
        thread.start()
        assert not shared.wait(0.2)
    assert shared.wait(5)
    thread.join()
    assert not unused()
    uses.release()


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    (cache / "ftloop").write_text("a file")
    with pytest.raises(MachineError, match=r"images/ftloop-train-0123456789ab\.lock"):
        Uses().share(IMAGE)
