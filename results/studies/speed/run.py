"""How fast an update and an evaluation are on this machine, and where the time goes.

    python results/studies/speed/run.py      # sweeps M, T, batch, max-Q, precision, entropy
    python results/studies/speed/run.py --other results/studies/speed/authors.py --other-path CLONE

Each setting is measured in a process of its own, on random data of the given sizes. Ours, the
matmuls of one update alone and, with --other, another implementation take turns, `rounds` times; a
row holds the median of each and its range, and the median and range of the ratios round by round.
Rows go to results/records/speed as they are measured, with the hardware and the versions.

The other side is a Python file with `make_update(setting, data, path)`, which returns a function
that makes one update, and `make_act(setting, path)`, which returns one that maps an observation to
an action.
"""

import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from results.common.records import RECORDS, write_csv
from results.studies.speed.measure import MEASURES, hardware

PASSED = ("obs_dim", "act_dim", "rounds", "seconds", "threads")  # flags that a process gets


@dataclass
class Args:
    """Time updates and evaluations.

    Of the lists the first value is the base; the others are tried one at a time.
    """

    critics: tuple[int, ...] = (64, 2, 4, 8, 16, 128)  # M
    steps: tuple[int, ...] = (5, 2, 10)  # T
    batch: tuple[int, ...] = (256, 1024)  # B
    max_q: tuple[bool, ...] = (False, True)  # the ten-sample backup
    compile: tuple[Literal["on", "off"], ...] = ("on", "off")
    precision: tuple[Literal["fp32", "tf32", "bf16"], ...] | None = None
    """default: all that the device is fast at"""
    entropy: tuple[str, ...] = ("released", "none", "chain")
    cross: bool = False  # every combination instead
    obs_dim: int = 17
    act_dim: int = 6
    ahead: int = 1  # settings made ready side by side, then timed one by one; more: less waiting
    rounds: int = 7  # turns of each side
    seconds: float = 1.0  # length of a turn, at least one update
    threads: int | None = None  # CPU threads, by default torch's own choice
    acting: bool = True  # also evaluation: Hopper, M = 8, K = 50
    together: tuple[int, ...] = (1, 2, 5)  # several runs at once, as plain processes
    other: str | None = None  # Python file of another implementation
    other_path: str = ""  # what its functions get as `path`
    out: Path | None = None  # default: results/records/speed/cpu.csv or gpu.csv
    setting: str | None = None  # one setting as JSON: what a child process gets


def fast_precisions(device: str):
    """What is worth measuring here."""
    if device == "cuda":
        return ("tf32", "bf16", "fp32")
    has_bf16 = "_bf16" in hardware(device)["instructions"]
    return ("fp32", "bf16") if has_bf16 else ("fp32",)


def settings(args: Args, device: str):
    """What to measure: around the base one axis at a time, or everything."""
    precisions = args.precision or fast_precisions(device)
    axes = {
        "M": args.critics,
        "T": args.steps,
        "B": args.batch,
        "max_q": args.max_q,
        "compile": args.compile,
        "precision": precisions,
        "entropy": args.entropy,
    }
    if args.cross:
        found = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    else:
        base = {name: values[0] for name, values in axes.items()}
        found = [base]
        for name, values in axes.items():
            first = 0 if name in ("M", "max_q") else 1
            for value in values[first:]:
                found.append(base | {name: value})
                if name in ("M", "max_q", "T"):  # these matter most: also in the other modes
                    found += [base | {name: value, "compile": mode} for mode in args.compile[1:]]
                    found += [base | {name: value, "precision": p} for p in precisions[1:]]
    for setting in found:
        if setting["T"] < 3 and setting["entropy"] == "released":
            setting["entropy"] = "none"  # T is too short for it
    distinct = dict.fromkeys(tuple(setting.items()) for setting in found)
    return [dict(items) for items in distinct]


# === Processes ================================================================================
class Child:
    """A process that makes itself ready to measure one setting, prints READY and waits for a
    line."""

    def __init__(self, setting: dict, flags):
        self.setting = setting
        self.errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads would fill up
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--setting", json.dumps(setting), *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def line(self, start: str) -> str | None:
        """The rest of its next line that begins so; None, and what it complained of, if it ends."""
        for line in self.process.stdout:
            if line.startswith(start):
                return line.removeprefix(start)
        self.errors.seek(0)
        complaint = self.errors.read()[-2000:]
        print(f"failed: {self.setting}\n{complaint}", file=sys.stderr)
        return None

    def go(self, words: str = ""):
        """Its turn."""
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()

    def end(self):
        """An empty line: that was all."""
        self.process.communicate("\n")


def as_child(args: Args, device: str):
    """In a child process: one row, as JSON."""
    setting = json.loads(args.setting)
    measure = MEASURES[setting.pop("what")]
    row = measure(args, setting, device)
    if row:
        print("ROW " + json.dumps(row | hardware(device)))


def flags_of(args: Args):
    """What every child is told."""
    values = {name: asdict(args)[name] for name in PASSED}
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in values.items() if v is not None]
    if args.other:
        flags += ["--other", args.other, "--other-path", args.other_path]
    return flags


def show(row: dict):
    """A measured row, without its hardware and ranges."""
    cells = []
    for name, value in row.items():
        if not name.endswith(("_min", "_max")) and name not in hardware("cpu"):
            cells.append(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}")
    print(*cells, flush=True)


def measured(todo, ahead: int, flags) -> Iterator[tuple[str, dict]]:
    """What was measured and its row, one setting after the other."""
    for i in range(0, len(todo), ahead):
        children = [Child(setting, flags) for setting in todo[i : i + ahead]]
        ready = [child for child in children if child.line("READY") is not None]
        for child in ready:
            child.go()
            row = child.line("ROW ")
            if row is not None:
                child.end()
                yield child.setting["what"], json.loads(row)


# === Several equal runs at once ===============================================================
def rate_of(children, threads: int):
    """Updates a second of each, all at work together."""
    for child in children:
        child.go(str(threads))
    for child in children:
        child.line("READY")
    for child in children:
        child.go()
    return [float(child.line("ROW") or "nan") for child in children]


def side_by_side(args: Args, base: dict, flags, device: str, mps: bool) -> Iterator[dict]:
    """Rows of k equal runs at once: threads split between them, then (on a CPU) not."""
    cores = torch.get_num_threads()
    for M in dict.fromkeys((4, base["M"])):
        setting = {**base, "what": "together", "M": M}
        children = [Child(setting, flags) for _ in range(max(args.together))]
        if any(child.line("READY") is None for child in children):
            return
        for k in args.together:
            splits = [max(1, cores // k)]
            if device == "cpu" and k > 1:
                splits.append(cores)
            for threads in dict.fromkeys(splits):
                speeds = rate_of(children[:k], threads)
                row = {"M": M, "precision": base["precision"], "device": device, "mps": mps}
                row |= {"runs": k, "threads_each": threads, "slowest": min(speeds)}
                row["updates_per_second_in_all"] = sum(speeds)
                about = hardware(device)
                del about["threads"]
                yield row | about
        for child in children:
            child.end()


def run_together(args: Args, base: dict, flags, device: str) -> Iterator[dict]:
    """Rows of several runs at once; on a GPU without and with CUDA MPS."""
    yield from side_by_side(args, base, flags, device, mps=False)
    server = shutil.which("nvidia-cuda-mps-control") if device == "cuda" else None
    if server and subprocess.run([server, "-d"]).returncode == 0:
        try:
            yield from side_by_side(args, base, flags, device, mps=True)
        finally:
            subprocess.run([server], input="quit\n", text=True)


def acting_settings(args: Args, precisions):
    modes = itertools.product(args.compile, precisions)
    common = {"what": "acting", "M": 8, "T": 5, "K": 50}
    return [{**common, "compile": mode, "precision": precision} for mode, precision in modes]


def main(args: Args):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.setting:
        as_child(args, device)
        return
    found = settings(args, device)
    todo = [{"what": "update", **setting} for setting in found]
    if args.acting:
        precisions = [*dict.fromkeys(setting["precision"] for setting in found)]
        todo += acting_settings(args, precisions)
    name = "gpu" if device == "cuda" else "cpu"
    out = args.out or RECORDS / "speed" / f"{name}.csv"
    paths = {"update": out, "acting": out.with_stem(f"{out.stem}-acting")}
    rows = {"update": [], "acting": []}
    for what, row in measured(todo, args.ahead, flags_of(args)):
        show(row)
        rows[what].append(row)
        write_csv(paths[what], rows[what], digits=4)
    if args.together:
        flags = [flag for flag in flags_of(args) if not flag.startswith("--threads")]
        flags.append("--threads=1")  # until told otherwise
        together = []
        for row in run_together(args, found[0], flags, device):
            show(row)
            together.append(row)
            write_csv(out.with_stem(f"{out.stem}-together"), together, digits=4)


if __name__ == "__main__":
    main(tyro.cli(Args))
