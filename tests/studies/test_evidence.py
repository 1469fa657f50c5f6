"""The headline table of the long runs: against plain arithmetic on made records."""

import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from results.common.records import csv_rows, write_csv
from results.studies.benchmark import evidence

pytestmark = pytest.mark.study
ARMS = list(evidence.ARMS)


def suite(folder, name: str, task: str, scores, arms=ARMS, **changes):
    """A record whose runs of arm i and seed s end at scores[i][s]."""
    about = {"updates": 100, "data": 40, "hash": name, "episodes": 50, "dataset": f"sets/{task}"}
    rows, curves = [], []
    for arm, of_arm in zip(arms, scores):
        for seed, score in enumerate(of_arm):
            key = {"task": task, "arm": arm, "seed": seed}
            made = {"last": score, "best": score + 5, "seconds": 60, "finished": True}
            rows.append(key | about | made | changes)
            for step, value in ((50, score + 5), (100, score)):
                curves.append(key | {"step": step, "score": value})
    write_csv(folder / "benchmark" / f"{name}.csv", rows)
    write_csv(folder / "benchmark" / f"{name}-curves.csv", curves)


@pytest.fixture
def made(tmp_path):
    """A complete maze, and a hand of which two arms have one seed and one is missing."""
    level = [60, 50, 40, 30, 0]
    suite(tmp_path, "mazes", "pointmaze-medium", [(x - 3, x, x + 3) for x in level])
    suite(tmp_path, "hands", "pen-cloned", [(), (80,), (), (), (70,)])
    peer = [{"method": "iql", "dataset": "sets/pen-cloned", "last": 120}]
    write_csv(tmp_path / "benchmark" / "peer.csv", peer)
    return tmp_path


def test_headline(made):
    _, _, hand, maze = evidence.headline(made).splitlines()
    assert hand.split(" | ")[2:8] == [
        "-",
        "80.0 (1 seed)",
        "-",
        "-",
        "70.0 (1 seed)",
        "120.0 (1 seed)",
    ]
    assert maze.split(" | ")[2:4] == ["60.0 ± 1.7", "50.0 ± 1.7"]  # 3 / sqrt(3)
    assert maze.split(" | ")[7] == "-"


def test_only_complete_tasks_are_aggregated_and_scores_are_shares_of_the_data(made):
    found = evidence.estimates(made)
    assert found["aggregate"]["edq-released"][0][0] == pytest.approx(50 / 40)
    assert found["better"]["edq-entropy,edq-released"][0][0] == 1
    assert found["better"]["edq-none,edq-released"][0][0] == 0
    assert "1.50 (1.4" in evidence.aggregates(made)


def test_steadiness_of_mazes(made):
    lines = evidence.steadiness(made).splitlines()
    assert len(lines) == 2 + len(ARMS)
    cells = lines[2].strip("| ").split(" | ")
    assert cells[2:] == ["3", "65 at 50", "65, 60", "5", "57, 60, 63"]


def test_a_larger_ensemble_and_longer_runs_stand_in_steadiness_alone(made):
    arms = ["M = 16", "edq-none"]
    suite(made, "stability", "pointmaze-medium", [(90, 95), (7,)], arms=arms, updates=200)
    lines = evidence.steadiness(made).splitlines()
    assert len(lines) == 2 + len(ARMS) + 1
    of_16, of_none = (line.strip("| ").split(" | ") for line in lines[4:6])
    assert of_16[1:] == ["EDQ, as released, M = 16", "2", "98 at 50", "98, 92", "5", "90, 95"]
    assert of_none[1:] == ["EDQ, no entropy", "1", "12 at 50", "12, 7", "5", "7"]
    assert "M = 16" not in evidence.headline(made)


def test_a_run_that_is_not_finished_is_left_out_and_other_data_are_refused(made):
    path = made / "benchmark" / "hands.csv"
    suite(made, "hands", "pen-cloned", [(), (80,), (), (), ()], finished=False)
    assert "pen-mixed" not in evidence.headline(made)
    rows = csv_rows(made / "benchmark" / "mazes.csv")
    rows[0]["hash"] = "another"
    write_csv(path.with_name("mazes.csv"), rows)
    with pytest.raises(ValueError, match="differ in data"):
        evidence.runs(made)
