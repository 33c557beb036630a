"""Imports point down, importing has no effects, and running the loop as a script loads it once."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Bottom to top. A module may import modules of lower layers, and of its own package.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("agent.errors",),
    ("agent.records",),
    ("agent.resources", "agent.values", "agent.money"),
    ("agent.settings", "agent.options", "agent.journal", "agent.budget", "agent.store"),
    ("agent.run", "agent.hardware", "agent.hub", "agent.llm", "agent.accept", "agent.space", "agent.prompts"),
    ("agent.gateway", "agent.verdicts"),
    ("scenarios",),
    ("agent.propose", "agent.report"),
    ("agent.interrupted",),
    ("agent.study",),
    ("agent.confirm", "agent.ruler", "agent.chat"),
    ("agent.library",),
    ("agent.briefing", "agent.gather", "agent.llama_factory", "agent.plans"),
    ("agent.data_work",),
    ("agent.wiring",),
    ("agent.dry_run", "agent.checks", "agent.removal", "agent.experiments"),
    ("agent.doctor", "agent.clean"),
    ("agent.loop",),
    ("agent.cli",),
)


def modules() -> list[str]:
    files = [path for top in ("agent", "scenarios") for path in (ROOT / top).rglob("*.py")]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files)
    return sorted(name.removesuffix(".__init__") for name in names)


def layer(module: str) -> int | None:
    """The index of the layer that owns a module, by its longest matching prefix; None for the bare package."""
    owners = [
        (len(prefix), index)
        for index, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(f"{prefix}.")
    ]
    return max(owners)[1] if owners else None


def imports(module: str) -> set[str]:
    path = ROOT / Path(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute here"
            found.update({f"{node.module}.{alias.name}" for alias in node.names} | {node.module or ""})
    known = set(modules())
    return {name for name in found if name in known and name != module}


def upward(module: str, imported: str) -> bool:
    mine, theirs = layer(module), layer(imported)
    if mine is None or theirs is None:
        return False
    one_package = module.split(".")[:2] == imported.split(".")[:2] or module.startswith(f"{imported}.")
    return theirs > mine or (theirs == mine and not one_package)


@pytest.mark.parametrize("module", modules())
def test_every_module_has_a_layer(module: str) -> None:
    assert layer(module) is not None or module in ("agent",), f"name the layer of {module} in LAYERS"


@pytest.mark.parametrize("module", modules())
def test_imports_point_down(module: str) -> None:
    wrong = sorted(name for name in imports(module) if upward(module, name))
    assert not wrong, f"{module} may not import {wrong}"


def test_the_rule_can_fail() -> None:
    assert upward("agent.journal", "agent.loop")
    assert upward("scenarios.finetune.training", "agent.propose.tpe")
    assert upward("agent.journal", "agent.store")
    assert not upward("agent.loop", "agent.journal")
    assert not upward("scenarios.finetune.training", "scenarios.finetune.data")


def test_docker_folder_is_no_package() -> None:
    assert not list((ROOT / "docker").rglob("__init__.py"))


def test_imports_have_no_effects(tmp_path: Path) -> None:
    """Importing everything prints nothing, writes nothing and loads none of the heavy libraries."""
    names = [name for name in modules() if not name.startswith("scenarios.finetune.programs")]
    code = "import sys, " + ", ".join(names) + "\nprint(*sorted({m.split('.')[0] for m in sys.modules}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not {"torch", "openai", "optuna", "docker", "matplotlib", "huggingface_hub", "pyarrow"} & set(
        done.stdout.split()
    )
    assert not list(tmp_path.iterdir())


def test_loop_as_a_script_is_loaded_once(tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['agent/loop.py', '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "import agent.loop\n"
        "assert not any('/agent' == p[-6:] for p in sys.path), sys.path\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    script = subprocess.run([sys.executable, "agent/loop.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    assert "--loop_n" in script.stdout
