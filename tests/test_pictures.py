"""evaluation.png: what it shows is what an evaluation did; it is drawn by every maze run and by --evaluate."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, load_script, run_script

SCRIPT = ROOT / "results" / "datasets" / "draw_paths.py"
spec = importlib.util.spec_from_file_location("draw_paths", SCRIPT)
draw_paths = importlib.util.module_from_spec(spec)
spec.loader.exec_module(draw_paths)
SMALL = (
    "--num-critics 2 --hidden-dim 16 --gradient-steps 20 --eval-every 20 --eval-episodes 3 --num-candidates 2".split()
)


@pytest.mark.parametrize(
    ("env_id", "cell"), [("pointmaze-umaze", 1), ("pointmaze-large", 1), ("antmaze-medium-play", 4)]
)
def test_paths_stand_where_the_simulator_has_them(antmaze, env_id, cell):
    """Walls against the simulator's own, for every place of a grid; lines and labels against the paths given."""
    task = antmaze.TASKS[env_id]
    args = {"env_id": env_id, "preset": "edq", "seed": 0}
    rng = np.random.default_rng(0)
    data = dict(states=rng.normal(size=(50, 2)), paths=rng.normal(size=(9, 2)), steps=np.array([2, 3, 4]))
    data |= dict(arrived=np.array([True, False, True]), goals=rng.normal(size=(3, 2)))
    draw_paths.panel(ax := draw_paths.Figure().add_subplot(), {"simulator": task[:2], "args": args}, data)
    assert ax.get_title() == f"{env_id}, edq, seed 0: 2 of 3 arrive"
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert lines.keys() == {"data", "arrived", "did not arrive", "start", "goal"}
    assert np.array_equal(lines["did not arrive"][:3], data["paths"][2:5])
    assert np.array_equal(lines["arrived"][:2], data["paths"][:2])
    assert np.array_equal(lines["start"], data["paths"][[0, 2, 5]]) and np.array_equal(lines["goal"], data["goals"])
    env, image = antmaze.make_env(task), ax.images[0]
    left, right, bottom, top = image.get_extent()
    rows, columns = image.get_array().shape
    for x in np.arange(left + cell / 2, right, cell):
        for y in np.arange(bottom + cell / 2, top, cell):
            i, j = env.unwrapped.maze.cell_xy_to_rowcol(np.array([x, y]))
            pixel = image.get_array()[
                int((top - y) / (top - bottom) * rows), int((x - left) / (right - left) * columns)
            ]
            assert bool(pixel) == (env.unwrapped.maze.maze_map[i][j] == 1)
    env.close()


def test_a_run_draws_and_evaluate_draws_again(tmp_path):
    done = run_script("edq_antmaze", *SMALL, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    picture, positions = tmp_path / "run" / "evaluation.png", np.load(tmp_path / "run" / "paths.npz")
    first = picture.read_bytes()
    assert first[:4] == b"\x89PNG" and 10_000 < len(first) < 300_000
    lengths = [int(line.split(",")[6]) for line in (tmp_path / "run" / "evaluations.csv").read_text().splitlines()[1:]]
    assert (positions["steps"] == np.array(lengths) + 1).all() and positions["states"].shape == (4000, 2)
    picture.unlink()
    assert run_script("edq_antmaze", "--evaluate", tmp_path / "run").returncode == 0
    assert picture.read_bytes() == first
    out = tmp_path / "paper.svg"
    three = [tmp_path / "run"] * 3
    assert subprocess.run([sys.executable, SCRIPT, *three, "--out", out]).returncode == 0
    assert "<svg" in out.read_text()[:2000]


def test_a_picture_that_cannot_be_drawn_says_so_and_ends_no_run(tmp_path, monkeypatch):
    bad = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("error:") == 1 and not list(tmp_path.iterdir())
    antmaze = load_script("edq_antmaze")
    monkeypatch.setattr(antmaze, "DATASETS", tmp_path)  # no program there
    path = np.zeros((2, 6), np.float32)
    antmaze.draw_paths(tmp_path, [{"score": 100.0}], [path], np.zeros((4000, 6), np.float32))
    assert (tmp_path / "paths.npz").exists() and not (tmp_path / "evaluation.png").exists()
    (tmp_path / "run.json").write_text(json.dumps({"simulator": ["PointMaze_UMaze-v3", {}], "args": {}}))
    bad = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert bad.returncode == 2 and "maze_map" in bad.stderr
