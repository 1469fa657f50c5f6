"""How fast an update and an evaluation are on this machine, and where the time goes.

    python results/speed.py                                        # sweeps M, T, batch, max-Q, precision, entropy
    python results/speed.py --critics 4 64 --other results/speed_authors.py --other-path ~/entropy-offlineRL

Each setting is measured in a process of its own, on random data of the given sizes. Ours, the matrix products of one
update alone and, with --other, another implementation take turns, `rounds` times; a row holds the median of each and
its range, and the median and range of the ratios round by round. Rows go to a CSV file as they are measured, with the
hardware and the versions; --plot draws how the cost grows with M and with T (the paper's Table 5).

The other side is a Python file with `make_update(setting, data, path)`, which returns a function that makes one update,
and `make_act(setting, path)`, which returns one that maps an observation to an action; LABEL is its name in the plot.
"""

import csv
import importlib.util
import itertools
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
import tyro
from record import csv_rows, markdown
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
Tensor = torch.Tensor


@dataclass
class Args:
    """Time updates and evaluations. Of the lists the first value is the base; the others are tried one at a time."""

    critics: tuple[int, ...] = (64, 2, 4, 8, 16, 128)  # M
    steps: tuple[int, ...] = (5, 2, 10)  # T
    batch: tuple[int, ...] = (256, 1024)  # B
    max_q: tuple[bool, ...] = (False, True)  # the ten-sample backup
    compile: tuple[Literal["on", "off"], ...] = ("on", "off")
    precision: tuple[Literal["fp32", "tf32", "bf16"], ...] | None = (
        None  # default: all that the device is fast at
    )
    entropy: tuple[Literal["released", "none", "bridge", "chain"], ...] = (
        "released",
        "none",
        "bridge",
        "chain",
    )
    cross: bool = False  # every combination instead
    obs_dim: int = 17
    act_dim: int = 6
    ahead: int = 1  # settings made ready side by side (each a process), then timed one by one; more: less waiting
    rounds: int = 7  # turns of each side
    seconds: float = 1.0  # length of a turn, at least one update
    threads: int | None = None  # CPU threads, by default torch's own choice
    acting: bool = True  # also evaluation: Hopper, M = 8, K = 50
    together: tuple[int, ...] = (1, 2, 5)  # several runs at once, as plain processes
    other: str | None = None  # Python file of another implementation
    other_path: str = ""  # what its functions get as `path`
    out: Path | None = None  # default: results/records/speed.csv, on a GPU speed-gpu.csv
    plot: Path | None = None  # PNG of the cost against M and T
    setting: str | None = None  # one setting as JSON: what a child process gets


def other_side(args: Args):
    """The other implementation's file as a module."""
    spec = importlib.util.spec_from_file_location("other_side", args.other)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Products(TorchDispatchMode):
    """Counts matrix products by kind, shapes, strides and type, while a function runs."""

    KINDS: ClassVar = {"mm": "mm", "addmm": "mm", "bmm": "bmm", "baddbmm": "bmm"}

    def __init__(self):
        super().__init__()
        self.seen = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if kind := self.KINDS.get(func.overloadpacket.__name__):
            a, b = args[-2:]
            key = tuple((tuple(x.shape), tuple(x.stride()), x.dtype) for x in (a, b))
            self.seen[kind, *key] += 1
        return func(*args, **(kwargs or {}))


def products_alone(seen: Counter, device: str) -> Callable[[], None]:
    """A function that makes the counted products on random tensors laid out as the real ones, and nothing else."""
    calls = []
    for (kind, *sides), times in seen.items():
        tensors = []
        for shape, stride, dtype in sides:
            tensor = torch.empty_strided(shape, stride, dtype=dtype, device=device)
            # An expanded dimension cannot be written to; its storage can.
            tensor.set_(torch.randn(tensor.untyped_storage().nbytes() // tensor.element_size(), device=device).to(dtype)
                        .untyped_storage(), 0, shape, stride)  # fmt: skip
            tensors.append(tensor)
        calls += [(getattr(torch, kind), *tensors)] * times

    def run() -> None:
        for product, a, b in calls:
            product(a, b)

    if device == "cpu":
        return run
    run()  # on a GPU recorded, as our update is: launched one by one they would take longer than the whole of it
    torch.cuda.synchronize()
    with torch.cuda.graph(graph := torch.cuda.CUDAGraph()):
        run()
    return lambda: (
        graph.replay(),
        calls,
    )  # keeps the tensors, whose memory the graph reads, as long as itself


def peak_memory(device: str, reset: bool = False) -> float:
    """Largest memory in use since the last reset, in MiB, of this process; on a GPU what torch holds of its memory."""
    if device == "cuda":  # a recorded update allocates nothing: its memory belongs to the graph
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved() / 2**20
    if reset and os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")
        return 0.0
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return next(
        int(line.split()[1]) / 2**10
        for line in status.read_text().splitlines()
        if line.startswith("VmHWM")
    )


def wait_for_turn() -> list[str]:
    """In a child process: tell the parent that all is compiled and warm, and wait; returns the words it sends."""
    print("READY", flush=True)
    return sys.stdin.readline().split()


def alternate(sides: dict[str, Callable], args: Args, device: str) -> dict[str, list[float]]:
    """Milliseconds a call of each side, in `rounds` turns of about `seconds` each, one side after the other."""

    def turn(call: Callable, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / repeats * 1e3

    for call in sides.values():
        turn(call, 6)  # compiling, recording and allocating are not timed
    wait_for_turn()
    repeats = {
        name: max(1, math.ceil(args.seconds * 1e3 / turn(call, 1))) for name, call in sides.items()
    }
    times = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, call in sides.items():
            times[name].append(turn(call, repeats[name]))
    return times


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Median and range as three columns."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}


def prepare(
    args: Args, setting: dict, device: str
) -> tuple[Callable, Products, FlopCounterMode, object]:
    """Our update as a function of nothing, ready to be timed; its products and operations; its data."""
    import edq_mujoco as edq

    g, rows = torch.Generator(device).manual_seed(0), 100_000
    randn = lambda *shape: torch.randn(shape, generator=g, device=device)  # noqa: E731
    data = edq.Transitions(
        randn(rows, args.obs_dim), randn(rows, args.act_dim).clamp(-1, 1), randn(rows),
        randn(rows, args.obs_dim), (randn(rows) > 2).float(),
    )  # fmt: skip
    plain = edq.Args(
        num_critics=setting["M"], num_diffusion_steps=setting["T"], batch_size=setting["B"],
        max_q_backup=setting["max_q"], compile="off", precision=setting["precision"],
        entropy_estimator=setting["entropy"], diffusion_loss="noise", action_clip=True,
    )  # fmt: skip
    torch.set_float32_matmul_precision("high" if setting["precision"] == "tf32" else "highest")
    torch.manual_seed(0)
    agent = edq.Agent(args.obs_dim, args.act_dim, plain, device)
    step = edq.make_step(agent, data, plain, g, 0, False)
    with FlopCounterMode(display=False) as flops, Products() as products:
        step()
    if setting["compile"] == "on":
        step = edq.make_step(
            agent, data, edq.resolve(replace(plain, compile="on"), device), g, 0, False
        )
    return step, products, flops, data


def time_update(args: Args, setting: dict, device: str) -> dict:
    """One row: our update, its products alone, and the other side."""
    step, products, flops, data = prepare(args, setting, device)
    for _ in range(6):
        step()
    peak_memory(device, reset=True)
    for _ in range(3):
        step()
    peak = peak_memory(device)
    sides = {"ours": step, "products": products_alone(products.seen, device)}
    if args.other:
        sides["other"] = other_side(args).make_update(setting, data, args.other_path)
    times = alternate(sides, args, device)
    work = flops.get_total_flops()
    row = {**setting, "device": device, **spread("ms", times["ours"])}
    row |= {
        "updates_per_second": 1e3 / row["ms"],
        "gflop": work / 1e9,
        "tflops": work / row["ms"] / 1e9,
    }
    row |= {"peak_mib": peak, **spread("products_ms", times["products"])}
    row["over_products"] = row["ms"] / row["products_ms"]
    row["share_of_product_rate"] = (
        1 / row["over_products"]
    )  # achieved FLOP/s over that of the products alone
    if args.other:
        row |= spread("other_ms", times["other"])
        row |= spread("over_other", [a / b for a, b in zip(times["ours"], times["other"])])
    return row


def time_acting(args: Args, setting: dict, device: str) -> dict:
    """One row: environment steps per second of an evaluation on Hopper, and how actor and simulator share the time."""
    import numpy as np

    import edq_mujoco as edq

    task = edq.Args(
        env_id="hopper-medium",
        num_critics=setting["M"],
        compile="off",
        precision=setting["precision"],
    )
    task = edq.resolve(replace(task, compile=setting["compile"]), device)
    torch.set_float32_matmul_precision("high" if setting["precision"] == "tf32" else "highest")
    torch.manual_seed(0)
    agent, K = edq.Agent(11, 3, task, device), task.num_candidates
    envs = edq.vector_env(task)
    n, g = envs.num_envs, torch.Generator().manual_seed(0)
    size = 100 if device == "cuda" else 10  # rows of an actor batch, as `evaluate` has them
    obs = [torch.from_numpy(envs.reset(seed=0)[0]).float()]

    def actor(act=edq.act) -> np.ndarray:
        actions, padded = [], torch.zeros(math.ceil(n / size) * size, 11)
        padded[:n] = obs[0]
        for rows in padded.split(size):
            noise = torch.randn(task.num_diffusion_steps, size, K, 3, generator=g)
            inputs = (x.to(device) for x in (rows, noise, torch.rand(size, generator=g)))
            actions.append(act(agent, *inputs, task).numpy(force=True))
        return np.concatenate(actions)[:n]

    def simulate(actions: np.ndarray) -> None:
        state = envs.step(actions)[0]
        obs[0] = torch.from_numpy(state).float()

    with Products() as products:
        actor(getattr(edq.act, "_torchdynamo_orig_callable", edq.act))
    some = actor()
    sides = {
        "evaluation": lambda: simulate(actor()), "actor": actor, "simulator": lambda: simulate(some),
        "products": products_alone(products.seen, device),
    }  # fmt: skip
    if args.other:
        import gymnasium as gym

        their_act, env = other_side(args).make_act(setting, args.other_path), gym.make("Hopper-v5")
        state = [env.reset(seed=0)[0]]

        def theirs() -> None:
            state[0], _, done, over, _ = env.step(their_act(state[0]))
            if done or over:
                state[0] = env.reset()[0]

        sides["other"] = theirs
    times = alternate(sides, args, device)
    row = {**setting, "device": device, "environments": n}
    for name in ("evaluation", "actor", "simulator", "products"):
        row |= spread(f"{name}_ms_per_step", [t / n for t in times[name]])
    row["steps_per_second"] = 1e3 / row["evaluation_ms_per_step"]
    row["actor_over_products"] = row["actor_ms_per_step"] / row["products_ms_per_step"]
    if args.other:
        row |= spread("other_ms_per_step", times["other"])
        gains = [b / (a / n) for a, b in zip(times["evaluation"], times["other"])]
        row |= spread("times_faster_than_other", gains)
    return row


def time_together(args: Args, setting: dict, device: str) -> None:
    """One of several processes: updates per second over `rounds` x `seconds`, as often as the parent says so."""
    step = prepare(args, setting, device)[0]
    while threads := wait_for_turn():
        torch.set_num_threads(int(*threads))
        for _ in range(6):  # the first ones compile, and do so again for another number of threads
            step()
        wait_for_turn()
        updates, start = 0, time.perf_counter()
        while time.perf_counter() - start < args.rounds * args.seconds:
            step()
            updates += 1
            if device == "cuda" and updates % 100 == 0:
                torch.cuda.synchronize()
        if device == "cuda":
            torch.cuda.synchronize()
        print("ROW", updates / (time.perf_counter() - start), flush=True)


def start_child(setting: dict, flags: list[str]) -> subprocess.Popen:
    """A process that makes itself ready to measure one setting, prints READY and waits for a line."""
    errors = tempfile.TemporaryFile("w+")  # a pipe that nobody reads meanwhile would fill up
    command = [sys.executable, __file__, "--setting", json.dumps(setting), *flags]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    )
    child.errors = errors
    return child


def line_of(child: subprocess.Popen, start: str) -> str | None:
    """The rest of its next line that begins so; None, and what it complained of on stderr, if it ends before."""
    for line in child.stdout:
        if line.startswith(start):
            return line.removeprefix(start)
    child.errors.seek(0)
    print(f"failed: {child.args[3]}\n{child.errors.read()[-2000:]}", file=sys.stderr)
    return None


def go(child: subprocess.Popen, words: str = "") -> None:
    """Its turn."""
    child.stdin.write(f"{words}\n")
    child.stdin.flush()


def side_by_side(
    args: Args, base: dict, flags: list[str], device: str, mps: bool
) -> Iterator[dict]:
    """Rows of k equal runs at once: threads split between them, then (on a CPU) not."""
    cores, sizes = torch.get_num_threads(), dict.fromkeys((4, base["M"]))
    settings = {M: {**base, "what": "together", "M": M} for M in sizes}
    children = {
        M: [start_child(settings[M], flags) for _ in range(max(args.together))] for M in sizes
    }
    ready = [
        line_of(child, "READY") is not None for of_size in children.values() for child in of_size
    ]
    for M, k in itertools.product(sizes, args.together) if all(ready) else ():
        splits = [max(1, cores // k)] + ([cores] if device == "cpu" and 1 < k else [])
        for threads in dict.fromkeys(splits):
            some = children[M][:k]
            for child in some:
                go(child, str(threads))
            for child in some:
                line_of(child, "READY")
            for child in some:
                go(child)
            speeds = [float(line_of(child, "ROW") or "nan") for child in some]
            row = {"M": M, "precision": base["precision"], "device": device, "mps": mps, "runs": k}
            row |= {
                "threads_each": threads,
                "slowest": min(speeds),
                "updates_per_second_in_all": sum(speeds),
            }
            print(
                *(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in row.items()),
                flush=True,
            )
            yield row | {k: v for k, v in hardware(device).items() if k != "threads"}
    for child in itertools.chain(*children.values()):
        child.communicate("\n")  # an empty line: that was all


def run_together(args: Args, base: dict, flags: list[str], device: str) -> Iterator[dict]:
    """Rows of several runs at once; on a GPU without and with CUDA MPS."""
    server = shutil.which("nvidia-cuda-mps-control") if device == "cuda" else None
    yield from side_by_side(args, base, flags, device, mps=False)
    if server and subprocess.run([server, "-d"]).returncode == 0:
        try:
            yield from side_by_side(args, base, flags, device, mps=True)
        finally:
            subprocess.run([server], input="quit\n", text=True)


def hardware(device: str) -> dict:
    """Columns that say what a row was measured on."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next(
        (x.split(":")[1].strip() for x in cpuinfo.splitlines() if x.startswith("model name")),
        "unknown",
    )
    sets = [x for x in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {x}" in cpuinfo]
    return {
        "threads": torch.get_num_threads(), "cpu": model, "instructions": " ".join(sets),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else "", "torch": torch.__version__,
        "python": sys.version.split()[0], "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def settings(args: Args, device: str) -> list[dict]:
    """What to measure: around the base one axis at a time, or everything."""
    fast = "_bf16" in (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "")
    precisions = args.precision or (
        ("tf32", "bf16", "fp32") if device == "cuda" else ("fp32", "bf16")[: 1 + fast]
    )
    axes = {
        "M": args.critics, "T": args.steps, "B": args.batch, "max_q": args.max_q, "compile": args.compile,
        "precision": precisions, "entropy": args.entropy,
    }  # fmt: skip
    base = {name: values[0] for name, values in axes.items()}
    if args.cross:
        found = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    else:
        found = [base]
        for name, values in axes.items():
            for value in values[0 if name in ("M", "max_q") else 1 :]:
                found.append(base | {name: value})
                if name in (
                    "M",
                    "max_q",
                    "T",
                ):  # these matter most: also eagerly, and in the other precisions
                    found += [base | {name: value, "compile": mode} for mode in args.compile[1:]]
                    found += [base | {name: value, "precision": p} for p in precisions[1:]]
    fewest = {"released": 3, "bridge": 2}
    for setting in found:  # an estimator that T is too short for gives way to the next one
        if setting["T"] < fewest.get(setting["entropy"], 1):
            setting["entropy"] = "bridge" if setting["T"] == 2 else "none"
    return [dict(x) for x in dict.fromkeys(tuple(setting.items()) for setting in found)]


def tables(records: Path) -> dict[str, str]:
    """Cost of an update, ours and the authors'; theirs is what was measured in turns with our compiled fp32."""
    with open(records / "speed.csv") as file:
        rows = {
            tuple(row[k] for k in ("M", "max_q", "compile", "precision")): row
            for row in csv.DictReader(file)
            if (row["T"], row["B"], row["entropy"]) == ("5", "256", "released")
        }

    def ms(row: dict, column: str = "ms") -> str:
        return (
            f"{float(row[column]):.{0 if float(row[column]) >= 20 else 1}f}"
            if row.get(column)
            else "-"
        )

    def ratio(row: dict) -> str:
        values = [float(row.get(f"over_other{x}") or "nan") for x in ("", "_min", "_max")]
        return "{:.2f} ({:.2f} to {:.2f})".format(*values) if row.get("over_other") else "-"

    table = []
    for M, max_q in (("4", "False"), ("8", "False"), ("64", "False"), ("64", "True")):
        modes = (("on", "fp32"), ("on", "bf16"), ("off", "fp32"))
        fp32, bf16, eager = (
            rows.get((M, max_q, *mode), {}) for mode in modes
        )  # bf16: where the processor has it
        over_products = ", ".join(
            f"{float(row['over_products']):.2f}" for row in (fp32, bf16) if row
        )
        label = f"M = {M}" + (", max-Q" if max_q == "True" else "")
        times = [ms(fp32, "other_ms"), *map(ms, (eager, fp32, bf16))]
        table.append([label, *times, ratio(fp32), ratio(bf16), over_products])
    head = ["setting", "authors", "ours, eager", "compiled, fp32", "compiled, bf16"]
    head += ["ratio to the authors, fp32 (range)", "bf16 (range)", "over its products, fp32, bf16"]
    return {
        "speed": markdown(head, table),
        "speed-gpu": on_gpu(records),
        "speed-gpu-together": together(records),
    }


def on_gpu(records: Path) -> str:
    """Cost of an update on a GPU: every mode was measured in turns with the authors' code."""
    rows, table = csv_rows(records / "speed-gpu.csv"), []
    for M, max_q in (("4", "False"), ("64", "False"), ("64", "True")):
        of = {(r["compile"], r["precision"]): r for r in rows if (r["M"], r["max_q"]) == (M, max_q)}
        theirs = [float(r["other_ms"]) for r in of.values()]
        (eager,) = (float(r["ms"]) for (mode, _), r in of.items() if mode == "off")
        cells = [f"{min(theirs):.0f} to {max(theirs):.0f}", f"{eager:.0f}"]
        cells += [
            f"{float(of['on', precision]['ms']):.2f}" for precision in ("fp32", "bf16", "tf32")
        ]
        times = [1 / float(of["on", "tf32"][f"over_other{end}"]) for end in ("", "_max", "_min")]
        label = f"M = {M}" + (", max-Q" if max_q == "True" else "")
        table.append([label, *cells, "{:.0f} ({:.0f} to {:.0f})".format(*times)])
    head = ["setting", "authors (medians)", "ours, eager", "as a CUDA graph, fp32", "bf16", "tf32"]
    return markdown([*head, "times faster than the authors, tf32 (range)"], table)


def together(records: Path) -> str:
    """Updates a second of several runs on one GPU, in a sentence."""
    rows = [row for row in csv_rows(records / "speed-gpu-together.csv") if row["mps"] == "False"]
    found = {
        M: ", ".join(f"{float(r['updates_per_second_in_all']):,.0f}" for r in rows if r["M"] == M)
        for M in ("4", "64")
    }
    counts = ", ".join(dict.fromkeys(r["runs"] for r in rows))
    return f"{counts} at once make {found['4']} updates a second in all at M = 4, and {found['64']} at M = 64"


def figures(records: Path, out: Path) -> None:
    """The plot of the committed rows."""
    from speed_authors import LABEL

    with open(records / "speed.csv") as file:
        plot(list(csv.DictReader(file)), out / "speed.png", LABEL)


def plot(rows: list[dict], path: str | Path, label: str = "other side") -> None:
    """Cost against M and against T: ours compiled in each precision, eager, and the other side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    first = rows[0]
    for axis, x, fixed in (
        (axes[0], "M", ("T", "B", "max_q")),
        (axes[1], "T", ("M", "B", "max_q")),
    ):
        same = [r for r in rows if all(r[k] == first[k] for k in fixed)]
        lines = {}
        for row in same:
            if x == "M" and row["entropy"] != first["entropy"]:
                continue
            kind = f"ours, {'compiled' if row['compile'] == 'on' else 'eager'}, {row['precision']}"
            lines.setdefault(kind, {}).setdefault(int(row[x]), row)
            if row.get("other_ms") and row["compile"] == first["compile"]:
                other = {
                    "ms": row["other_ms"],
                    "ms_min": row["other_ms_min"],
                    "ms_max": row["other_ms_max"],
                }
                lines.setdefault(f"{label}, fp32", {}).setdefault(int(row[x]), other)
        for kind, points in sorted(lines.items()):
            xs = sorted(points)
            ms, low, high = ([float(points[v][k]) for v in xs] for k in ("ms", "ms_min", "ms_max"))
            if len(xs) < 2:
                continue
            error = [[m - a for m, a in zip(ms, low)], [b - m for m, b in zip(ms, high)]]
            axis.errorbar(xs, ms, error, marker="o", markersize=4, capsize=2, label=kind)
        axis.set(
            xlabel={"M": "M, critics", "T": "T, diffusion steps"}[x],
            ylabel="ms per update",
            xticks=xs,
        )
        axis.set_xscale("log", base=2)
        axis.set_xticks(xs, [str(v) for v in xs])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[1].set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    where = first["gpu"] or f"{first['cpu']}, {first['threads']} threads"
    axes[0].set_title(f"T = {first['T']}, batch {first['B']}: {where}", fontsize=9)
    axes[1].set_title(f"M = {first['M']}, batch {first['B']}", fontsize=9)
    figure.savefig(
        path, dpi=150, metadata={"Software": None} if Path(path).suffix == ".png" else None
    )


def write_rows(path: Path, rows: list[dict]) -> None:
    """All rows measured so far; columns that only some have stay empty in the others."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    short = [{k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(short)


def main(args: Args) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.setting:  # a child process: one row, as JSON
        setting = json.loads(args.setting)
        measure = {"update": time_update, "acting": time_acting, "together": time_together}[
            setting.pop("what")
        ]
        if row := measure(args, setting, device):
            print("ROW " + json.dumps(row | hardware(device)))
        return
    todo = [{"what": "update", **setting} for setting in settings(args, device)]
    if args.acting:
        modes = itertools.product(args.compile, dict.fromkeys(s["precision"] for s in todo))
        todo += [
            {"what": "acting", "M": 8, "T": 5, "K": 50, "compile": c, "precision": p}
            for c, p in modes
        ]
    updates, acting = [], []
    out = args.out or ROOT / "results" / "records" / (
        "speed-gpu.csv" if device == "cuda" else "speed.csv"
    )
    passed = {
        k: v
        for k, v in asdict(args).items()
        if k in ("obs_dim", "act_dim", "rounds", "seconds", "threads")
    }
    flags = [f"--{k.replace('_', '-')}={v}" for k, v in passed.items() if v is not None]
    flags += ["--other", args.other, "--other-path", args.other_path] if args.other else []
    for i in range(0, len(todo), args.ahead):
        children = [start_child(setting, flags) for setting in todo[i : i + args.ahead]]
        ready = [line_of(child, "READY") is not None for child in children]
        for setting, child in itertools.compress(zip(todo[i:], children), ready):
            go(child)
            if (found := line_of(child, "ROW ")) is None:
                continue
            row = json.loads(found)
            child.communicate()
            (acting if setting["what"] == "acting" else updates).append(row)
            shown = {
                k: f"{v:.3g}" if isinstance(v, float) else v
                for k, v in row.items()
                if k not in hardware(device)
            }
            print(
                *(f"{k}={v}" for k, v in shown.items() if not k.endswith(("_min", "_max"))),
                flush=True,
            )
            for path, rows in ((out, updates), (out.with_stem(out.stem + "-acting"), acting)):
                if rows:
                    write_rows(path, rows)
    if args.together:
        base = {k: v for k, v in todo[0].items() if k != "what"}
        flags, rows = (
            [f for f in flags if not f.startswith("--threads")] + ["--threads=1"],
            [],
        )  # until told otherwise
        for row in run_together(args, base, flags, device):
            rows.append(row)
            write_rows(out.with_stem(out.stem + "-together"), rows)
    if args.plot and updates:
        plot(
            updates,
            args.plot,
            getattr(other_side(args), "LABEL", "other side") if args.other else "",
        )


if __name__ == "__main__":
    main(tyro.cli(Args))
