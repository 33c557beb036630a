"""The tail of a log is readable, bounded, and never the content of another file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.run.logs import create, out_of_memory, tail


def test_it_is_what_a_terminal_would_show(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_bytes(b"\x1b[31mred\x1b[0m\r\n\n 10%|#  \r100%|###\r\nbell\x07 \xff\n")
    assert tail(log).splitlines() == ["red", "100%|###", "bell \N{REPLACEMENT CHARACTER}"]


def test_it_is_bounded(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert tail(log, lines=2).splitlines() == ["line 99998", "line 99999"]
    log.write_text("x" * 1_000_000)
    assert len(tail(log, limit=100)) == 100


def test_a_missing_log_has_no_tail(tmp_path: Path) -> None:
    assert tail(tmp_path / "job.log") == ""


@pytest.mark.parametrize("make", [lambda log, other: log.symlink_to(other), lambda log, _: os.mkfifo(log)])
def test_a_log_that_the_job_replaced_is_not_followed(tmp_path: Path, make) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "other"
    other.write_text("private")
    make(tmp_path / "job.log", other)
    assert tail(tmp_path / "job.log") == ""


def test_a_new_log_replaces_a_link_and_not_its_target(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("private")
    (tmp_path / "job.log").symlink_to(other)
    os.close(create(tmp_path / "job.log"))
    assert other.read_text() == "private"
    assert (tmp_path / "job.log").read_text() == ""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory.", True),
        ("Traceback ...\nMemoryError", True),
        ("RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("the MemoryError class is documented", False),
        ("loss 1.0", False),
    ],
)
def test_out_of_memory_is_recognised(text: str, found: bool) -> None:
    assert out_of_memory(text) is found
