"""What a job writes is counted, whatever it does to escape the count."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from agent.run import Job, Mount, disk

MB = 1 << 20


def job(directory: Path, **more: str) -> Job:
    return Job(
        name="job",
        environment="train",
        argv=("true",),
        cwd=str(directory),
        log=more.get("log", str(directory / "job.log")),
        deadline=1.0,
        mounts=(Mount(str(directory), writable=True), Mount("/usr")),
    )


def nest(directory: Path, depth: int, name: str = "d") -> None:
    """Directories in directories, deeper than any path can say."""
    here = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        inner = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def test_what_lies_in_writable_mounts_and_the_log_is_counted(tmp_path: Path) -> None:
    work = tmp_path / "work"
    (work / "a" / "b").mkdir(parents=True)
    (work / "a" / "b" / "weights").write_bytes(b"x" * MB)
    log = tmp_path / "job.log"
    log.write_bytes(b"x" * MB)
    assert disk.Meter(job(work, log=str(log)), 3 * MB).last() is None
    assert "FT_TRIAL_DISK" in (disk.Meter(job(work, log=str(log)), 2 * MB).last() or "")
    assert disk.Meter(job(work, log=str(log)), None).last() is None


def test_a_log_inside_the_mount_counts_once(tmp_path: Path) -> None:
    (tmp_path / "job.log").write_bytes(b"x" * MB)
    assert disk.Meter(job(tmp_path), MB + MB // 2).last() is None


def test_empty_files_count_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/usr")
    assert disk.Meter(job(tmp_path), MB).last() is None
    for number in range(300):
        (tmp_path / str(number)).touch()
    assert disk.Meter(job(tmp_path), MB).last()


def test_a_look_is_rare_and_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20_000):
        (tmp_path / str(number)).touch()
    meter = disk.Meter(job(tmp_path), 20_000 * 4096 - MB)
    assert meter.look() is None, "none is due yet"
    monkeypatch.setattr(disk, "PAUSE", 0.0)
    monkeypatch.setattr(disk, "SLICE", 0.002)
    meter = disk.Meter(job(tmp_path), 20_000 * 4096 - MB)
    looks, longest, reason = 0, 0.0, None
    while reason is None:
        started = time.monotonic()
        reason = meter.look()
        longest = max(longest, time.monotonic() - started)
        looks += 1
        assert looks < 1000
    assert looks > 1, "one count went on over several looks"
    assert longest < 0.5


@pytest.mark.parametrize(("depth", "name"), [(2000, "d"), (40, "x" * 250)])
def test_a_nest_too_deep_to_be_deleted_is_found_and_deleted(tmp_path: Path, depth: int, name: str) -> None:
    nest(tmp_path, depth, name)
    (tmp_path / "kept").touch()
    assert "deep" in (disk.Meter(job(tmp_path), None).last() or "")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_the_nest_is_what_ordinary_deletion_cannot_do(tmp_path: Path) -> None:
    nest(tmp_path, 2000)
    with pytest.raises((RecursionError, OSError)):
        shutil.rmtree(tmp_path / "d")
    disk.remove(str(tmp_path / "d"))
    assert not list(tmp_path.iterdir())


def test_what_is_locked_away_is_deleted_too(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "file").touch()
    (tmp_path / "d" / "e").chmod(0)
    (tmp_path / "d").chmod(0)
    disk.remove(str(tmp_path / "d"))
    assert not list(tmp_path.iterdir())


def test_a_disk_with_room_is_not_full(tmp_path: Path) -> None:
    assert not disk.full(str(tmp_path))
    assert not disk.full(str(tmp_path / "nothing"))
