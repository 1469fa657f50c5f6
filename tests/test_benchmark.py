"""results/benchmark.py: a suite is run, stopped, resumed and recorded, on this machine and on a Ray cluster."""

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

sys.path.insert(0, str(ROOT / "results"))
import benchmark
from record import csv_rows, read_record

TINY = "--num-critics 2 --hidden-dim 8 --batch-size 8 --eval-episodes 1 --num-candidates 1 --log-every 50"


def write_suite(folder: Path, updates: int, arms: str = 'edq = ""\nother = "--eta 0.5"\n') -> Path:
    path = folder / "tiny.toml"
    path.write_text(
        f'flags = "{TINY} --gradient-steps {updates} --eval-every {updates // 4}"\n'
        f'[[runs]]\nscript = "edq_antmaze.py"\n'
        f'tasks.pointmaze-umaze-embedded = ""\nacting."K = 2" = "--num-candidates 2"\n[runs.arms]\n{arms}'
    )
    return path


def start(folder: Path, suite: Path, *flags: str) -> subprocess.Popen:
    """A benchmark with its runs and records in `folder`."""
    where = ["--runs", str(folder / "runs"), "--records", str(folder / "records")]
    command = [sys.executable, "results/benchmark.py", "--suite", str(suite), *where, *flags]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == code, output
    return output


def parents(folder: Path) -> dict[str, int]:
    """Process and parent of each script at work on a run in `folder`, by the name of the run."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            if "edq_antmaze.py" in words[1] and any(str(folder) in word for word in words):
                run = next(Path(word).name for word in words if str(folder) in word)
                found[run] = int(
                    re.search(r"PPid:\s+(\d+)", (path.parent / "status").read_text())[1]
                )
        except (OSError, IndexError):
            continue
    return found


def wait_for(what, seconds: float = 120):
    """What comes out as soon as it is true."""
    end = time.time() + seconds
    while not (found := what()):
        assert time.time() < end, "nothing came"
        time.sleep(0.05)
    return found


def trained(folder: Path) -> list[dict]:
    """A run's metrics without its clocks."""
    with open(folder / "metrics.csv") as file:
        return [
            {k: v for k, v in row.items() if k not in ("charts/sps", "charts/seconds")}
            for row in csv.DictReader(file)
        ]


def test_a_suite_runs_and_is_recorded_and_then_skipped(tmp_path):
    suite = write_suite(tmp_path, 100)
    finish(start(tmp_path, suite))
    about, rows = read_record(tmp_path / "records" / "tiny.csv")
    assert about["suite"] == "tiny"
    assert [r["arm"] for r in rows] == ["edq", "edq, K = 2", "other", "other, K = 2"]
    curve = read_record(tmp_path / "records" / "tiny-curves.csv")[1]
    assert [(r["arm"], r["step"]) for r in curve] == [
        (a, s) for a in ("edq", "other") for s in (25, 50, 75, 100)
    ]
    for row in rows:  # what is recorded is what the run itself wrote
        run = (
            tmp_path / "runs" / "tiny" / f"pointmaze-umaze-embedded__{row['arm'].split(',')[0]}__0"
        )
        episodes = [
            float(e["score"]) for e in csv_rows(run / "evaluations.csv") if e["step"] == "100"
        ]
        assert "K = 2" in row["arm"] or row["last"] == pytest.approx(sum(episodes) / len(episodes))
        assert row["dataset"] and row["hash"] and row["updates"] == 100 and row["torch"]
    before = (tmp_path / "records" / "tiny.csv").read_bytes()
    assert "2 of them recorded already" in finish(start(tmp_path, suite))
    assert (tmp_path / "records" / "tiny.csv").read_bytes() == before
    assert all(
        line.startswith("recorded")
        for line in finish(start(tmp_path, suite, "--list")).splitlines()
    )


def test_a_stopped_suite_goes_on_from_its_checkpoints(tmp_path):
    suite = write_suite(tmp_path, 400, 'edq = ""\n')
    process, folder = (
        start(tmp_path, suite),
        tmp_path / "runs" / "tiny" / "pointmaze-umaze-embedded__edq__0",
    )
    wait_for(lambda: (folder / "checkpoint_0000000100.pt").exists())
    process.send_signal(signal.SIGTERM)
    assert "the same command goes on" in finish(process, 130)
    assert not parents(tmp_path), "a run outlived the benchmark"
    finish(start(tmp_path, suite, "--so-far"))
    (row,), curve = (
        csv_rows(tmp_path / "records" / "tiny.csv"),
        csv_rows(tmp_path / "records" / "tiny-curves.csv"),
    )
    assert (row["finished"], row["updates"]) == ("False", curve[-1]["step"]) and int(
        row["updates"]
    ) < 400
    scores = [
        float(e["score"])
        for e in csv_rows(folder / "evaluations.csv")
        if e["step"] == row["updates"]
    ]
    assert (
        float(row["last"]) == pytest.approx(sum(scores) / len(scores))
        and float(row["updates_per_second"]) > 0
    )
    finish(start(tmp_path, suite))
    assert {
        (row["finished"], row["updates"]) for row in csv_rows(tmp_path / "records" / "tiny.csv")
    } == {("True", "400")}
    assert "--resume" in (folder / "run.json").read_text()
    whole = tmp_path / "whole"
    flags = [
        *TINY.split(),
        "--gradient-steps",
        "400",
        "--eval-every",
        "100",
        "--run-dir",
        str(whole),
    ]
    subprocess.run(
        [sys.executable, ROOT / "edq_antmaze.py", *flags], check=True, capture_output=True
    )
    assert trained(folder) == trained(whole)


def test_a_failing_run_is_named_and_the_others_go_on(tmp_path):
    suite = write_suite(tmp_path, 40, 'bad = "--gamma 2"\nedq = ""\n')
    output = finish(start(tmp_path, suite), 1)
    assert "error: exit code 2, see" in output and "__bad__0.log" in output
    assert {r["arm"] for r in csv_rows(tmp_path / "records" / "tiny.csv")} == {"edq", "edq, K = 2"}


def test_bad_suites_end_with_a_sentence(tmp_path):
    suite = write_suite(tmp_path, 40, 'edq = ""\n')
    for flags in (["--suite", "no-such"], ["--suite", str(tmp_path / "none.toml")]):
        done = subprocess.run(
            [sys.executable, "results/benchmark.py", *flags],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert (
            done.returncode == 2
            and done.stderr.startswith("error:")
            and done.stderr.count("\n") == 1
        )
    run = tmp_path / "runs" / "tiny" / "pointmaze-umaze-embedded__edq__0"
    run.mkdir(parents=True)
    (run / "run.json").write_text(
        '{"flags": ["--env-id", "pointmaze-umaze-embedded", "--seed", "5"]}'
    )
    assert "other flags" in finish(start(tmp_path, suite), 2)


@pytest.mark.parametrize(
    "suite", sorted(path.stem for path in (ROOT / "results" / "suites").glob("*.toml"))
)
def test_every_run_of_a_suite_is_one_its_script_accepts(suite, tmp_path):
    from conftest import load_script

    path = ROOT / "results" / "suites" / f"{suite}.toml"
    for run in benchmark.read_suite(path, tmp_path, 1):
        args, _ = load_script(Path(run.script).stem).parse_args(run.flags)
        assert (args.env_id, args.seed) == (run.task, run.seed)


def test_a_ray_worker_killed_midway_costs_what_came_after_the_checkpoint(tmp_path):
    """Two nodes on this machine; the worker of a run is killed, and Ray gives the run to another one."""
    from ray.cluster_utils import Cluster

    suite = write_suite(tmp_path, 2000)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=1)
    try:
        process = start(tmp_path, suite, "--engine", "ray", "--address", cluster.address)
        folder = tmp_path / "runs" / "tiny" / "pointmaze-umaze-embedded__edq__0"
        wait_for(lambda: (folder / "checkpoint_0000000500.pt").exists())
        workers = parents(tmp_path)
        assert len(set(workers.values())) == 2, "both nodes are at work"
        os.kill(workers[folder.name], signal.SIGKILL)
        wait_for(
            lambda: parents(tmp_path).get(folder.name, workers[folder.name]) != workers[folder.name]
        )
        finish(process)
    finally:
        cluster.shutdown()
    assert "--resume" in (folder / "run.json").read_text()
    assert {r["arm"] for r in csv_rows(tmp_path / "records" / "tiny.csv")} >= {"edq", "other"}
    whole = tmp_path / "whole"
    flags = [
        *TINY.split(),
        "--gradient-steps",
        "2000",
        "--eval-every",
        "500",
        "--run-dir",
        str(whole),
    ]
    subprocess.run(
        [sys.executable, ROOT / "edq_antmaze.py", *flags], check=True, capture_output=True
    )
    assert trained(folder) == trained(whole)
