"""Virtual environments are built once, again after a break, and by one process at a time; with real pip, offline."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from agent.errors import MachineError
from agent.run import environments as module
from agent.run.environments import Environments, default_root

ROOT = Path(__file__).resolve().parent.parent


def make_wheel(folder: Path, name: str, code: str) -> None:
    """A wheel of one module, made by hand so that no build backend is needed."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        info = f"{name}-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like docker/, whose requirements are two tiny wheels that only the user's pip configuration finds."""
    folder = tmp_path / "recipes"
    (folder / "train" / "overlay").mkdir(parents=True)
    (folder / "requirements.torch").write_text("torchlike==1.0\n")
    (folder / "train" / "requirements.lock").write_text("factory==1.0\n")
    (folder / "train" / "overlay" / "audio.py").write_text("NAME = 'stand-in'\n")
    make_wheel(tmp_path / "wheels", "torchlike", "NAME = 'torch'\n")
    make_wheel(tmp_path / "wheels", "factory", "import audio, torchlike\nprint(audio.NAME, torchlike.NAME)\n")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(module, "NEEDED_BYTES", 1)
    return folder


def run(python: Path, code: str) -> str:
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_it_is_built_once_with_progress_and_overlay(tmp_path: Path, recipes: Path) -> None:
    said: list[str] = []
    environments = Environments(tmp_path / "root", recipes)
    environments.ready("train", said.append)
    assert run(environments.python("train"), "import factory") == "stand-in torch"
    assert any("torch" in line for line in said)
    assert "ready" in said[-1]
    said.clear()
    environments.ready("train", said.append)
    assert said == []


@pytest.mark.parametrize(("cuda", "installed"), [("'12.8'", True), ("None", False)])
def test_packages_for_gpus_come_with_a_cuda_build_of_torch_alone(
    tmp_path: Path, recipes: Path, cuda: str, installed: bool
) -> None:
    """As in docker/train/Dockerfile; a stub plays torch, as no test machine has both builds."""
    make_wheel(tmp_path / "wheels", "torch", f"class version:\n    cuda = {cuda}\n")
    make_wheel(tmp_path / "wheels", "zero", "")
    (recipes / "requirements.torch").write_text("torch==1.0\ntorchlike==1.0\n")
    (recipes / "train" / "requirements.gpu").write_text("zero==1.0\n")
    said: list[str] = []
    environments = Environments(tmp_path / "root", recipes)
    environments.ready("train", said.append)
    found = run(
        environments.python("train"), "import importlib.util; print(importlib.util.find_spec('zero') is not None)"
    )
    assert found == str(installed)
    assert any("packages for GPUs" in line for line in said) == installed


def test_a_torch_that_does_not_start_is_a_broken_build(tmp_path: Path, recipes: Path) -> None:
    make_wheel(tmp_path / "wheels", "torch", "raise ImportError('libcudart.so.12: cannot open shared object file')")
    (recipes / "requirements.torch").write_text("torch==1.0\ntorchlike==1.0\n")
    (recipes / "train" / "requirements.gpu").write_text("")
    environments = Environments(tmp_path / "root", recipes)
    with pytest.raises(MachineError, match="libcudart"):
        environments.ready("train", print)
    assert not list((tmp_path / "root").rglob(".complete"))


def test_another_lock_or_overlay_is_another_environment(tmp_path: Path, recipes: Path) -> None:
    environments = Environments(tmp_path / "root", recipes)
    seen = {environments.python("train")}
    (recipes / "train" / "requirements.gpu").write_text("zero==1.0\n")
    assert environments.python("train") not in seen
    for file in ("requirements.torch", "train/requirements.lock", "train/requirements.gpu", "train/overlay/audio.py"):
        (recipes / file).write_text((recipes / file).read_text() + "\n# changed\n")
        seen.add(environments.python("train"))
    assert len(seen) == 5
    (recipes / "train" / "program.py").write_text("programs are mounted, not installed")
    assert environments.python("train") in seen


def test_an_incomplete_one_is_built_anew(tmp_path: Path, recipes: Path) -> None:
    environments = Environments(tmp_path / "root", recipes)
    python = environments.python("train")
    python.parent.mkdir(parents=True)
    python.write_text("half an interpreter")
    environments.ready("train", print)
    assert run(python, "import factory") == "stand-in torch"


def test_a_failure_says_why_and_what_to_do_and_gives_no_key_away(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Build scripts of packages run as the user: they get pip's own configuration and nothing else."""
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret")
    # pip fills in the variables that it has
    (recipes / "train" / "requirements.lock").write_text("factory @ file:///nowhere/${OPENAI_API_KEY}\n")
    environments = Environments(tmp_path / "root", recipes)
    with pytest.raises(MachineError, match="/nowhere/") as caught:
        environments.ready("train", print)
    assert "${OPENAI_API_KEY}" in caught.value.message
    assert ".log" in caught.value.message
    assert "PIP_FIND_LINKS" in caught.value.hint
    assert not list((tmp_path / "root").rglob(".complete"))


def test_a_full_disk_is_found_before_anything_is_built(
    tmp_path: Path, recipes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NEEDED_BYTES", 2**60)
    environments = Environments(tmp_path / "root", recipes)
    with pytest.raises(MachineError, match="GB") as caught:
        environments.ready("train", print)
    assert "FT_ENVIRONMENTS" in caught.value.hint
    assert not environments.python("train").exists()


def test_a_root_that_cannot_be_made_names_the_setting(tmp_path: Path, recipes: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot make") as caught:
        Environments(tmp_path / "file" / "root", recipes).ready("train", print)
    assert "FT_ENVIRONMENTS" in caught.value.hint


def test_two_processes_build_it_once(tmp_path: Path, recipes: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from agent.run import environments as e; e.NEEDED_BYTES = 1\n"
        f"e.Environments(Path({str(tmp_path / 'root')!r}), Path({str(recipes)!r})).ready('train', print)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    outputs = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("ready after" in output for output in outputs) == 1
    assert sum("waiting" in output for output in outputs) == 1


def test_the_root_follows_xdg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "ftloop" / "environments"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_root() == Path.home() / ".cache" / "ftloop" / "environments"


@pytest.mark.parametrize("name", ["train", "bench"])
def test_locks_pin_every_package(name: str) -> None:
    lines = (ROOT / "docker" / name / "requirements.lock").read_text().splitlines()
    assert all(line.count("==") == 1 for line in lines)
    assert not any(line.lower().startswith("torch==") for line in lines), "torch has a file of its own"
