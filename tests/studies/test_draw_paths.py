"""The picture of a maze run shows what an evaluation does, where the simulator has it."""

import csv
import sys

import numpy as np
import pytest
import tyro
from conftest import ROOT, run_script
from matplotlib.figure import Figure

pytestmark = pytest.mark.study
sys.path.insert(0, str(ROOT / "results" / "datasets"))  # as the tools find each other
import draw_paths  # noqa: E402

edq = draw_paths.edq
SMALL = "--num-critics 2 --hidden-dim 16 --num-candidates 2 --no-compile"
SMALL += " --gradient-steps 5 --eval-every 5 --eval-episodes 3 --eval-envs 2"


def draw(*flags):
    draw_paths.main(tyro.cli(draw_paths.Args, args=[str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run of a few updates."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = run_script("edq_antmaze", *SMALL.split(), "--run-dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_paths_are_those_of_the_run_s_own_evaluation(run_dir):
    """Its last evaluation is repeated: as many steps, as many arrivals, from start towards goal."""
    panel = draw_paths.evaluate(run_dir, 3, True)
    with open(run_dir / "evaluations.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [len(path) - 1 for path in panel.paths] == [int(row["length"]) for row in rows]
    assert panel.arrived == [float(row["score"]) > 0 for row in rows]
    assert panel.states.shape == (4000, 2)
    assert panel.goals.shape == (3, 2)
    for path, goal in zip(panel.paths, panel.goals):
        assert np.abs(path[0] - (-2, 2)).max() < 0.26
        assert np.abs(goal - (2, 2)).max() < 0.26
        assert np.linalg.norm(np.diff(path, axis=0), axis=1).max() < 0.2  # of one episode


def test_positions_of_both_bodies():
    assert draw_paths.positions(np.arange(6)).tolist() == [0, 1]  # a ball
    assert draw_paths.positions(np.arange(31)).tolist() == [27, 28]  # an ant


@pytest.mark.parametrize("env_id, cell", [("pointmaze-large", 1), ("antmaze-medium-play", 4)])
def test_walls_stand_where_the_simulator_has_them(env_id, cell):
    """For every place of a grid; lines and labels against the paths given."""
    rng = np.random.default_rng(0)
    panel = draw_paths.Panel(
        args=edq.Args(env_id=env_id),
        paths=[rng.normal(size=(count, 2)) for count in (2, 3, 4)],
        goals=rng.normal(size=(3, 2)),
        arrived=[True, False, True],
        states=rng.normal(size=(50, 2)),
    )
    ax = Figure().add_subplot()
    draw_paths.draw_panel(ax, panel)
    assert ax.get_title() == f"{env_id}, edq, seed 0: 2 of 3 arrive"
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert lines.keys() == {"data", "arrived", "did not arrive", "start", "goal"}
    assert np.array_equal(lines["did not arrive"][1:4], panel.paths[1])
    assert np.array_equal(lines["arrived"][1:3], panel.paths[0])
    assert np.array_equal(lines["start"], [path[0] for path in panel.paths])
    assert np.array_equal(lines["goal"], panel.goals)
    image = ax.images[0]
    drawn = image.get_array()
    left, right, bottom, top = image.get_extent()
    env = edq.make_env(edq.TASKS[env_id])
    maze = env.unwrapped.maze
    for row, y in enumerate(np.arange(top - cell / 2, bottom, -cell)):
        for column, x in enumerate(np.arange(left + cell / 2, right, cell)):
            i, j = maze.cell_xy_to_rowcol(np.array([x, y]))
            assert bool(drawn[row, column]) == (maze.maze_map[i][j] == 1)
    env.close()


def test_pictures(run_dir, tmp_path):
    draw(run_dir, "--episodes", 1)
    assert (run_dir / "paths.png").read_bytes()[:4] == b"\x89PNG"
    draw(run_dir, run_dir, run_dir, "--episodes", 1, "--no-data", "--out", tmp_path / "paper.svg")
    assert "<svg" in (tmp_path / "paper.svg").read_text()[:2000]
    assert [path.name for path in tmp_path.iterdir()] == ["paper.svg"]


def test_refused(run_dir, tmp_path, capsys):
    """A picture over another kind of file, no folder, no run."""
    before = (run_dir / "run.json").read_bytes()
    cases = [
        (run_dir, "--out", run_dir / "run.json"),
        (run_dir, "--out", tmp_path / "none" / "x.png"),
        (tmp_path,),
        (run_dir, "--episodes", 0),
        (),
    ]
    for flags in cases:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            draw(*flags)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("error: ") == 1
    assert (run_dir / "run.json").read_bytes() == before
    assert not list(tmp_path.iterdir())
