"""run_suite.py: a suite is run, stopped, resumed and recorded, on this machine and on a Ray
cluster."""

import csv
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from results import run_suite
from results.common.records import csv_rows
from results.common.runs import script_of

pytestmark = pytest.mark.study
TINY = (
    "--no-compile --num-critics 2 --hidden-dim 8 --batch-size 8 --log-every 50"
    " --eval-episodes 1 --num-candidates 1"
)
TASK = "pointmaze-rare-embedded"


def write_suite(folder: Path, updates: int, *arms: str) -> Path:
    """A suite of tiny runs with four evaluations, and another way of acting."""
    path = folder / "tiny.toml"
    path.write_text(
        f'flags = "{TINY} --gradient-steps {updates} --eval-every {updates // 4}"\n'
        f'[[runs]]\nscript = "edq_antmaze.py"\ntasks.{TASK} = ""\n'
        'acting."K = 2" = "--num-candidates 2"\n[runs.arms]\n' + "\n".join(arms)
    )
    return path


def start(folder: Path, suite: Path | str, *flags: str) -> subprocess.Popen:
    """A suite with its runs and records in `folder`."""
    where = ["--runs", str(folder / "runs"), "--records", str(folder / "records")]
    command = [sys.executable, "results/run_suite.py", "--suite", str(suite), *where, *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    try:
        output = process.communicate(timeout=900)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == code, output
    return output


def workers(folder: Path) -> dict[str, int]:
    """Parent of each script at work on a run in `folder`, by the name of the run."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            status = (path.parent / "status").read_text()
        except OSError:
            continue
        named = [word for word in words if word.startswith(str(folder / "runs"))]
        if named and any("edq_antmaze.py" in word for word in words):
            found[Path(named[-1]).name] = int(re.search(r"PPid:\s+(\d+)", status)[1])
    return found


def wait_for(what, seconds: float = 600):
    """What comes out as soon as it is true."""
    end = time.time() + seconds
    while not (found := what()):
        assert time.time() < end, "nothing came"
        time.sleep(0.05)
    return found


def trained(folder: Path) -> list[dict]:
    """A run's metrics without its clocks."""
    with open(folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "charts/sps"} for row in rows]


def uninterrupted(folder: Path, updates: int) -> list[dict]:
    """Metrics of the same run, without a suite."""
    flags = [*TINY.split(), "--gradient-steps", str(updates), "--eval-every", str(updates // 4)]
    command = [sys.executable, "edq_antmaze.py", "--env-id", TASK, *flags, "--seed", "0"]
    where = ["--run-dir", str(folder / "whole")]
    subprocess.run([*command, *where], cwd=ROOT, check=True, capture_output=True)
    return trained(folder / "whole")


def test_a_stopped_suite_goes_on_and_is_recorded(tmp_path):
    suite = write_suite(tmp_path, 400, 'edq = ""')
    run = tmp_path / "runs" / "tiny" / f"{TASK}__edq__0"
    records = tmp_path / "records"
    process = start(tmp_path, suite)
    wait_for((run / "checkpoint.pt").exists)
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in finish(process, 130)
    assert not workers(tmp_path), "a run outlived the suite"
    finish(start(tmp_path, suite, "--so-far"))
    (row,) = csv_rows(records / "tiny.csv")
    assert row["finished"] == "False"
    assert 100 <= int(row["updates"]) < 400

    finish(start(tmp_path, suite))
    rows = csv_rows(records / "tiny.csv")
    assert [row["arm"] for row in rows] == ["edq", "edq, K = 2"]
    assert {(row["finished"], row["updates"]) for row in rows} == {("True", "400")}
    curve = csv_rows(records / "tiny-curves.csv")
    assert [row["step"] for row in curve] == ["100", "200", "300", "400"]
    scores = [float(row["score"]) for row in csv_rows(run / "evaluations.csv")]
    assert [float(row["score"]) for row in curve] == pytest.approx(scores)
    assert float(rows[0]["last"]) == pytest.approx(scores[-1])
    assert trained(run) == uninterrupted(tmp_path, 400)
    before = (records / "tiny.csv").read_bytes()
    assert "1 of them recorded already" in finish(start(tmp_path, suite))
    assert (records / "tiny.csv").read_bytes() == before


def test_a_stopped_suite_ends_though_runs_are_waiting(tmp_path):
    suite = write_suite(tmp_path, 400, 'edq = ""', 'bc = "--preset diffusion-bc"')
    process = start(tmp_path, suite, "--at-once", "1")
    wait_for((tmp_path / "runs" / "tiny" / f"{TASK}__edq__0" / "metrics.csv").exists)
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in finish(process, 130)
    assert not workers(tmp_path)


def test_what_cannot_be_run_is_named(tmp_path):
    suite = write_suite(tmp_path, 40, 'bad = "--gamma 2"')
    assert "__bad__0.log" in finish(start(tmp_path, suite), 1)
    assert finish(start(tmp_path, "no-such"), 2).startswith("error: no-such is no suite")
    suite = write_suite(tmp_path, 40, 'edq = ""')
    run = tmp_path / "runs" / "tiny" / f"{TASK}__edq__0"
    run.mkdir()
    (run / "run.json").write_text('{"args": {"gamma": 0.5}}')
    assert "holds a run with another" in finish(start(tmp_path, suite), 2)


@pytest.mark.parametrize("suite", sorted(path.stem for path in run_suite.SUITES.glob("*.toml")))
def test_every_run_of_a_suite_is_one_its_script_accepts(suite, tmp_path):
    runs = run_suite.read_suite(run_suite.SUITES / f"{suite}.toml", tmp_path, 1)
    for run in runs:
        if run.script.startswith("edq_"):
            args = script_of(run.script).parse_args(run.flags)
            assert (args.env_id, args.seed) == (run.task, run.seed)


def test_the_offline_rule_by_hand():
    """Mean losses of the intervals are 1, 0.5 and 0.502; the last two differ by less than 0.004."""
    losses = {10: 1.5, 20: 0.5, 30: 0.5, 40: 0.5, 50: 0.504, 60: 0.5}
    metrics = [{"step": str(step), "losses/diffusion": str(x)} for step, x in losses.items()]
    assert not run_suite.has_settled(metrics, [20, 40])
    assert run_suite.has_settled(metrics, [20, 40, 60])


def test_a_ray_worker_killed_midway_costs_what_came_after_the_checkpoint(tmp_path):
    """Two nodes on this machine; the worker of a run is killed, and Ray gives the run to
    another."""
    from ray.cluster_utils import Cluster

    suite = write_suite(tmp_path, 600, 'edq = ""')
    run = tmp_path / "runs" / "tiny" / f"{TASK}__edq__0"
    head = {"num_cpus": 1, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    cluster.add_node(num_cpus=1)
    try:
        process = start(tmp_path, suite, "--engine", "ray", "--address", cluster.address)
        wait_for((run / "checkpoint.pt").exists)
        killed = workers(tmp_path)[run.name]
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: workers(tmp_path).get(run.name, killed) != killed)
        finish(process)
    finally:
        cluster.shutdown()
    assert len(csv_rows(tmp_path / "records" / "tiny.csv")) == 2
    assert trained(run) == uninterrupted(tmp_path, 600)
