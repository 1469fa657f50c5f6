"""The writer of datasets: whole or not there, and nothing is overwritten but its own."""

import json
import os
import signal
import subprocess
import sys

import gymnasium as gym
import minari
import numpy as np
import pytest
from conftest import ROOT

pytestmark = pytest.mark.study
FOLDER = ROOT / "results" / "datasets"
sys.path.insert(0, str(FOLDER))  # as the makers find each other when they are run
import minari_writer  # noqa: E402

SPEC = gym.spec("Hopper-v5")
ID = "edq/hopper/test-v0"


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """Datasets go to a folder of the test; what signals do is put back."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path / "sets"
    for number, handler in before.items():
        signal.signal(number, handler)


def episodes(count=3, length=5, broken=False):
    for i in range(count):
        if broken and i == 1:
            raise OSError("no space left")
        yield {
            "observations": np.full((length + 1, 11), i, np.float32),
            "actions": np.zeros((length, 3), np.float32),
            "rewards": np.arange(length, dtype=float),
            "terminations": np.zeros(length, bool),
            "truncations": np.arange(length) == length - 1,
            "seed": 7 + i,
        }


def save(folder, tool="one.py", **kwargs):
    return minari_writer.save(folder, ID, episodes(**kwargs), SPEC, SPEC, tool=tool)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_minari_reads_and_lists_it(root):
    folder = minari_writer.folder_of(ID)
    assert folder == root / "edq" / "hopper" / "test-v0"
    save(folder)
    dataset = minari.load_dataset(ID)
    assert dataset.total_episodes == 3
    assert dataset.total_steps == 15
    assert [e.observations[0, 0] for e in dataset] == [0, 1, 2]
    assert ID in minari.list_local_datasets()
    assert [path.name for path in folder.parent.glob(".*")] == []


def test_an_exception_leaves_nothing(root):
    with pytest.raises(OSError, match="no space"):
        save(minari_writer.folder_of(ID), broken=True)
    with pytest.raises(ValueError, match="not one whole episode"):
        save(minari_writer.folder_of(ID), count=0)
    assert files(root) == {}


def strangers(tmp_path):
    """Folders that no maker may replace."""
    text = tmp_path / "text"
    text.mkdir()
    (text / "thesis.tex").write_text("years of work")
    foreign = tmp_path / "foreign"  # a dataset, but not of a tool of ours
    save(foreign)
    metadata = json.loads((foreign / "data" / "metadata.json").read_text())
    del metadata["made_by"]
    (foreign / "data" / "metadata.json").write_text(json.dumps(metadata))
    other = tmp_path / "other"  # of another tool
    save(other, tool="two.py")
    beside = tmp_path / "beside"  # of the same tool, with a file beside it
    save(beside)
    (beside / "notes.txt").write_text("keep")
    within = tmp_path / "within"
    save(within)
    (within / "data" / "notes.txt").write_text("keep")
    damaged = tmp_path / "damaged"
    save(damaged)
    (damaged / "data" / "metadata.json").write_text("{")
    file = tmp_path / "file"
    file.write_text("a file")
    return [text, foreign, other, beside, within, damaged, file]


def test_nothing_is_replaced_but_a_set_of_the_same_tool(tmp_path, capsys):
    for folder in strangers(tmp_path):
        before = files(tmp_path)
        with pytest.raises(SystemExit) as stop:
            save(folder)
        assert stop.value.code == 2, folder
        assert "did not write" in capsys.readouterr().err
        assert files(tmp_path) == before
    for name in ("new", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        save(tmp_path / name)
        assert len(files(tmp_path / name)) == 2
    save(tmp_path / "new", count=1)
    metadata = json.loads((tmp_path / "new" / "data" / "metadata.json").read_text())
    assert metadata["total_episodes"] == 1


def test_what_appears_during_the_recording_stays(tmp_path, capsys):
    folder = tmp_path / "set"

    def slow():
        yield from episodes()
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")

    with pytest.raises(SystemExit) as stop:
        minari_writer.save(folder, ID, slow(), SPEC, SPEC, tool="one.py")
    assert stop.value.code == 2
    assert files(tmp_path) == {"set/thesis.tex": b"years of work"}


@pytest.mark.parametrize(
    "wrong",
    [
        "hopper",
        "../away-v0",
        "/tmp/away-v0",
        "edq/hopper/test-v0/data/x-v0",
        "~/x-v0",
        "a b-v0",
        "",
    ],
)
def test_ids_that_are_none(root, capsys, wrong):
    save(minari_writer.folder_of(ID))
    before = files(root.parent)
    with pytest.raises(SystemExit) as stop:
        minari_writer.folder_of(wrong)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert files(root.parent) == before


def test_an_id_that_is_taken(capsys):
    save(minari_writer.folder_of(ID))
    with pytest.raises(SystemExit):
        minari_writer.folder_of(ID)
    assert "exists already" in capsys.readouterr().err


def test_home_in_paths(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINARI_DATASETS_PATH", "~/mine")
    assert minari_writer.folder_of(ID) == tmp_path / "mine" / "edq" / "hopper" / "test-v0"
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    assert minari_writer.datasets_root() == tmp_path / ".minari" / "datasets"
    assert minari_writer.new_file(minari_writer.Path("~/x.csv")) == tmp_path / "x.csv"
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(SystemExit):
        minari_writer.new_file(minari_writer.Path("~/x.csv"))
    assert "exists already" in capsys.readouterr().err


SLOW = """
import sys, time
from pathlib import Path
import gymnasium as gym
import numpy as np
sys.path.insert(0, {tools!r})
import minari_writer

def episodes():
    while True:
        yield dict(observations=np.zeros((2, 11)), actions=np.zeros((1, 3)), rewards=np.zeros(1))
        print("written", flush=True)
        time.sleep(0.02)

spec = gym.spec("Hopper-v5")
minari_writer.save(Path({folder!r}), {id!r}, episodes(), spec, spec, tool="one.py")
"""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_half_way(root, how):
    """A replaced set is still the old one; after SIGTERM nothing else is left."""
    folder = minari_writer.folder_of(ID)
    save(folder)
    before = files(folder)
    code = SLOW.format(tools=str(FOLDER), folder=str(folder), id=ID)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert "written" in process.stdout.readline()
    os.kill(process.pid, how)
    process.communicate(timeout=60)
    assert process.returncode == (143 if how == signal.SIGTERM else -9)
    assert files(folder) == before
    hidden = list(folder.parent.glob(".unfinished-*"))
    assert len(hidden) == (0 if how == signal.SIGTERM else 1)
