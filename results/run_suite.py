"""Run a suite, a list of (script, task, arm, seed), each as a process, and record what comes out.

    python results/run_suite.py --suite antmaze --seeds 5           # the paper's AntMaze
    python results/run_suite.py --suite antmaze --list              # what is done, and the commands
    python results/run_suite.py --suite my_suite.toml --at-once 2   # a suite of your own
    python results/run_suite.py --suite antmaze --engine ray --address auto --per-gpu 4 --threads 4

A suite is a TOML file, see results/suites: flags for all runs, and for each script its tasks and
arms (name = flags). An arm is what is compared: a preset, or a preset with other flags. A run goes
to RUNS/SUITE/TASK__ARM__SEED, its output to the .log beside it. Start the same command again after
any stop: a run that was begun goes on from its checkpoint, one that is finished, or whose rows are
in the records already, is skipped. Nothing is deleted.

As each run ends, RECORDS/SUITE.csv (a row a run) and RECORDS/SUITE-curves.csv (a row an
evaluation) are written again; --so-far puts in runs that are not finished, as far as they have
been evaluated. With Ray this repository and the folder of runs have to be at the same path on all
nodes, on a file system that all see, with the same Python environment and datasets. A run that is
killed is given to another worker, where it goes on from its checkpoint. A Ctrl-C there loses what
came after the last checkpoints.
"""

import ctypes
import fcntl
import json
import os
import queue
import re
import shlex
import signal
import statistics
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console
from rich.live import Live
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from results.common.records import RECORDS, ROOT, csv_rows, write_record
from results.common.runs import fail, read_json, script_of

SUITES = ROOT / "results" / "suites"
SETTLED = 4e-3  # difference of diffusion losses
CURVE = {  # columns of a curve, and the metrics that they are
    "q_mean": "q/mean",
    "q_std": "q/std",
    "entropy": "policy/entropy",
    "q_max_abs": "q/max_abs",
    "diffusion": "losses/diffusion",
}


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
    """of the Ray cluster, or auto for one on this machine; by default one is started"""
    per_gpu: int = 1
    """runs at once on each GPU, 0: use none; with ray each asks for 1 / per_gpu of one"""
    threads: int = 1
    """CPU threads of a run"""
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

    def finished(self) -> bool:
        """Trained to the end."""
        return (self.folder / "summary.json").exists()

    def scored(self):
        """Scores of its other ways of acting, as far as they are known."""
        path = self.folder / "acting.json"
        return read_json(path) if path.exists() else {}

    def done(self) -> bool:
        """Trained to the end, and scored in every way of acting."""
        return self.finished() and self.acting.keys() <= self.scored().keys()


# === The list of runs =========================================================================
def read_suite(path: Path, runs: Path, seeds: int | None):
    """Every run of a suite, by group, then task, then seed: a task is complete before the next."""
    suite = tomllib.loads(path.read_text())
    found = []
    for group in suite["runs"]:
        count = seeds or group.get("seeds", suite.get("seeds", 1))
        for task, of_task in group["tasks"].items():
            for seed in range(count):
                for arm, of_arm in group["arms"].items():
                    parts = [suite.get("flags", ""), group.get("flags", ""), of_task, of_arm]
                    text = " ".join(["--env-id", task, *parts, "--seed", str(seed)])
                    name = f"{task}__{arm}__{seed}".replace(" ", "")
                    folder = runs / path.stem / name
                    acting = group.get("acting", {})
                    flags = shlex.split(text)
                    found.append(Run(group["script"], task, arm, seed, flags, acting, folder))
    if len({run.folder for run in found}) < len(found):
        raise ValueError("two of its runs have the same task, arm and seed")
    return found


def find_suite(args: Args):
    """The suite's file and its runs."""
    path = SUITES / f"{args.suite}.toml"
    if args.suite.endswith(".toml"):
        path = Path(args.suite).expanduser()
    try:
        return path, read_suite(path, args.runs, args.seeds)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        names = ", ".join(sorted(p.stem for p in SUITES.glob("*.toml")))
        reason = f"{type(error).__name__}: {error}"
        fail(f"{args.suite} is no suite ({reason}); there are {names}")


def rows_named(run: Run):
    """Arm and flags of the rows that a run has in the records when it is done."""
    flags = " ".join(run.flags)
    acting = {(f"{run.arm}, {name}", f"{flags} {how}") for name, how in run.acting.items()}
    return {(run.arm, flags), *acting}


def state_of(run: Run) -> str:
    """What the table shows of a run that has begun: updates and last score."""
    evaluations = csv_rows(run.folder / "evaluations.csv")
    metrics = csv_rows(run.folder / "metrics.csv")
    score = ""
    if evaluations:
        newest = evaluations[-1]["step"]
        last = [float(row["score"]) for row in evaluations if row["step"] == newest]
        score = f" {statistics.fmean(last):.1f}"
    if run.done():
        return f"done{score}"
    if metrics:
        return f"{int(metrics[-1]['step']):,}{score}"
    return "started"


# === A run, whoever calls it ==================================================================
def die_with_parent():
    """Linux: killed with the worker that started it, so that no two write to one folder."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


@dataclass
class Starter:
    """Starts the processes of one run: with these threads, variables and cores."""

    run: Run
    threads: int
    variables: dict[str, str]
    cores: set[int]
    started: Callable[[subprocess.Popen], None] = lambda process: None

    def start(self, flags, **pipes: object) -> subprocess.Popen:
        environment = os.environ | {"OMP_NUM_THREADS": str(self.threads)} | self.variables
        command = [sys.executable, str(ROOT / self.run.script), *flags]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            preexec_fn=die_with_parent,
            start_new_session=True,  # Ctrl-C is for us, not for it
            **pipes,
        )
        if self.cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, self.cores)
        self.started(process)
        return process


def train(starter: Starter) -> int:
    """Start a run, or resume it, and wait. Returns its exit code."""
    run = starter.run
    flags = [*run.flags, "--run-dir", str(run.folder)]
    if (run.folder / "run.json").exists():
        flags = ["--resume", str(run.folder)]
    with open(f"{run.folder}.log", "a") as log:
        return starter.start(flags, stdout=log, stderr=log).wait()


def score_acting(starter: Starter) -> int:
    """Score a trained run in its other ways of acting. Returns an exit code."""
    run = starter.run
    scores = {}
    for name, how in run.acting.items():
        flags = ["--evaluate", str(run.folder), *shlex.split(how)]
        with open(f"{run.folder}.log", "a") as log:
            process = starter.start(flags, stdout=subprocess.PIPE, stderr=log, text=True)
            output = process.communicate()[0]
            log.write(output)
        if process.returncode:
            return process.returncode
        found = {}
        for figure in ("score", "standard_error"):
            found[figure] = float(re.search(rf"\b{figure} ([^ ,]+)", output)[1])
        scores[name] = found
    (run.folder / "acting.json").write_text(json.dumps(scores))
    return 0


def execute(starter: Starter) -> int:
    """Train, then score the other ways of acting. Returns an exit code."""
    run = starter.run
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    if not run.finished():
        code = train(starter)
        if code:
            return code
    return score_acting(starter) if run.acting else 0


def was_killed(code: int) -> bool:
    """From outside: by a signal, or by one that the script heeded, saving and stopping."""
    return code < 0 or code in (128 + signal.SIGINT, 128 + signal.SIGTERM)


# === Engines: both take the runs that are left, and call `ended(run, exit code)` for each =====
Ended = Callable[[Run, int], None]


def places(args: Args):
    """Where runs go at once: so many a GPU or, without one, a set of cores each."""
    import torch

    cores = list(range(os.cpu_count() or 1))
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    gpus = torch.cuda.device_count() if args.per_gpu else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(i) for i in range(gpus)]
    at_once = gpus * args.per_gpu or args.at_once or max(1, len(cores) // args.threads)
    fits = at_once * args.threads == len(cores)
    found = []
    for i in range(at_once):
        own = set(cores[i * args.threads : (i + 1) * args.threads]) if fits else set()
        gpu = names[i % gpus] if gpus else ""
        found.append(({"CUDA_VISIBLE_DEVICES": gpu}, own))
    return found


def local(runs, args: Args, ended: Ended):
    """A pool of processes."""
    slots = queue.SimpleQueue()
    free = places(args)
    for place in free:
        slots.put(place)
    stopped = threading.Event()
    processes = []

    def started(process: subprocess.Popen):
        processes.append(process)
        if stopped.is_set():
            process.terminate()

    def one(run: Run):
        variables, cores = slots.get()
        starter = Starter(run, args.threads, variables, cores, started)
        for _ in range(args.retries + 1):
            if stopped.is_set():
                break
            code = execute(starter)
            if not was_killed(code):
                break
        slots.put((variables, cores))  # after a stop too: the runs that wait for it end at once
        if not stopped.is_set():
            ended(run, code)

    with ThreadPoolExecutor(len(free)) as pool:
        try:
            for future in [pool.submit(one, run) for run in runs]:
                future.result()
        except BaseException:
            stopped.set()
            for process in processes:
                process.terminate()  # they save and stop
            raise


def on_ray(runs, args: Args, ended: Ended):
    """The same list as Ray tasks; Ray gives a run to another worker when its own dies."""
    import ray

    variables = {} if args.per_gpu else {"CUDA_VISIBLE_DEVICES": ""}

    def one(run: Run) -> int:
        code = execute(Starter(run, args.threads, variables, set()))
        if was_killed(code):
            raise RuntimeError(f"killed, exit code {code}")
        return code

    passed = {"PYTHONPATH": str(ROOT)}  # of the workers
    if "MINARI_DATASETS_PATH" in os.environ:
        passed["MINARI_DATASETS_PATH"] = os.environ["MINARI_DATASETS_PATH"]
    address = args.address or "local"
    ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": passed})
    has_gpus = args.per_gpu and ray.cluster_resources().get("GPU")
    task = ray.remote(one).options(
        num_cpus=args.threads,
        num_gpus=1 / args.per_gpu if has_gpus else 0,
        max_retries=args.retries,
        retry_exceptions=True,
    )
    waiting = {task.remote(run): run for run in runs}
    try:
        while waiting:
            (first, *_), _ = ray.wait([*waiting])
            run = waiting.pop(first)
            try:
                code = ray.get(first)
            except ray.exceptions.RayError as error:
                print(f"{run.folder.name}: {error}", file=sys.stderr)
                code = -1
            ended(run, code)
    finally:
        ray.shutdown()


# === Records ==================================================================================
def scores_by_step(run: Run):
    """Scores of the episodes of each evaluation."""
    scores = {}
    for row in csv_rows(run.folder / "evaluations.csv"):
        scores.setdefault(int(row["step"]), []).append(float(row["score"]))
    return scores


def summary_of(run: Run) -> dict:
    """summary.json; of a run that is not finished what it would hold: last and best score so
    far."""
    if run.finished():
        return read_json(run.folder / "summary.json")
    history = []
    for step, scores in scores_by_step(run).items():
        spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
        error = spread / len(scores) ** 0.5
        mean = statistics.fmean(scores)
        history.append({"step": step, "score": mean, "standard_error": error})
    best = max(history, key=lambda point: point["score"])
    return {"last": history[-1], "best": best, "offline": history[-1]}


def seconds_of(metrics) -> float:
    """What the updates took, without the evaluations."""
    ends = [0, *(int(row["step"]) for row in metrics)]
    updates = [end - start for start, end in pairwise(ends)]
    return sum(n / float(row["charts/sps"]) for n, row in zip(updates, metrics))


def has_settled(metrics, evaluations) -> bool:
    """Whether the mean diffusion loss of an interval between evaluations is that of the one before.

    That is when an evaluation can be chosen without the environment (App. B.8 of the paper).
    """
    losses = []
    before = 0
    for step in evaluations:
        inside = [row for row in metrics if before < int(row["step"]) <= step]
        ends = [before, *(int(row["step"]) for row in inside)]
        updates = [end - start for start, end in pairwise(ends)]
        of_rows = [float(row["losses/diffusion"]) for row in inside]
        total = sum(n * loss for n, loss in zip(updates, of_rows))
        losses.append(total / (step - before))
        before = step
    return any(abs(b - a) < SETTLED for a, b in pairwise(losses))


def main_row(run: Run) -> dict:
    """A run in the records; of one that is not finished, as far as it has been evaluated."""
    about = read_json(run.folder / "run.json")
    args, data = about["args"], about["dataset"]
    summary = summary_of(run)
    last = summary["last"]
    offline = summary["offline"]
    metrics = csv_rows(run.folder / "metrics.csv")
    metrics = [row for row in metrics if int(row["step"]) <= last["step"]]
    speeds = [float(row["charts/sps"]) for row in metrics]
    return {
        "arm": run.arm,
        "task": run.task,
        "preset": args["preset"],
        "seed": run.seed,
        "dataset": data["id"],
        "hash": data["hash"],
        "updates": last["step"],
        "critics": args["num_critics"],
        "diffusion_loss": args["diffusion_loss"],
        "action_clip": args["action_clip"],
        "episodes": args["eval_episodes"],
        "last": round(last["score"], 1),
        "standard_error": round(last["standard_error"], 1),
        "best": round(summary["best"]["score"], 1),
        "offline": round(offline["score"], 1),
        "data": round(data["mean_score"], 1),
        "seconds": round(seconds_of(metrics)),
        "threads": about["threads"],
        "torch": about["versions"]["torch"],
        "flags": " ".join(run.flags),
        "settled": has_settled(metrics, list(scores_by_step(run))),
        "gpu": about["device"] if about["device"] != "cpu" else "",
        "capability": about["cpu"],
        "precision": args["precision"],
        "compile": "on" if args["compile"] else "off",
        "script_hash": about["script_hash"],
        "finished": run.finished(),
        "updates_per_second": statistics.median(speeds) if speeds else "",
        "script": run.script,
    }


def acting_rows(run: Run, trained: dict):
    """A row for each other way of acting."""
    rows = []
    for name, score in run.scored().items():
        figures = {k: round(score[k], 1) for k in ("score", "standard_error")}
        changes = {
            "arm": f"{run.arm}, {name}",
            "last": figures["score"],
            "standard_error": figures["standard_error"],
            "best": "",
            "offline": "",
            "seconds": 0,
            "flags": f"{trained['flags']} {run.acting[name]}",
        }
        rows.append(trained | changes)
    return rows


def curve_rows(run: Run):
    """A row an evaluation: mean score, and the metrics of that update."""
    metrics = {int(row["step"]): row for row in csv_rows(run.folder / "metrics.csv")}
    rows = []
    for step, scores in scores_by_step(run).items():
        row = {"task": run.task, "arm": run.arm, "seed": run.seed, "step": step}
        row["score"] = statistics.fmean(scores)
        for name, metric in CURVE.items():
            row[name] = float(metrics[step][metric]) if step in metrics else ""
        rows.append(row)
    return rows


def key_of(row: dict) -> tuple:
    return row["task"], row["arm"], int(row["seed"]), int(row.get("step", 0))


def merged(path: Path, new):
    """Rows of a record, those of `new` in place of theirs."""
    rows = {key_of(row): row for row in csv_rows(path) + new}
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return [dict.fromkeys(names, "") | rows[key] for key in sorted(rows)]


def record(run: Run, suite: str, records: Path, threads: int):
    """Put a run's rows into the records, in place of those it may have there."""
    trained = main_row(run)
    path = records / f"{suite}.csv"
    rows = merged(path, [trained, *acting_rows(run, trained)])
    started = time.time() - sum(int(row["seconds"] or 0) for row in rows)  # of all its training
    write_record(path, rows, started, suite=suite, threads=threads)
    curves = records / f"{suite}-curves.csv"
    write_record(curves, merged(curves, curve_rows(run)), started, suite=suite, threads=threads)


# === The command ==============================================================================
def show(runs, left, failed) -> Table:
    """The runs at work, a line a task and arm and a column a seed, and how many there are."""
    lines = {}
    done = len(runs) - len(left)
    for run in left:
        state = state_of(run) if run.folder.exists() else ""
        if run.folder in failed:
            state = f"failed: {failed[run.folder]}"
        done += state.startswith("done")
        lines.setdefault((run.task, run.arm), {})[run.seed] = state
    waiting = sum(not state for cells in lines.values() for state in cells.values())
    seeds = range(1 + max(run.seed for run in runs))
    title = f"{done} of {len(runs)} done, {waiting} waiting"
    table = Table("task", "arm", *(f"seed {i}" for i in seeds), title=title)
    for (task, arm), cells in lines.items():
        busy = [state for state in cells.values() if state and not state.startswith("done")]
        if busy:
            table.add_row(task, arm, *(cells.get(i, "") for i in seeds))
    return table


def print_list(runs, left, threads: int):
    """State and command of every run."""
    for run in runs:
        state = "waiting"
        if run not in left:
            state = "recorded"
        elif run.folder.exists():
            state = state_of(run)
        command = shlex.join(["python", run.script, *run.flags, "--run-dir", str(run.folder)])
        print(f"{state:12} OMP_NUM_THREADS={threads} {command}")


def check_folders(left):
    """No folder holds a run with other arguments."""
    for run in left:
        path = run.folder / "run.json"
        if not path.exists():
            continue
        saved = read_json(path)["args"]
        asked = asdict(script_of(run.script).parse_args(run.flags))
        for name in ("run_dir", "resume", "precision"):  # settled by the run itself
            asked.pop(name)
        other = [name for name, value in asked.items() if saved.get(name) != value]
        if other:
            fail(f"{run.folder} holds a run with another {', '.join(other)}; move it away first")


def hold(folder: Path) -> object:
    """A lock on the suite's folder until this process ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / "lock", "a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another run_suite.py is at work in {folder}")
    return lock


def heed_signals():
    """Stop at Ctrl-C, SIGTERM, and a terminal that is gone unless nohup was asked for."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def run_all(runs, left, args: Args, suite: str) -> int:
    """Run what is left and record it as it ends. Returns an exit code."""
    console = Console()
    failed = {}
    turn = threading.Lock()
    recorded = len(runs) - len(left)
    console.print(f"{suite}: {len(runs)} runs, {recorded} of them recorded already")

    def ended(run: Run, code: int):
        with turn:
            if code:
                failed[run.folder] = code
                what = f"exit code {code}"
            else:
                record(run, suite, args.records, args.threads)
                what = state_of(run)
            console.print(f"{run.task}, {run.arm}, seed {run.seed}: {what}")

    engine = local if args.engine == "local" else on_ray
    try:
        if console.is_terminal:
            live = Live(
                get_renderable=lambda: show(runs, left, failed),
                refresh_per_second=0.5,
                console=console,
            )
            with live:
                engine(left, args, ended)
        else:
            engine(left, args, ended)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130
    for folder, code in failed.items():
        print(f"error: exit code {code}, see {folder}.log", file=sys.stderr)
    return 1 if failed else 0


def main(args: Args) -> int:
    args.runs = args.runs.expanduser().resolve()
    args.records = args.records.expanduser()
    path, runs = find_suite(args)
    rows = csv_rows(args.records / f"{path.stem}.csv")
    known = {(row["arm"], row["flags"]) for row in rows if row.get("finished") != "False"}
    left = [run for run in runs if not rows_named(run) <= known]
    if args.list:
        print_list(runs, left, args.threads)
        return 0
    check_folders(left)
    if args.so_far:
        for run in left:
            if csv_rows(run.folder / "evaluations.csv"):
                record(run, path.stem, args.records, args.threads)
        return 0
    lock = hold(args.runs / path.stem)
    heed_signals()
    try:
        return run_all(runs, left, args, path.stem)
    finally:
        lock.close()


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args, description=__doc__.split("\n\n")[0])))
