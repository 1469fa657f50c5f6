"""Tables of the benchmark and its ablations: against plain arithmetic."""

import math
import re
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from results.common import pictures
from results.common.records import RECORDS, csv_rows, write_csv
from results.studies.benchmark import ablations, aggregates, published, scores, tables

pytestmark = pytest.mark.study
LEVEL = {"edq": 60, "edq-entropy": 70, "diffusion-ql": 40, "diffusion-bc": 10}


@pytest.fixture
def made(tmp_path):
    """Records of two whole tasks and one that lacks a method, with scores for mental arithmetic."""
    about = {"updates": 6000, "data": 27, "hash": "h", "episodes": 20}
    rows, curves = [], []
    for task, extra in (("pointmaze-umaze", 0), ("pointmaze-medium", 10), ("pointmaze-large", 0)):
        for arm, score in LEVEL.items():
            if (task, arm) == ("pointmaze-large", "diffusion-ql"):
                continue
            for seed in (2, 0, 1):
                row = {"task": task, "arm": arm, "seed": seed, **about}
                row["last"] = score + extra + 3 * (seed - 1)
                row["offline"] = score + extra + 5
                row["best"] = score + extra + 20
                row["settled"] = seed > 0
                rows.append(row)
            for step in (1, 2, 3):
                curves.append({"task": task, "arm": arm, "seed": 0, "step": step, "score": 0})
    write_csv(tmp_path / "benchmark" / "pointmaze.csv", rows)
    write_csv(tmp_path / "benchmark" / "pointmaze-curves.csv", curves)
    return tmp_path


def test_headline_is_mean_and_standard_error_of_whole_tasks(made):
    table = tables.headline(made)
    assert "| 6,000 | 27.0 | 60.0 ± 1.7 | 70.0 ± 1.7 | 40.0 ± 1.7 | 10.0 ± 1.7 |" in table
    assert "medium" in table  # 3 / sqrt(3) = 1.7
    assert "large" not in table


def test_best_of_run_is_worth_what_it_is_above_the_last(made):
    lines = tables.selected(made).splitlines()
    cells = next(line for line in lines if line.startswith("| EDQ |")).split(" | ")
    assert [float(x) for x in cells[1:5]] == [65, 70, 85, 20]
    assert cells[-1].startswith("4 of 6")


def test_runs_on_different_data_are_not_averaged(made):
    path = made / "benchmark" / "pointmaze.csv"
    path.write_text(path.read_text().replace(",h,", ",other,", 1))
    with pytest.raises(ValueError, match="differ in data"):
        scores.runs(made)


def test_aggregates_hold_the_mean_and_improvement_is_certain_where_every_run_is_better(made):
    found = aggregates.estimates(made)
    point, low, high = (values[0] for values in found["aggregate"]["edq"])
    assert point == pytest.approx(65)
    assert 62 < low < 65 < high < 68
    middle = np.sort([57, 60, 63, 67, 70, 73])[1:-1]  # a quarter of six off each end
    assert found["aggregate"]["edq"][0][1] == pytest.approx(middle.mean())
    assert found["better"]["edq,diffusion-bc"][0][0] == 1
    assert found["better"]["diffusion-bc,edq"][0][0] == 0


def test_a_difference_has_a_t_interval_over_seeds():
    base = [{"seed": str(s), "last": 50} for s in range(3)]
    arm = [{"seed": str(s), "last": 60 + 3 * (s - 1)} for s in range(3)]
    half = 4.303 * 3 / math.sqrt(3)  # t(0.975, 2) = 4.303
    assert ablations.difference(arm, base) == f"+10.0 ± {half:.1f}"


def test_every_published_score_has_a_source_and_versions_are_kept_apart():
    rows = csv_rows(RECORDS / "benchmark" / "published.csv")
    assert all(row["source"] and float(row["score"]) > -5 for row in rows)
    kinds = {"last", "best", "offline", "average of last N", "unclear"}
    assert {row["protocol"] for row in rows} <= kinds
    for line in published.tables(RECORDS)["published"].splitlines()[2:]:
        assert len(set(re.findall(r"\bv[012]\b", line.split("|")[1]))) == 1


def test_a_thinned_path_keeps_its_corners():
    path = np.array([(0, 0), (1, 0.001), (2, 0), (2, 1), (2, 2)], float)
    assert pictures.thin(path, 0.005).tolist() == [[0, 0], [2, 0], [2, 2]]
