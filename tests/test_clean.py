"""`ftloop clean` on real studies, downloads, environments and processes; what is foreign or in use must survive it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent.clean import HOUR, Wanted, clean
from agent.errors import StudyError
from agent.journal import Journal
from agent.loop import run_call
from agent.removal import Item, Remover
from agent.run.containers import JOB_LABEL, OWNER_LABEL, connect, docker_answers
from agent.run.environments import Environments
from agent.run.images import build
from agent.run.owner import this_process
from agent.run.supervisor import marked
from agent.settings import Settings, load
from agent.store import StudyPaths
from tests.conformance.images import make_image
from tests.toy import Listed, lab

if TYPE_CHECKING:
    from docker import DockerClient

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = Wanted(checkpoints=True)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A workspace and an environments root of this test's own, and no engine."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    (tmp_path / "lab").mkdir()
    return load({}, None, {"FT_FILE_PATH": "lab", "FT_ENVIRONMENTS": str(tmp_path / "environments")}, tmp_path)


def cleaned(settings: Settings, wanted: Wanted = Wanted()) -> dict[str, Item]:  # noqa: B008 - frozen
    """What became of each thing; processes that other programs of this machine left behind are not ours to count."""
    return {item.what: item for item in clean(settings, wanted) if not item.what.startswith("processes")}


def fates(items: dict[str, Item]) -> dict[str, str]:
    return {what: item.fate for what, item in items.items()}


def search(settings: Settings, *skills: float, loop_n: int | None = None, step_n: int | None = None) -> StudyPaths:
    """Work on the toy study; six stages are a trial, and a call that counts stages leaves the test sealed."""
    with lab(settings.file_path, proposer=Listed(skills), loop_n=loop_n, step_n=step_n) as toy:
        run_call(toy)
    return StudyPaths(settings.file_path / "studies" / "toy")


def tree(root: Path) -> dict[str, bytes | str]:
    """Every file and link below `root`, with its content or target."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def age(path: Path, seconds: float = 2 * HOUR) -> None:
    for each in [path, *path.rglob("*")]:
        os.utime(each, (time.time() - seconds,) * 2, follow_symlinks=False)


@contextmanager
def holder(lock: Path) -> Iterator[int]:
    """Another process that holds a lock as ftloop does, with its pid in the file."""
    code = (
        "import fcntl, os, sys; f = open(sys.argv[1], 'a+'); fcntl.flock(f, fcntl.LOCK_EX); f.truncate(0); "
        "f.write(str(os.getpid())); f.flush(); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield process.pid
    finally:
        process.communicate()


# What dead owners left behind


def test_a_clean_workspace_stays_as_it_is(settings: Settings) -> None:
    search(settings, 0.9, loop_n=1)
    before = tree(settings.file_path)
    assert cleaned(settings) == {}
    assert tree(settings.file_path) == before


def test_no_workspace_is_nothing_to_clean_and_none_is_made(settings: Settings) -> None:
    settings.file_path.rmdir()
    assert cleaned(settings, Wanted(checkpoints=True, environments=True)) == {}
    assert not settings.file_path.exists()


def download(settings: Settings, name: str, *, lock: bool = True) -> Path:
    work = settings.file_path / "models" / ".partial" / name
    (work / "files" / ".cache").mkdir(parents=True)
    (work / "files" / "model.safetensors").write_bytes(bytes(1000))
    (work / "files" / ".cache" / "part.incomplete").write_bytes(bytes(234))
    if lock:
        (work / "lock").touch()
    return work


def test_half_made_downloads_go_unless_somebody_works_on_them(settings: Settings) -> None:
    dead, live, foreign = (download(settings, name, lock=name != "foreign") for name in ("dead", "live", "foreign"))
    with holder(live / "lock"):
        found = cleaned(settings)
    assert fates(found) == {"models/.partial/dead/files": "removed", "models/.partial/live": "kept"}
    assert found["models/.partial/dead/files"].bytes == 1234
    assert [path.name for path in dead.iterdir()] == ["lock"]
    assert (live / "files" / "model.safetensors").exists()
    assert (foreign / "files" / "model.safetensors").exists()


def test_temporary_directories_go_when_they_are_old(settings: Settings) -> None:
    names = {
        "models/.making-ab12_xyz": "removed",
        "models/demo/.tiny.0123456789ab": "removed",
        "scores/.ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12.0123456789ab": "removed",
        "models/.making-young_12": "kept",
        "models/.making-my-own-things": "untouched",
        "models/lab/.tiny.0123456789ab": "untouched",
        "datasets/.making-ab12_xyz": "untouched",
    }
    for name in names:
        (settings.file_path / name).mkdir(parents=True)
        (settings.file_path / name / "file").write_text("x")
        age(settings.file_path / name)
    os.utime(settings.file_path / "models/.making-young_12/file")  # the directory is old, what is in it is not
    assert fates(cleaned(settings)) == {name: fate for name, fate in names.items() if fate != "untouched"}
    for name, fate in names.items():
        assert (settings.file_path / name / "file").exists() == (fate != "removed"), name


def test_predictions_that_nobody_judges_go_after_a_week(settings: Settings) -> None:
    key, scores = "ab12" * 16, settings.file_path / "scores"
    names = {
        f"{key}.predictions.jsonl": "removed",
        f".{key}.predictions.jsonl.123.draft": "removed",
        f"{'0' * 64}.predictions.jsonl": "young",
        "my.predictions.jsonl": "foreign",
    }
    scores.mkdir(parents=True)
    for name, fate in names.items():
        (scores / name).write_text("x" * 10)
        old = time.time() - (6 if fate == "young" else 8) * 24 * HOUR
        os.utime(scores / name, (old, old))
    (scores / f"{'1' * 64}.predictions.jsonl").symlink_to(scores / "my.predictions.jsonl")
    going = {f"scores/{name}" for name, fate in names.items() if fate == "removed"}
    assert fates(cleaned(settings, Wanted(dry_run=True))) == dict.fromkeys(going, "would go")
    assert all((scores / name).exists() for name in names)
    found = cleaned(settings)
    assert fates(found) == dict.fromkeys(going, "removed")
    assert {item.bytes for item in found.values()} == {10}
    assert {name for name in names if (scores / name).exists()} == {n for n, f in names.items() if f != "removed"}


def test_drafts_of_outputs_go_with_their_study_idle(settings: Settings) -> None:
    paths = search(settings, 0.9, loop_n=1)
    output = settings.file_path / "output"
    for name in (".toy.new", ".toy.old", ".foreign.new"):
        (output / name).mkdir()
        (output / name / "weights").write_text("half")
    with holder(paths.lock) as pid:
        busy = cleaned(settings)
        assert fates(busy) == {"studies/toy": "kept"}
        assert f"process {pid}" in busy["studies/toy"].why
    assert (output / ".toy.new" / "weights").exists()
    assert fates(cleaned(settings)) == {"output/.toy.new": "removed", "output/.toy.old": "removed"}
    assert sorted(path.name for path in output.iterdir()) == [".foreign.new", "toy"]


def test_a_winner_between_two_renames_is_kept(settings: Settings) -> None:
    search(settings, 0.9, loop_n=1)
    output = settings.file_path / "output"
    (output / "toy").rename(output / ".toy.old")
    assert fates(cleaned(settings, CHECKPOINTS)) == {
        "output/.toy.old": "kept",
        "studies/toy/trials/0001/train/model": "kept",
    }
    assert (output / ".toy.old" / "weights").exists()


def test_what_confirming_left_goes_unless_it_is_still_to_be_scored(settings: Settings) -> None:
    paths = search(settings, 0.6, 0.9, loop_n=2)
    assert Journal(paths.journal).state.best == 2
    for number in (1, 2):
        paths.weights(number, "confirm-1-train").mkdir(parents=True)
    place = "studies/toy/trials/000{}/confirm-1-train/model"
    assert cleaned(settings) == {}
    found = fates(cleaned(settings, CHECKPOINTS))
    assert (found[place.format(1)], found[place.format(2)]) == ("removed", "kept")


def test_processes_of_a_dead_call_are_ended_and_others_live(settings: Settings, tmp_path: Path) -> None:
    def job(name: str) -> subprocess.Popen[bytes]:
        code = f"import time; open({str(tmp_path / name)!r}, 'w').close(); time.sleep(600)"
        owner = subprocess.Popen(
            [sys.executable, "-m", "tests.conformance.runners", "local", "", tmp_path / f"{name}-job", code], cwd=ROOT
        )
        while not (tmp_path / name).exists():
            time.sleep(0.02)
        return owner

    dead, live = job("dead"), job("live")

    def left(owner: subprocess.Popen[bytes]) -> list[int]:
        return list(marked(lambda token: token.split("/")[3] == str(owner.pid)))

    mine = left(dead)
    for pid in mine:  # the supervisor would end the job at once, and clean would have nothing to do
        if b"supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGSTOP)
    os.kill(dead.pid, signal.SIGKILL)
    dead.wait()
    assert left(dead)
    dry = [item for item in clean(settings, Wanted(dry_run=True)) if item.what.startswith("processes")]
    assert ("processes of the job owned", "would go") in [(item.what, item.fate) for item in dry]
    assert left(dead), "a dry run ends nothing"
    items = [item for item in clean(settings, Wanted()) if item.what.startswith("processes")]
    assert ("processes of the job owned", "removed") in [(item.what, item.fate) for item in items]
    assert not left(dead)
    assert left(live)
    live.send_signal(signal.SIGINT)
    live.wait()


# Checkpoints


def test_a_finished_studys_weights_go_and_everything_else_stays(settings: Settings) -> None:
    paths = search(settings, 0.5, 0.9, loop_n=2)
    for number in (1, 2):  # killed between a trial's end and its pruning
        paths.weights(number, "mini-run").mkdir(parents=True, exist_ok=True)
        paths.weights(number, "train").mkdir(parents=True, exist_ok=True)
        (paths.weights(number, "train") / "weights").write_text("0.9")
        (paths.weights(number, "train") / "training_args.bin").write_text("a pickle, not published")
    before = tree(settings.file_path)
    dry = cleaned(settings, Wanted(checkpoints=True, dry_run=True))
    assert tree(settings.file_path) == before
    found = cleaned(settings, CHECKPOINTS)
    weights = [f"studies/toy/trials/000{number}/{stage}/model" for number in (1, 2) for stage in ("mini-run", "train")]
    assert fates(found) == dict.fromkeys(weights, "removed")
    assert [item.bytes for item in dry.values()] == [item.bytes for item in found.values()] == [0, 26, 0, 26]
    assert tree(settings.file_path) == {name: content for name, content in before.items() if "/model/" not in name}
    assert (settings.file_path / "output" / "toy" / "weights").read_text() == "0.9"
    again = search(settings, 0.5, 0.9, 0.2, loop_n=1)
    assert [trial.verdict for trial in Journal(again.journal).state.trials] == ["better", "better", "worse"]


def test_a_published_winner_whose_checkpoint_went_stays_as_it_is(settings: Settings) -> None:
    """Whatever its user did to the recipe beside it; there is nothing left to copy it from."""
    paths = search(settings, 0.9, loop_n=1)
    cleaned(settings, CHECKPOINTS)
    assert not paths.weights(1, "train").exists()
    recipe = settings.file_path / "output" / "toy" / "recipe.yaml"
    recipe.write_text("mine now\n")
    search(settings, 0.9, 0.2, loop_n=1)
    assert recipe.read_text() == "mine now\n"
    assert (recipe.parent / "weights").read_text() == "0.9"


def test_a_winner_that_is_nowhere_any_more_is_told(settings: Settings) -> None:
    paths = search(settings, 0.9, loop_n=1)
    cleaned(settings, CHECKPOINTS)
    shutil.rmtree(settings.file_path / "output" / "toy")
    with pytest.raises(StudyError, match=r"trial 1's weights are neither in .*/toy any more") as stopped:
        search(settings, 0.9, 0.2, loop_n=1)
    assert str(paths.root) in stopped.value.hint
    state = Journal(paths.journal).state
    assert [trial.verdict for trial in state.trials] == ["better", "worse"], "what was done is recorded"
    assert "neither in" in (state.calls[-1].ended or "")


def test_an_unfinished_studys_best_and_the_trial_in_hand_stay(settings: Settings) -> None:
    paths = search(settings, 0.9, 0.2, step_n=6 + 4)
    found = cleaned(settings, CHECKPOINTS)
    assert fates(found) == {
        "studies/toy/trials/0001/train/model": "kept",
        "studies/toy/trials/0002/train/model": "kept",
    }
    assert [item.why for item in found.values()] == [
        "trial 1 is the best of a study that is not finished",
        "trial 2 is not over",
    ]
    search(settings, 0.9, 0.2, loop_n=1)
    state = Journal(paths.journal).state
    assert [trial.verdict for trial in state.trials] == ["better", "worse"]
    assert state.attempts[(2, "train")] == 1, "nothing is paid for twice"


@pytest.mark.parametrize("damage", ["gone", "short", "other trial", "no recipe"])
def test_without_a_whole_published_copy_the_winner_stays(settings: Settings, damage: str) -> None:
    search(settings, 0.9, loop_n=1)
    output = settings.file_path / "output" / "toy"
    if damage == "gone":
        shutil.rmtree(output)
    elif damage == "short":
        (output / "weights").write_text("0")
    elif damage == "other trial":
        (output / "recipe.yaml").write_text("# toy, trial 7\n")
    else:
        (output / "recipe.yaml").unlink()
    assert fates(cleaned(settings, CHECKPOINTS)) == {"studies/toy/trials/0001/train/model": "kept"}


def test_a_live_study_is_refused_with_its_holder(settings: Settings) -> None:
    paths = search(settings, 0.9, loop_n=1)
    before = tree(settings.file_path)
    with holder(paths.lock) as pid:
        found = cleaned(settings, CHECKPOINTS)
        before["studies/toy/study.lock"] = str(pid).encode()
        assert tree(settings.file_path) == before
    assert fates(found) == {"studies/toy": "kept"}
    assert f"process {pid}" in found["studies/toy"].why


def test_while_it_is_cleaned_nobody_else_gets_the_study(settings: Settings) -> None:
    paths = search(settings, 0.9, loop_n=1)
    items = clean(settings, CHECKPOINTS)
    next(item for item in items if item.what.startswith("studies/"))
    code = "import fcntl, sys; fcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    other = [sys.executable, "-c", code, str(paths.lock)]
    assert subprocess.run(other, capture_output=True).returncode != 0
    items.close()
    assert subprocess.run(other, capture_output=True).returncode == 0


def test_a_corrupt_journal_keeps_its_study(settings: Settings) -> None:
    paths = search(settings, 0.9, loop_n=1)
    paths.journal.write_text("not a journal\n" + paths.journal.read_text())
    before = tree(settings.file_path)
    assert fates(cleaned(settings, CHECKPOINTS)) == {"studies/toy": "kept"}
    assert tree(settings.file_path) == before


# Links and foreign files


@pytest.mark.parametrize(
    "link",
    [
        "studies",
        "studies/toy",
        "studies/toy/trials",
        "studies/toy/trials/0001",
        "studies/toy/trials/0001/train",
        "studies/toy/trials/0001/train/model",
        "studies/toy/study.lock",
        "output",
        "output/.toy.new",
        "models",
        "models/.partial",
        "models/.partial/name",
        "models/.partial/name/files",
        "models/.partial/name/lock",
        "models/.making-ab12_xyz",
        "scores",
    ],
)
def test_nothing_behind_a_link_is_touched(settings: Settings, tmp_path: Path, link: str) -> None:
    search(settings, 0.9, loop_n=1)
    download(settings, "name")
    for name in (
        "output/.toy.new",
        "models/.making-ab12_xyz",
        "scores/.ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12ab12.0123456789ab",
    ):
        (settings.file_path / name).mkdir(parents=True)
        (settings.file_path / name / "file").write_text("x")
    away = tmp_path / "elsewhere"
    age(settings.file_path)
    (settings.file_path / link).rename(away)
    before = tree(away) if away.is_dir() else away.read_bytes()
    (settings.file_path / link).symlink_to(away)
    found = cleaned(settings, CHECKPOINTS)
    assert (tree(away) if away.is_dir() else away.read_bytes()) == before
    assert (settings.file_path / link).is_symlink()
    assert "removed" in fates(found).values(), "the rest is cleaned"
    if link.endswith("lock"):  # no lock of ours, so what it should guard is not taken
        assert (settings.file_path / link).with_name("journal.jsonl" if "studies" in link else "files").exists()
        assert not [what for what, fate in fates(found).items() if what.startswith(link[:15]) and fate == "removed"]


def test_links_inside_what_goes_are_not_followed(settings: Settings, tmp_path: Path) -> None:
    paths = search(settings, 0.9, loop_n=1)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(bytes(5000))
    (tmp_path / "linked").write_bytes(bytes(7000))
    model = paths.weights(1, "mini-run")
    model.mkdir(parents=True, exist_ok=True)
    (model / "out").symlink_to(tmp_path / "precious")
    (model / "up").symlink_to("../../../../..")
    (model / "hard").hardlink_to(tmp_path / "linked")
    item = cleaned(settings, CHECKPOINTS)["studies/toy/trials/0001/mini-run/model"]
    assert item.fate == "removed"
    assert item.bytes < 200, "a file that lives on under another name frees nothing"
    assert (tmp_path / "precious" / "file").exists()
    assert (tmp_path / "linked").stat().st_size == 7000
    assert paths.journal.exists()


def test_foreign_things_in_the_workspace_stay(settings: Settings) -> None:
    search(settings, 0.9, loop_n=1)
    mine = ["notes/.partial/x/files/a", "studies/mine/trials/0001/train/model/a", "output/mine/weights", "models/m/a"]
    for name in mine:
        (settings.file_path / name).parent.mkdir(parents=True)
        (settings.file_path / name).write_text("mine")
    age(settings.file_path)
    cleaned(settings, Wanted(checkpoints=True, environments=True))
    assert all((settings.file_path / name).read_text() == "mine" for name in mine)


# Environments


def environment(settings: Settings, name: str, *, lock: bool = True, ours: bool = True) -> Path:
    directory = settings.environments / name
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(sys.executable)
    (directory / "big").write_bytes(bytes(4321))
    if ours:
        (directory / "pyvenv.cfg").touch()
    if lock:
        (settings.environments / f"{name}.lock").touch()
    return directory


def test_environments_of_other_versions_go(settings: Settings, tmp_path: Path) -> None:
    current = environment(settings, Environments(settings.environments).python("train").parents[1].name)
    old, building, busy, named = (environment(settings, f"train-{i:012x}") for i in range(4))
    foreign = [
        environment(settings, "bench-00000000000a", lock=False),
        environment(settings, "bench-00000000000b", ours=False),
        environment(settings, "my-environment"),
    ]
    linked = settings.environments / "train-00000000000f"
    environment(settings, "elsewhere").rename(tmp_path / "elsewhere")
    linked.symlink_to(tmp_path / "elsewhere")
    running = subprocess.Popen([busy / "bin" / "python", "-c", "import time; time.sleep(600)"])
    try:
        with holder(settings.environments / f"{building.name}.lock"):
            found = cleaned(settings, Wanted(environments=True))
    finally:
        running.kill()
        running.wait()
    assert fates(found) == {
        str(old): "removed",
        str(building): "kept",
        str(busy): "kept",
        str(named): "removed",
    }
    assert str(running.pid) in found[str(busy)].why
    assert found[str(old)].bytes == 4321
    assert not old.exists()
    assert all(path.exists() for path in (current, building, busy, *foreign, linked, tmp_path / "elsewhere" / "big"))


def test_environments_stay_while_a_study_is_at_work(settings: Settings) -> None:
    paths = search(settings, 0.9, loop_n=1)
    old = environment(settings, "train-000000000000")
    with holder(paths.lock):
        found = cleaned(settings, Wanted(environments=True))
    assert fates(found) == {str(old): "kept"}
    assert old.exists()


# Failures, containers, images


def test_what_cannot_be_removed_is_said(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "inner").mkdir(parents=True)
    (settings.file_path / "link").symlink_to(tmp_path / "elsewhere")
    for place in ("link/inner", "nothing"):
        item = Remover(settings.file_path, dry_run=False).remove(place, "because")
        assert (item.fate, item.bytes) == ("failed", 0)
    assert (tmp_path / "elsewhere" / "inner").is_dir()


def test_without_an_engine_there_are_no_images_to_remove(settings: Settings) -> None:
    (item,) = cleaned(settings, Wanted(images=True)).values()
    assert (item.what, item.fate) == ("images", "kept")
    assert item.why == "no engine answers, so there are no images to remove"


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerClient]:
    """A client of the real engine; containers of the test's own are removed in the end."""
    monkeypatch.undo()  # `settings` hides the engine
    if problem := docker_answers():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(problem)
    client = connect()
    yield client
    for container in client.containers.list(all=True, ignore_removed=True, filters={"label": "tests.clean"}):
        container.remove(force=True)
    client.close()


@pytest.mark.docker
def test_containers_of_dead_owners_go_and_foreign_ones_stay(settings: Settings, engine: DockerClient) -> None:
    image = make_image(engine)

    def container(**labels: str) -> str:
        created = engine.containers.create(image, "python -V", labels={"tests.clean": "", **labels})
        return str(created.id)

    dead = container(**{OWNER_LABEL: before_the_last_boot(), JOB_LABEL: "dead-job"})
    live = container(**{OWNER_LABEL: this_process(), JOB_LABEL: "live-job"})
    foreign = container()
    item = "container of the job dead-job"
    assert fates(cleaned(settings, Wanted(dry_run=True)))[item] == "would go"
    assert {dead, live, foreign} <= {each.id for each in engine.containers.list(all=True)}
    found = fates(cleaned(settings))
    assert found[item] == "removed"
    assert "container of the job live-job" not in found
    assert {dead, live, foreign} & {each.id for each in engine.containers.list(all=True)} == {live, foreign}


@pytest.mark.docker
def test_images_go_unless_something_needs_them(settings: Settings, engine: DockerClient, tmp_path: Path) -> None:
    """Whatever else this engine has of ftloop's is kept by a container that is made from it."""
    from agent.run.images import ours

    tag = build_one(engine, tmp_path / "recipes")
    for other in set(ours(engine)) - {tag}:
        engine.containers.create(other, "true", labels={"tests.clean": ""})
    paths = search(settings, 0.9, loop_n=1)
    with holder(paths.lock):
        assert cleaned(settings, Wanted(images=True))[tag].fate == "kept", "a study is at work"
    needing = engine.containers.create(tag, "true", labels={"tests.clean": ""})
    assert "made from it" in cleaned(settings, Wanted(images=True))[tag].why
    needing.remove()
    dry = cleaned(settings, Wanted(images=True, dry_run=True))[tag]
    assert (dry.fate, dry.bytes > 0) == ("would go", True)
    found = cleaned(settings, Wanted(images=True))
    assert [what for what, item in found.items() if item.fate == "removed"] == [tag]
    assert tag not in ours(engine)


def build_one(engine: DockerClient, folder: Path) -> str:
    """An image as ftloop builds it, of one layer that no other image has."""
    (folder / "train").mkdir(parents=True)
    for name in ("requirements.torch", "train/requirements.lock"):
        (folder / name).write_text("")
    code = f"open('/layer', 'wb').write(bytes(5000) + {str(folder)!r}.encode())"
    run = json.dumps(["python", "-I", "-S", "-c", code])
    (folder / "train" / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nRUN {run}\n")
    return build(engine, "train", {"BASE": make_image(engine)}, "none", print, folder)


def before_the_last_boot() -> str:
    """The owner label of a process of this host before its last start."""
    host, _, *rest = this_process().split("/")
    return "/".join([host, "00000000", *rest])
