"""A root caller whose files lie below /root: jobs reach what they are given and no more, or are told what is closed."""

from __future__ import annotations

import io
import os
import shutil
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.run import Mount
from agent.run.containers import DockerRunner, connect
from agent.run.images import remove
from tests.conformance.images import make_image
from tests.conformance.runners import GRACE, python_job

pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(os.getuid() != 0, reason="only root has files below /root"),
]
NAME = "ftloop-conformance-private-home:1"


@pytest.fixture(scope="module")
def runner() -> Iterator[DockerRunner]:
    """A runner of the conformance image with a /root as Debian's images have it, for root alone."""
    client = connect()
    home = tarfile.TarInfo("root")
    home.type, home.mode = tarfile.DIRTYPE, 0o700
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.addfile(home)
        # The Python of the tests may itself have its library below /root.
        for library in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython*.so.*"):
            archive.add(library.resolve(), arcname=f"opt/lib/{library.name}")
    context = io.BytesIO()
    dockerfile = f"FROM {make_image(client)}\nADD layer.tar /\nENV LD_LIBRARY_PATH=/opt/lib\n".encode()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, content in (("Dockerfile", dockerfile), ("layer.tar", layer.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    context.seek(0)
    for event in client.api.build(fileobj=context, custom_context=True, tag=NAME, rm=True, decode=True):
        assert "error" not in event, event
    yield DockerRunner(client, {"train": NAME, "bench": NAME}, grace=GRACE)
    remove(client, [NAME])
    client.close()


@pytest.fixture
def lab() -> Iterator[Path]:
    """A workspace below /root."""
    directory = Path(tempfile.mkdtemp(prefix="ftloop-test-", dir="/root"))
    directory.chmod(0o700)
    (directory / "model").mkdir(mode=0o755)
    (directory / "model" / "weights").write_text("42")
    (directory / "model" / "weights").chmod(0o644)
    (directory / "journal").write_text("not mounted")
    yield directory
    shutil.rmtree(directory)


def test_a_job_reaches_its_mounts_below_root_and_nothing_else(runner: DockerRunner, lab: Path) -> None:
    volumes = len(connect().volumes.list())
    code = (
        "import os\n"
        f"print(open('{lab}/model/weights').read(), os.listdir('/root'), sorted(os.listdir('{lab}')))\n"
        "open('out', 'w').write('done')\n"
        "open('/root/x', 'w')"
    )
    mounts = (Mount(str(lab / "model")), Mount(str(lab / "work"), writable=True))
    outcome = runner.run(python_job(lab / "work", code, mounts=mounts))
    assert f"42 ['{lab.name}'] ['model', 'work']" in outcome.tail, outcome
    assert "Permission denied: '/root/x'" in outcome.tail
    assert (lab / "work" / "out").read_text() == "done"
    assert len(connect().volumes.list()) == volumes, "the volume goes with its container"


def test_what_a_umask_closed_is_named_before_a_container_starts(runner: DockerRunner, lab: Path) -> None:
    (lab / "model" / "weights").chmod(0o600)
    mounts = (Mount(str(lab / "model")), Mount(str(lab / "work"), writable=True))
    with pytest.raises(MachineError, match=f"{lab}/model/weights cannot be read by the user 1000") as caught:
        runner.run(python_job(lab / "work", "open('out', 'w')", mounts=mounts))
    assert f"chmod -R a+rX {lab}/model" in caught.value.hint
    assert not (lab / "work" / "out").exists()
