"""Run a suite: a list of (script, task, arm, seed), each as a process of its own, and collect what comes out.

    python results/benchmark.py --suite antmaze --seeds 5              # the paper's AntMaze, on what this machine has
    python results/benchmark.py --suite antmaze --list                 # what is done, and the commands; runs nothing
    python results/benchmark.py --suite my_suite.toml --at-once 2      # a suite of your own, two runs at a time
    ray start --head && python results/benchmark.py --suite antmaze --engine ray --address auto --per-gpu 4 --threads 4

A suite is a TOML file, see results/suites: flags for all runs, and for each script its tasks and arms (name = flags).
An arm is what is compared: a preset, or a preset with other flags. A run goes to RUNS/SUITE/TASK__ARM__SEED, its output
to the .log beside it. Start the same command again after any stop: a run with a checkpoint is resumed from it, one that
is finished, or whose rows are in the records already, is skipped (empty --runs and --records folders run all anew).

As each run ends, RECORDS/SUITE.csv (a row a run) and RECORDS/SUITE-curves.csv (a row an evaluation) are written
again; --so-far puts in runs that are not finished, as far as they have been evaluated. With Ray this repository and the
folder of runs have to be at the same path on all nodes, on a file system that all see, with the same Python environment
and datasets; a run that is killed, with its worker or alone, is given to another worker, where it goes on from its
checkpoint. A Ctrl-C there loses what came after the last checkpoints.
"""

import ctypes
import fcntl
import json
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tyro
from collect import collect
from record import RECORDS, csv_rows, write_record
from rich.console import Console
from rich.live import Live
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
CURVE = {"step": "step", "q_mean": "q/mean", "q_std": "q/std", "entropy": "policy/entropy"}  # and their metrics
CURVE |= {"q_max_abs": "q/max_abs", "diffusion": "losses/diffusion", "train_seconds": "charts/seconds"}


@dataclass
class Args:
    """Run a suite of runs and collect their scores."""

    suite: str
    """name of a file in results/suites, or path of one"""
    seeds: int | None = None
    """seeds 0 to N - 1 in each group of runs, instead of the suite's own number"""
    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine; ray: tasks on a Ray cluster"""
    address: str | None = None
    """of the Ray cluster, or auto for one on this machine; by default one is started for the time of this command"""
    per_gpu: int = 1
    """runs at once on each GPU, 0: use none; with ray each asks for 1 / per_gpu of one"""
    threads: int = 1
    """CPU threads of a run; several runs of many threads hinder each other, but a GPU's run steps simulators on them"""
    at_once: int | None = None
    """local, without a GPU: runs at once; default: cores / threads"""
    retries: int = 3
    """how often a run that was killed from outside is started again"""
    runs: Path = ROOT / "runs"
    """where the run folders go"""
    records: Path = RECORDS / "benchmark"
    """where the records go"""
    list: bool = False
    """print each run's command and state, and run nothing"""
    so_far: bool = False
    """record also the runs that are not finished, up to their last evaluation, and run nothing"""


@dataclass
class Run:
    """A line of a suite."""

    script: str
    task: str
    arm: str
    seed: int
    flags: list[str]
    acting: dict[str, str]  # after training: name -> flags of an evaluation with --evaluate
    folder: Path


# === The list of runs =================================================================================================
def read_suite(path: Path, runs: Path, seeds: int | None) -> list[Run]:
    """Every run of a suite, by group, then task, then seed: a task is complete before the next one begins."""
    suite, found = tomllib.loads(path.read_text()), []
    for group in suite["runs"]:
        for task, of_task in group["tasks"].items():
            for seed in range(seeds or group.get("seeds", suite.get("seeds", 1))):
                for arm, of_arm in group["arms"].items():
                    parts = [suite.get("flags", ""), group.get("flags", ""), of_task, of_arm]
                    flags = shlex.split(" ".join(["--env-id", task, *parts, "--seed", str(seed)]))
                    folder = runs / path.stem / f"{task}__{arm}__{seed}".replace(" ", "")
                    found.append(Run(group["script"], task, arm, seed, flags, group.get("acting", {}), folder))
    if len({run.folder for run in found}) < len(found):
        raise ValueError("two of its runs have the same task, arm and seed")
    return found


def is_done(run: Run) -> bool:
    """Trained to the end, and scored in every way of acting."""
    scored = json.loads((run.folder / "acting.json").read_text()) if (run.folder / "acting.json").exists() else {}
    return (run.folder / "summary.json").exists() and run.acting.keys() <= scored.keys()


def state_of(run: Run) -> str:
    """What the table shows of a run that is not waiting: updates and last score."""
    evaluations, metrics = csv_rows(run.folder / "evaluations.csv"), csv_rows(run.folder / "metrics.csv")
    last = [float(row["score"]) for row in evaluations if row["step"] == evaluations[-1]["step"]]
    score = f" {sum(last) / len(last):.1f}" if last else ""
    return f"done{score}" if is_done(run) else f"{int(metrics[-1]['step']):,}{score}" if metrics else "started"


def rows_named(run: Run) -> set[tuple[str, str]]:
    """Arm and flags of the rows that a run has in the records when it is done."""
    flags = " ".join(run.flags)
    return {(run.arm, flags), *((f"{run.arm}, {name}", f"{flags} {how}") for name, how in run.acting.items())}


# === A run, whoever calls it ==========================================================================================
def execute(
    run: Run, threads: int, on: dict[str, str], cores: set[int], started: Callable = lambda process: None
) -> int:
    """Start a run, or resume it, and wait; then score it in its other ways of acting. Returns its exit code."""
    python, environment = [sys.executable, str(ROOT / run.script)], os.environ | {"OMP_NUM_THREADS": str(threads)} | on

    def start(*flags: str, **pipes) -> subprocess.Popen:
        # Linux: killed with the worker that started it, so that nobody goes on writing when another worker takes over.
        tie = (lambda: ctypes.CDLL(None).prctl(1, signal.SIGKILL)) if sys.platform == "linux" else None
        how = dict(cwd=ROOT, env=environment, preexec_fn=tie, start_new_session=True)  # Ctrl-C is for us, not for it
        process = subprocess.Popen([*python, *flags], **how, **pipes)
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)
        started(process)
        return process

    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if not (run.folder / "summary.json").exists():
        saved = any(run.folder.glob("checkpoint_*.pt"))
        if not saved:  # stopped before its first checkpoint: there is nothing to resume
            shutil.rmtree(run.folder, ignore_errors=True)
        with open(f"{run.folder}.log", "a") as log:
            flags = ["--resume", str(run.folder)] if saved else [*run.flags, "--run-dir", str(run.folder)]
            if code := start(*flags, stdout=log, stderr=log).wait():
                return code
    scores = {}
    for name, flags in run.acting.items():
        with open(f"{run.folder}.log", "a") as log:
            evaluate = ["--evaluate", str(run.folder), *shlex.split(flags)]
            script = start(*evaluate, stdout=subprocess.PIPE, stderr=log, text=True)
            output = script.communicate()[0]
        if script.returncode:
            return script.returncode
        scores[name] = {k: float(re.search(rf" {k} ([^ ,]+)", output)[1]) for k in ("score", "standard_error")}
    if run.acting:
        (run.folder / "acting.json").write_text(json.dumps(scores))
    return 0


def was_killed(code: int) -> bool:
    """From outside: by a signal, or by one that the script heeded, saving and stopping."""
    return code < 0 or code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


# === Engines: both take the runs that are left, and call `ended(run, exit code)` for each =============================
def local(runs: list[Run], args: Args, ended: Callable[[Run, int], None]) -> None:
    """A pool of processes: so many a GPU or, without one, a set of cores each."""
    import torch

    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [*range(os.cpu_count() or 1)]
    visible, gpus = os.environ.get("CUDA_VISIBLE_DEVICES"), torch.cuda.device_count() if args.per_gpu else 0
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    at_once = gpus * args.per_gpu or args.at_once or max(1, len(allowed) // args.threads)
    slots = queue.SimpleQueue()
    for i in range(at_once):
        own = allowed[i * args.threads : (i + 1) * args.threads] if at_once * args.threads == len(allowed) else ()
        slots.put(({"CUDA_VISIBLE_DEVICES": names[i % gpus] if gpus else ""}, set(own)))
    stopped, processes = threading.Event(), []

    def begun(process: subprocess.Popen) -> None:
        processes.append(process)
        if stopped.is_set():
            process.terminate()

    def one(run: Run) -> None:
        slot, code, tries = slots.get(), -1, 0
        while was_killed(code) and tries <= args.retries and not stopped.is_set():
            code, tries = execute(run, args.threads, *slot, begun), tries + 1
        slots.put(slot)
        if not stopped.is_set():
            ended(run, code)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            for future in [pool.submit(one, run) for run in runs]:
                future.result()
        except BaseException:
            stopped.set()
            for process in processes:
                process.terminate()  # they save and stop
            raise


def on_ray(runs: list[Run], args: Args, ended: Callable[[Run, int], None]) -> None:
    """The same list as Ray tasks; Ray finds the place, and gives a run to another worker when its own dies."""
    import ray

    def one(run: Run) -> int:
        if was_killed(code := execute(run, args.threads, {} if args.per_gpu else {"CUDA_VISIBLE_DEVICES": ""}, set())):
            raise RuntimeError(f"killed, exit code {code}")
        return code

    data = {"MINARI_DATASETS_PATH": os.environ["MINARI_DATASETS_PATH"]} if "MINARI_DATASETS_PATH" in os.environ else {}
    ray.init(address=args.address or "local", log_to_driver=False, runtime_env={"env_vars": data})
    gpus = 1 / args.per_gpu if args.per_gpu and ray.cluster_resources().get("GPU") else 0
    kind = dict(num_cpus=args.threads, num_gpus=gpus, max_retries=args.retries, retry_exceptions=True)
    waiting = {ray.remote(one).options(**kind).remote(run): run for run in runs}
    try:
        while waiting:
            (first, *_), _ = ray.wait([*waiting])
            try:
                code = ray.get(first)
            except ray.exceptions.RayError as error:
                print(f"{waiting[first].folder.name}: {error}", file=sys.stderr)
                code = -1
            ended(waiting.pop(first), code)
    finally:
        ray.shutdown()


# === Records and the live table =======================================================================================
def rows_of(run: Run) -> tuple[list[dict], list[dict]]:
    """Rows of a finished run: its scores (and those of other ways of acting), and its curve."""
    flags = " ".join(run.flags)
    row = {"arm": run.arm, **collect(run.folder), "script": run.script, "flags": flags}
    rows, history = [row], {}
    if (run.folder / "acting.json").exists():
        for name, score in json.loads((run.folder / "acting.json").read_text()).items():
            how = {"arm": f"{run.arm}, {name}", "best": "", "offline": "", "seconds": 0}
            figures = {"last": round(score["score"], 1), "standard_error": round(score["standard_error"], 1)}
            rows.append(row | how | figures | {"flags": f"{flags} {run.acting[name]}"})
    for episode in csv_rows(run.folder / "evaluations.csv"):
        history.setdefault(episode["step"], []).append(float(episode["score"]))
    metrics = {row["step"]: row for row in csv_rows(run.folder / "metrics.csv")}
    curve = []
    for step, scores in history.items():
        figures = {k: float(metrics[step][name]) for k, name in CURVE.items()} if step in metrics else {}
        point = {"task": run.task, "arm": run.arm, "seed": run.seed, "step": int(step)}
        curve.append(point | {"score": sum(scores) / len(scores)} | {k: figures.get(k, "") for k in [*CURVE][1:]})
    return rows, curve


def record(run: Run, suite: str, records: Path, threads: int) -> None:
    """Put a run's rows into the records, in place of those it may have there."""

    def key(row: dict) -> tuple:
        return row["task"], row["arm"], int(row["seed"]), int(row.get("step", 0))

    seconds = 0
    for path, new in zip((records / f"{suite}.csv", records / f"{suite}-curves.csv"), rows_of(run)):
        rows = {key(row): row for row in csv_rows(path) + new}
        names = dict.fromkeys(name for row in rows.values() for name in row)  # an older row may lack a column
        seconds = sum(int(row["seconds"]) for row in rows.values() if "seconds" in row) or seconds  # of training
        rows = [dict.fromkeys(names, "") | rows[k] for k in sorted(rows)]
        write_record(path, rows, time.time() - seconds, suite=suite, threads=threads)


def show(runs: list[Run], left: list[Run], failed: dict[Path, int], seeds: int) -> Table:
    """The runs at work, a line a task and arm and a column a seed, and how many there are beside them."""
    lines: dict[tuple, dict[int, str]] = {}
    done = len(runs) - len(left)
    for run in left:
        state = state_of(run) if run.folder.exists() else ""
        if run.folder in failed:
            state = f"failed: {failed[run.folder]}"
        done += state.startswith("done")
        lines.setdefault((run.task, run.arm), {})[run.seed] = state
    waiting = sum(not state for cells in lines.values() for state in cells.values())
    title = f"{done} of {len(runs)} done, {waiting} waiting"
    table = Table("task", "arm", *(f"seed {i}" for i in range(seeds)), title=title)
    for (task, arm), cells in lines.items():
        if any(state and not state.startswith("done") for state in cells.values()):
            table.add_row(task, arm, *(cells.get(i, "") for i in range(seeds)))
    return table


def main(args: Args) -> int:
    path = Path(args.suite) if args.suite.endswith(".toml") else ROOT / "results" / "suites" / f"{args.suite}.toml"
    try:
        runs = read_suite(path, args.runs.resolve(), args.seeds)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        names = ", ".join(sorted(p.stem for p in (ROOT / "results" / "suites").glob("*.toml")))
        print(f"error: {args.suite} is no suite ({type(error).__name__}: {error}); there are {names}", file=sys.stderr)
        return 2
    recorded = args.records / f"{path.stem}.csv"
    known = {(row["arm"], row["flags"]) for row in csv_rows(recorded) if row.get("finished") != "False"}
    left = [run for run in runs if not rows_named(run) <= known]
    if args.list:
        for run in runs:
            state = "recorded" if run not in left else state_of(run) if run.folder.exists() else "waiting"
            command = shlex.join(["python", run.script, *run.flags, "--run-dir", str(run.folder)])
            print(f"{state:12} OMP_NUM_THREADS={args.threads} {command}")
        return 0
    for run in left:
        if (run.folder / "run.json").exists():
            saved = json.loads((run.folder / "run.json").read_text())["flags"]
            if saved[: len(run.flags)] != run.flags:
                print(f"error: {run.folder} holds a run with other flags; move it away first", file=sys.stderr)
                return 2
    if args.so_far:
        for run in (run for run in left if csv_rows(run.folder / "evaluations.csv")):
            record(run, path.stem, args.records, args.threads)
        return 0
    (args.runs / path.stem).mkdir(parents=True, exist_ok=True)
    held = open(args.runs / path.stem / "lock", "w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"error: another benchmark is at work in {args.runs / path.stem}", file=sys.stderr)
        return 2
    console, failed, turn = Console(), {}, threading.Lock()
    console.print(f"{path.stem}: {len(runs)} runs, {len(runs) - len(left)} of them recorded already")

    def ended(run: Run, code: int) -> None:
        with turn:
            if code == 0:
                record(run, path.stem, args.records, args.threads)
            else:
                failed[run.folder] = code
            what = f"exit code {code}" if code else state_of(run)
            console.print(f"{run.task}, {run.arm}, seed {run.seed}: {what}")

    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell has told its background jobs to ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # the terminal is gone, and no nohup was asked for
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    seeds = 1 + max(run.seed for run in runs)
    engine = partial(local if args.engine == "local" else on_ray, left, args, ended)
    try:
        if console.is_terminal:
            with Live(get_renderable=lambda: show(runs, left, failed, seeds), refresh_per_second=0.5, console=console):
                engine()
        else:
            engine()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    for folder, code in failed.items():
        print(f"error: exit code {code}, see {folder}.log", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__.split("\n\n")[0])))
