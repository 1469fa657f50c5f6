"""The goal-reaching ant that walks through the AntMaze sets, and its training."""

import csv
import functools
import sys

import numpy as np
import pytest
import tyro
from conftest import ROOT

pytestmark = pytest.mark.study
sys.path.insert(0, str(ROOT / "results" / "datasets"))  # as the makers find each other
import make_antmaze  # noqa: E402
import train_ant  # noqa: E402

SMALL = ("--steps", 1000, "--ants", 8, "--rollout", 32, "--eval-every", 2)


@pytest.fixture
def quick(monkeypatch):
    """Evaluations with four ants."""
    monkeypatch.setattr(train_ant, "evaluate", functools.partial(train_ant.evaluate, ants=4))


def run(*flags):
    train_ant.main(tyro.cli(train_ant.Args, args=[str(flag) for flag in flags]))


def test_the_ant_walks():
    """The weights of the repository; towards the wrong side it does not arrive."""
    ant = make_antmaze.load_arrays(make_antmaze.ANT)
    success, speed = train_ant.evaluate(ant, ants=8)
    assert success == 1
    assert speed > 1.5
    wrong = ant | {"W2": -ant["W2"], "b2": -ant["b2"]}
    success, speed = train_ant.evaluate(wrong, ants=8)
    assert success < 0.5
    assert speed < 0.5


def test_training(tmp_path, quick):
    """Writes weights in the layout of the generator, and the curve; equal for equal seeds."""
    run("--out", tmp_path / "ant.npz", "--record", tmp_path / "curve.csv", *SMALL)
    ant = make_antmaze.load_arrays(tmp_path / "ant.npz")
    ships = make_antmaze.load_arrays(make_antmaze.ANT)
    assert {k: v.shape for k, v in ant.items()} == {k: v.shape for k, v in ships.items()}
    actions = make_antmaze.act(ant, np.eye(27)[:20], np.ones((20, 2)))
    assert actions.shape == (20, 8)
    assert np.abs(actions).max() <= 1
    text = (tmp_path / "curve.csv").read_text()
    assert text.startswith("# {")
    rows = list(csv.DictReader(text.splitlines()[1:]))
    assert [int(row["steps"]) for row in rows] == [512, 1024]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ant.npz", "curve.csv"]
    run("--out", tmp_path / "again.npz", *SMALL)
    run("--out", tmp_path / "other.npz", *SMALL, "--seed", 1)
    again = make_antmaze.load_arrays(tmp_path / "again.npz")
    other = make_antmaze.load_arrays(tmp_path / "other.npz")
    assert all(np.array_equal(again[key], ant[key]) for key in ant)
    assert not np.array_equal(other["W1"], ant["W1"])


@pytest.mark.parametrize(
    "flags",
    [
        ("--steps", "0"),
        ("--seed", "-1"),
        ("--out", "no/such/folder/ant.npz"),
        ("--out", "mine.npz"),
        ("--record", "mine.npz"),
    ],
)
def test_bad_flags(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.npz").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npz"]
    assert (tmp_path / "mine.npz").read_text() == "mine"
