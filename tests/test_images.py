"""The Dockerfiles and their locks as text, and the wheels that only this machine's pip knows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from agent.run import wheels
from agent.run.environments import Environments

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILES = sorted(path for path in (ROOT / "docker").rglob("*Dockerfile"))
LOCKS = sorted((ROOT / "docker").glob("*/requirements.*"))


def instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(name, words) of each instruction, continued lines joined, comments left out."""
    lines = [line for line in dockerfile.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(name, words) for name, _, words in (line.partition(" ") for line in joined.split("\n"))]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: str(path.relative_to(ROOT / "docker")))
class TestDockerfiles:
    def test_the_base_is_an_argument(self, dockerfile: Path) -> None:
        found = instructions(dockerfile)
        assert found[0][0] == "ARG"
        assert re.fullmatch(r"BASE(=\S+:\S+)?", found[0][1]), "with a tag, where it has a default"
        assert {words.split()[0] for name, words in found if name == "FROM"} == {"${BASE}"}

    def test_jobs_are_not_root(self, dockerfile: Path) -> None:
        name, words = instructions(dockerfile)[-1]
        assert (name, words) == ("USER", "1000:1000")

    def test_nothing_needs_a_new_builder_or_the_net(self, dockerfile: Path) -> None:
        assert "syntax=" not in dockerfile.read_text()
        for name, words in instructions(dockerfile):
            assert "<<" not in words, "no heredoc"
            assert not (name in ("ADD", "COPY") and re.search(r"://|git@", words))
            assert not re.search(r"\b(curl|wget|apt-get|apt)\b|--mount", words)

    def test_what_is_copied_is_there(self, dockerfile: Path) -> None:
        if dockerfile.name == "update.Dockerfile":
            pytest.skip("its context is made by agent/run/updates.py")
        for name, words in instructions(dockerfile):
            if name in ("ADD", "COPY"):
                assert all((ROOT / "docker" / source).exists() for source in words.split()[:-1])


def test_there_is_an_image_and_a_readme_for_each_purpose() -> None:
    for name in ("train", "bench", "serve"):
        assert (ROOT / "docker" / name / "Dockerfile").exists()
        assert "contract" in (ROOT / "docker" / name / "README.md").read_text()


def test_both_images_begin_with_the_same_layers() -> None:
    """So that an engine keeps torch, which is most of them, once."""
    train, bench = (instructions(ROOT / "docker" / name / "Dockerfile") for name in ("train", "bench"))
    torch = next(index for index, (_, words) in enumerate(train) if "requirements.torch" in words and "pip" in words)
    assert train[: torch + 1] == bench[: torch + 1]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: str(path.relative_to(ROOT / "docker")))
def test_a_lock_pins_each_package_once(lock: Path) -> None:
    names = [re.fullmatch(r"([\w.-]+)==[\w.!+-]+", line) for line in lock.read_text().splitlines()]
    assert all(names)
    unique = {match[1].lower().replace("_", "-") for match in names if match}
    assert len(unique) == len(names)


def test_training_and_evaluation_read_models_with_the_same_versions() -> None:
    def pins(name: str) -> dict[str, str]:
        lines = (ROOT / "docker" / name / "requirements.lock").read_text().split()
        return {package: version for package, _, version in (line.partition("==") for line in lines)}

    train, bench = pins("train"), pins("bench")
    for package in ("transformers", "tokenizers", "safetensors", "peft"):
        assert train[package] == bench[package], package
    assert {"llamafactory", "trl"} <= train.keys()
    assert {"lm_eval", "opencompass", "math-verify"} <= bench.keys()


@pytest.mark.slow
def test_nothing_is_missing_from_the_evaluation_environment(environments: Environments) -> None:
    python = environments.python("bench")
    subprocess.run([python, "-m", "pip", "check"], check=True)
    subprocess.run([python, "-c", "import lm_eval, opencompass.tasks, opencompass.models, math_verify"], check=True)


@pytest.mark.slow
def test_the_training_environment_has_what_trl_needs_for_grpo(environments: Environments) -> None:
    subprocess.run([environments.python("train"), "-c", "from trl import GRPOConfig, GRPOTrainer"], check=True)


# Wheels that only this machine's pip knows


def make_wheel(folder: Path, name: str, version: str) -> None:
    """A wheel of one empty module, made by hand so that no build backend is needed."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        info = f"{name}-{version}.dist-info"
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A requirements.torch; pip is configured by a file, which names two folders."""
    for name in list(os.environ):
        if name.startswith("PIP_"):
            monkeypatch.delenv(name)
    (tmp_path / "pip.conf").write_text(f"[global]\nfind-links =\n    {tmp_path}/one\n    file://{tmp_path}/two\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "requirements.torch").write_text("torch==2.13.0\n")
    return tmp_path / "requirements.torch"


def test_a_machine_without_find_links_serves_nothing(requirements: Path, tmp_path: Path) -> None:
    assert wheels.find_links() == [], "the folders do not exist"
    make_wheel(tmp_path / "one", "torch", "2.12.0")
    make_wheel(tmp_path / "two", "torch", "2.13.01")
    make_wheel(tmp_path / "two", "torchvision", "2.13.0")
    assert wheels.find_links() == [tmp_path / "one", tmp_path / "two"]
    assert wheels.pinned(requirements) == {}


def test_the_folder_that_holds_the_pinned_version_is_taken_whole(requirements: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "one", "other", "1.0")
    make_wheel(tmp_path / "two", "torch", "2.13.0+cpu")
    make_wheel(tmp_path / "two", "needed", "1.0")
    (tmp_path / "two" / "notes.txt").write_text("private")
    assert sorted(wheels.pinned(requirements)) == ["needed-1.0-py3-none-any.whl", "torch-2.13.0+cpu-py3-none-any.whl"]


def test_the_variable_counts_too(requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "three", "torch", "2.13.0")
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://example.invalid/wheels {tmp_path}/three")
    assert list(wheels.pinned(requirements)) == ["torch-2.13.0-py3-none-any.whl"]


def test_pip_installs_what_is_served_and_nothing_else_is(requirements: Path, tmp_path: Path) -> None:
    make_wheel(tmp_path / "two", "torch", "2.13.0+cpu")
    (tmp_path / "two" / "notes.txt").write_text("private")
    with wheels.served(wheels.pinned(requirements)) as address:
        assert address.startswith("http://127.0.0.1:")
        argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-index", "--dest", str(tmp_path / "got")]
        subprocess.run([*argv, "--find-links", address, "--requirement", requirements], check=True)
        assert [path.name for path in (tmp_path / "got").iterdir()] == ["torch-2.13.0+cpu-py3-none-any.whl"]
        for path in ("notes.txt", "../pip.conf", "%2e%2e/pip.conf", "etc/passwd"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(address + path)
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)


def test_equal_wheels_get_the_same_address_unless_it_is_taken(requirements: Path, tmp_path: Path) -> None:
    """An engine's layer cache compares build arguments."""
    make_wheel(tmp_path / "two", "torch", "2.13.0+cpu")
    found = wheels.pinned(requirements)
    with wheels.served(found) as first, wheels.served(found) as meanwhile:
        assert first != meanwhile
    with wheels.served(found) as second:
        assert second == first
