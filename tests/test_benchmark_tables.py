"""Tables of the benchmark, its ablations and ensembles: against plain arithmetic, closed forms and Monte Carlo."""

import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "results"))
import ablations
import ensemble
import rivals
import scores
from record import csv_rows
from rliable import metrics

RECORDS = ROOT / "results" / "records"


def write(path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(rows[0]), *(",".join(str(v) for v in row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def made(tmp_path):
    """Records of two whole tasks and one that lacks a preset, with scores that can be computed in the head."""
    shutil.copytree(RECORDS, tmp_path, dirs_exist_ok=True)
    level = {"edq": 60, "edq-entropy": 70, "diffusion-ql": 40, "diffusion-bc": 10}
    about = {
        "updates": 6000,
        "data": 27,
        "critics": 4,
        "torch": "2",
        "threads": 1,
        "hash": "h",
        "episodes": 20,
    }
    rows = [
        {"task": task, "arm": arm, "seed": seed, "last": score + 3 * (seed - 1) + extra, "best": score + 20 + extra,
         "offline": score + 5 + extra, "settled": seed > 0, "seconds": 60, **about}
        for task, extra in (("pointmaze-umaze", 0), ("pointmaze-medium", 10), ("pointmaze-large", 0))
        for arm, score in level.items()
        for seed in (2, 0, 1)
        if (task, arm) != ("pointmaze-large", "diffusion-ql")
    ]  # fmt: skip
    write(tmp_path / "benchmark" / "pointmaze.csv", rows)
    points = [(row["task"], row["arm"], step) for row in rows for step in (1, 2, 3)]
    steps = [{"task": t, "arm": a, "seed": 0, "step": s, "score": 0} for t, a, s in points]
    write(tmp_path / "benchmark" / "pointmaze-curves.csv", steps)
    for suite in ("stand-ins", "small-antmaze"):
        (tmp_path / "benchmark" / f"{suite}.csv").unlink(missing_ok=True)
    return tmp_path


def test_only_whole_tasks_are_in_the_table(made):
    table = scores.headline(made)
    assert "umaze" in table and "medium" in table and "large" not in table


def test_headline_is_mean_and_standard_error(made):
    row = next(line for line in scores.headline(made).splitlines() if "umaze" in line)
    assert (
        "| 6,000 | 27.0 | 60.0 ± 1.7 | 70.0 ± 1.7 | 40.0 ± 1.7 | 10.0 ± 1.7 |" in row
    )  # 3 / sqrt(3)


def test_best_of_run_is_worth_what_it_is_above_the_last(made):
    row = next(line for line in scores.selected(made).splitlines() if line.startswith("| EDQ |"))
    assert [float(v) for v in row.split("|")[2:6]] == [65.0, 70.0, 85.0, 20.0] and row.endswith(
        "| 4 of 6 |"
    )


def test_runs_on_different_data_are_not_averaged(made):
    path = made / "benchmark" / "pointmaze.csv"
    path.write_text(path.read_text().replace(",h,", ",other,", 1))
    with pytest.raises(ValueError, match="differ in data"):
        scores.runs(made)


def test_aggregates_hold_the_mean_and_improvement_is_certain_where_every_run_is_better(made):
    found = scores.estimates(made)
    point, low, high = (v[0] for v in found["aggregate"]["edq"])
    assert point == pytest.approx(65) and 62 < low < 65 < high < 68
    values = np.sort([57, 60, 63, 67, 70, 73])
    assert found["aggregate"]["edq"][0][1] == pytest.approx(
        values[1:-1].mean()
    )  # a quarter of six off each end
    assert (
        found["better"]["edq,diffusion-bc"][0][0] == 1
        and found["better"]["diffusion-bc,edq"][0][0] == 0
    )
    scores.bootstrapped.cache_clear()
    assert (
        scores.estimates(made)["aggregate"]["edq"][1].tolist()
        == found["aggregate"]["edq"][1].tolist()
    )  # drawn anew
    tau = [*found["taus"]].index(60)
    assert found["profile"]["edq"][0][tau] == pytest.approx(np.mean(values > 60))


def test_improvement_is_what_rliable_calls_it():
    x, y = np.random.default_rng(0).integers(0, 5, (2, 3, 4)).astype(float)  # with ties
    assert scores.improvement(x, y)[0] == pytest.approx(metrics.probability_of_improvement(x, y))


def test_a_difference_has_a_t_interval_over_seeds():
    base = [{"seed": str(s), "last": 50} for s in range(3)]
    arm = [{"seed": str(s), "last": 60 + 3 * (s - 1)} for s in range(3)]
    assert (
        ablations.difference(arm, base) == f"+10.0 ± {4.303 * 3 / math.sqrt(3):.1f}"
    )  # t(0.975, 2) = 4.303


@pytest.mark.parametrize("members", [2, 4, 16])
def test_pessimism_in_closed_form_is_what_samples_show(members):
    x = np.random.default_rng(0).standard_normal((200_000, members))
    assert ensemble.minimum_as_beta(members) == pytest.approx(-x.min(1).mean(), abs=0.01)
    for beta in (1, 4):
        lcb = x.mean(1) - beta * x.std(1, ddof=1)
        assert ensemble.lcb_noise(members, beta) == pytest.approx(lcb.std(), rel=0.01)


def test_every_published_score_has_a_source_and_versions_are_kept_apart():
    rows = csv_rows(RECORDS / "rivals.csv")
    assert all(row["source"] and float(row["score"]) > -5 for row in rows)
    assert {row["protocol"] for row in rows} <= {
        "last",
        "best",
        "offline",
        "average of last N",
        "unclear",
    }
    table = rivals.tables(RECORDS)["rivals"]
    for line in table.splitlines()[2:]:
        versions = set(re.findall(r"\bv[012]\b", line.split("|")[1]))
        assert len(versions) == 1


def test_groups_of_members_rank_candidates_as_a_plain_loop_does(tmp_path, monkeypatch):
    run = tmp_path / "run"
    flags = "--num-critics 4 --hidden-dim 8 --batch-size 8 --gradient-steps 30 --eval-every 30 --eval-episodes 1"
    command = [
        sys.executable,
        ROOT / "edq_antmaze.py",
        *flags.split(),
        "--num-candidates",
        "5",
        "--run-dir",
        run,
    ]
    subprocess.run(command, check=True, capture_output=True)
    monkeypatch.setattr(ensemble, "STATES", 20)
    (row,) = ensemble.compare(run)  # of 4 members only groups of 2 leave two groups
    assert (row["members"], row["groups"]) == (2, 2)

    edq, _, agent, data, _ = ensemble.load(run)
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(len(data.obs), (20,), generator=g)
    wide = data.obs[rows].repeat_interleave(5, 0)
    action = edq.sample_actions(agent.score, agent.sde, wide, generator=g)
    torch.rand(20, 2, generator=g)  # the random actions
    order = torch.randperm(4, generator=g).tolist()
    q = agent.target_q(wide, action).detach().numpy().reshape(4, 20, 5)
    same, lost = [], []
    for group, others in ((order[:2], order[2:]), (order[2:], order[:2])):
        for state in range(20):
            whole = [
                np.mean(q[others, state, k]) - 4 * np.std(q[others, state, k], ddof=1)
                for k in range(5)
            ]
            part = [
                np.mean(q[group, state, k]) - 4 * np.std(q[group, state, k], ddof=1)
                for k in range(5)
            ]
            same.append(int(np.argmax(whole)) == int(np.argmax(part)))
            lost.append((max(whole) - whole[int(np.argmax(part))]) / np.std(whole, ddof=1))
    assert row["same_choice"] == pytest.approx(np.mean(same)) and 0 < np.mean(same) < 1
    assert row["loss_in_std"] == pytest.approx(np.mean(lost), rel=1e-3)
