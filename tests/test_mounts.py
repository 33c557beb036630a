"""The user that jobs run as can write what it must and read what it is given, or is told so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.run import Job, Mount
from agent.run.mounts import hand_over, unreadable

NOBODY = 54321
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root has jobs that run as another user")


def job(*mounts: Mount) -> Job:
    return Job(name="job", environment="train", argv=("true",), cwd="/", log="/log", deadline=1.0, mounts=mounts)


def test_a_private_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    weights = tmp_path / "model" / "deep" / "weights"
    weights.write_text("")
    weights.chmod(0o600)
    assert unreadable(str(tmp_path / "model"), NOBODY, NOBODY) == str(weights)
    with pytest.raises(MachineError, match=str(weights)) as caught:
        hand_over(job(Mount(str(tmp_path / "model"))), NOBODY, NOBODY)
    assert f"chmod -R a+rX {tmp_path / 'model'}" in caught.value.hint
    assert "FT_FILE_PATH" in caught.value.hint
    weights.chmod(0o644)
    assert unreadable(str(tmp_path / "model"), NOBODY, NOBODY) is None


def test_owner_group_and_others_are_told_apart(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    uid, gid = file.stat().st_uid, file.stat().st_gid
    file.chmod(0o040)
    assert unreadable(str(file), NOBODY, gid) is None
    assert unreadable(str(file), uid, gid) == str(file), "an owner is not also a member of the group"
    file.chmod(0o400)
    assert unreadable(str(file), uid, NOBODY) is None
    assert unreadable(str(file), NOBODY, gid) == str(file)


def test_a_directory_must_be_entered_too(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o744)
    assert unreadable(str(tmp_path / "d"), NOBODY, NOBODY) == str(tmp_path / "d")


def test_links_are_the_jobs_own_affair(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    (tmp_path / "secret").chmod(0o600)
    (tmp_path / "d").mkdir(mode=0o755)
    (tmp_path / "d" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "to-d").symlink_to(tmp_path / "d")
    assert unreadable(str(tmp_path / "to-d"), NOBODY, NOBODY) is None


@as_root
def test_writable_mounts_belong_to_the_jobs_user_and_nothing_behind_a_link_does(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    stage = tmp_path / "stage"
    (stage / "data").mkdir(parents=True)
    (stage / "data" / "rows").write_text("")
    (stage / "link").symlink_to(tmp_path / "other")
    hand_over(job(Mount(str(stage), writable=True)), NOBODY, NOBODY)
    assert {path.lstat().st_uid for path in (stage, *stage.rglob("*"))} == {NOBODY}
    assert (tmp_path / "other").stat().st_uid == 0
