"""Tables and picture of speed: an update ours and the authors', on CPU and GPU, and precision."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from results.common.records import column, csv_rows, markdown, pick, read_record

OTHER = "authors' code"
SIZES = (  # M, max-Q
    ("4", "False"),
    ("8", "False"),
    ("64", "False"),
    ("64", "True"),
)
KERNELS = {  # kinds of GPU kernels, by what is in their names
    "fp32 matmuls (actor, first and last layers of the ensemble)": ("f32f32", "sgemm", "gemv"),
    "bf16 matmuls": ("nvjet",),
    "Adam, clipping and averages": ("multi_tensor",),
}


def name_of(M: str, max_q: str) -> str:
    return f"M = {M}" + (", max-Q" if max_q == "True" else "")


def milliseconds(row: dict, name: str = "ms") -> str:
    if not row.get(name):
        return "-"
    value = float(row[name])
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def ratio(row: dict) -> str:
    """Ours over theirs: median and range."""
    if not row.get("over_other"):
        return "-"
    middle = float(row["over_other"])
    low = float(row["over_other_min"])
    high = float(row["over_other_max"])
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def mode(rows, compile: str, precision: str) -> dict:
    found = pick(rows, compile=compile, precision=precision)
    return found[0] if found else {}


def on_cpu(records: Path) -> str:
    """Cost of an update; theirs is what was measured in turns with our compiled fp32."""
    measured = csv_rows(records / "speed" / "cpu.csv")
    rows = pick(measured, T="5", B="256", entropy="released")
    table = []
    for M, max_q in SIZES:
        of_size = pick(rows, M=M, max_q=max_q)
        fp32 = mode(of_size, "on", "fp32")
        bf16 = mode(of_size, "on", "bf16")  # where the processor has it
        eager = mode(of_size, "off", "fp32")
        times = [milliseconds(fp32, "other_ms")]
        times += [milliseconds(row) for row in (eager, fp32, bf16)]
        over = [f"{float(row['over_products']):.2f}" for row in (fp32, bf16) if row]
        table.append(
            [
                name_of(M, max_q),
                *times,
                ratio(fp32),
                ratio(bf16),
                ", ".join(over),
            ]
        )
    head = ["setting", "authors", "ours, eager", "compiled, fp32", "compiled, bf16"]
    head += ["ratio to the authors, fp32 (range)", "bf16 (range)"]
    return markdown([*head, "over its matmuls, fp32, bf16"], table)


def on_gpu(records: Path) -> str:
    """Cost of an update on a GPU: every mode was measured in turns with the authors' code."""
    rows = csv_rows(records / "speed" / "gpu.csv")
    table = []
    for M, max_q in SIZES:
        of_size = pick(rows, M=M, max_q=max_q)
        if not of_size:
            continue
        theirs = column(of_size, "other_ms")
        (eager,) = pick(of_size, compile="off")
        modes = [mode(of_size, "on", name) for name in ("fp32", "bf16", "tf32")]
        tf32 = modes[-1]
        faster = 1 / float(tf32["over_other"])
        least = 1 / float(tf32["over_other_max"])
        most = 1 / float(tf32["over_other_min"])
        table.append(
            [
                name_of(M, max_q),
                f"{theirs.min():.0f} to {theirs.max():.0f}",
                f"{float(eager['ms']):.0f}",
                *(f"{float(row['ms']):.2f}" for row in modes),
                f"{faster:.0f} ({least:.0f} to {most:.0f})",
            ]
        )
    head = ["setting", "authors (medians)", "ours, eager", "as a CUDA graph, fp32", "bf16", "tf32"]
    return markdown([*head, "times faster than the authors, tf32 (range)"], table)


def acting(records: Path) -> str:
    """Environment steps of an evaluation, compiled."""
    rows = csv_rows(records / "speed" / "cpu-acting.csv")
    table = []
    for row in pick(rows, compile="on"):
        names = ("evaluation", "simulator", "products")
        times = [f"{float(row[f'{name}_ms_per_step']):.2f}" for name in names]
        speed = f"{float(row['steps_per_second']):,.0f}"
        faster = f"{float(row['times_faster_than_other']):.1f}"
        table.append([row["precision"], speed, faster, *times])
    head = ["precision", "steps a second", "times the authors' loop", "ms a step"]
    return markdown([*head, "of which simulator", "its matmuls alone"], table)


def together(records: Path) -> str:
    """Updates a second of several runs at once, in all."""
    table = []
    for name, label in (("cpu", "2 cores"), ("gpu", "H100")):
        measured = csv_rows(records / "speed" / f"{name}-together.csv")
        rows = pick(measured, mps="False")
        for row in pick(rows, M="4"):
            same = {k: row[k] for k in ("runs", "threads_each")}
            (large,) = pick(rows, M="64", **same)
            speeds = [float(x["updates_per_second_in_all"]) for x in (row, large)]
            cells = [f"{speed:.1f}" if speed < 10 else f"{speed:,.0f}" for speed in speeds]
            table.append([label, row["runs"], row["threads_each"], *cells])
    return markdown(["machine", "runs", "threads each", "M = 4", "M = 64"], table)


def kernels(records: Path) -> str:
    """Shares of the time of an update on a GPU."""
    about, rows = read_record(records / "speed" / "gpu-kernels.csv")
    total = 1000 * about["ms_per_update"]  # microseconds
    listed = sum(column(rows, "microseconds"))
    left = listed
    table = []
    for name, marks in KERNELS.items():
        of_kind = []
        for row in rows:
            if any(mark in row["kernel"] for mark in marks):
                of_kind.append(row)
        used = sum(column(of_kind, "microseconds"))
        left -= used
        table.append([name, f"{100 * used / total:.0f} %"])
    table.append([f"others of the {len(rows)} longest", f"{100 * left / total:.0f} %"])
    rest = total - listed
    table.append(["shorter ones and gaps", f"{100 * rest / total:.0f} %"])
    return markdown(["kernels", f"share of {total / 1000:.2f} ms"], table)


def precision(records: Path) -> str:
    """Means over the runs of a task and size: the LCB in each precision, and final scores by
    seed."""
    _, rows = read_record(records / "speed" / "precision.csv")
    pairs = [(row["task"], row["M"]) for row in rows]
    table = []
    for task, M in dict.fromkeys(pairs):
        of_size = pick(rows, task=task, M=M)
        (updates,) = {row["updates"] for row in of_size}
        fp32 = pick(of_size, lcb_in="fp32")
        bf16 = pick(of_size, lcb_in="bf16")
        fp32_error = statistics.mean(row["lcb_error_rms"] for row in fp32)
        mean = {}
        for name in NUMBERS:
            mean[name] = statistics.mean(row[name] for row in bf16)
        cells = [task, f"{M:.0f}", f"{updates:,.0f}", f"{mean['mean_abs_q']:.0f}"]
        cells += [f"{mean[x]:.1f}" for x in ("lcb_std_over_candidates", "ensemble_std")]
        cells += [f"{fp32_error:.2g}", f"{mean['lcb_error_rms']:.2g}"]
        cells += [f"{100 * mean[x]:.2g} %" for x in ("probability_moved", "best_changed")]
        for trained in ("fp32", "bf16"):  # a run has two rows, one for each precision of the LCB
            scores = [f"{row['score']:.3g}" for row in pick(bf16, trained_in=trained)]
            cells.append(", ".join(scores) or "-")
        table.append(cells)
    head = ["networks", "M", "updates", r"\|Q\|"]
    head += ["LCB over the candidates, std", "Q over the members, std"]
    head += ["error of the LCB, fp32", "bf16", "probability moved, bf16"]
    head += ["best candidate changed, bf16", "final scores, trained in fp32", "in bf16"]
    return markdown(head, table)


NUMBERS = (
    "mean_abs_q",
    "lcb_std_over_candidates",
    "ensemble_std",
    "lcb_error_rms",
    "probability_moved",
    "best_changed",
)


def tables(records: Path) -> dict[str, str]:
    return {
        "speed": on_cpu(records),
        "speed-gpu": on_gpu(records),
        "speed-acting": acting(records),
        "speed-together": together(records),
        "speed-kernels": kernels(records),
        "precision": precision(records),
    }


# === Picture ==================================================================================
def lines_against(rows, x: str, first: dict):
    """Points of each line, by x: ours compiled in each precision, eager, and the other side."""
    fixed = [name for name in ("M", "T", "B", "max_q") if name != x]
    lines = {}
    for row in rows:
        if any(row[name] != first[name] for name in fixed):
            continue
        if x == "M" and row["entropy"] != first["entropy"]:
            continue
        way = "compiled" if row["compile"] == "on" else "eager"
        at = int(row[x])
        ours = lines.setdefault(f"ours, {way}, {row['precision']}", {})
        ours.setdefault(at, row)
        if row.get("other_ms") and row["compile"] == first["compile"]:
            other = {f"ms{end}": row[f"other_ms{end}"] for end in ("", "_min", "_max")}
            theirs = lines.setdefault(f"{OTHER}, fp32", {})
            theirs.setdefault(at, other)
    return lines


def panel(axes: Axes, rows, x: str, first: dict):
    """Milliseconds of an update against M or T, with the range of the turns."""
    lines = lines_against(rows, x, first)
    for name, points in sorted(lines.items()):
        xs = sorted(points)
        if len(xs) < 2:
            continue
        in_order = [points[v] for v in xs]
        ms = column(in_order, "ms")
        low = column(in_order, "ms_min")
        high = column(in_order, "ms_max")
        style = dict(marker="o", markersize=4, capsize=2, label=name)
        axes.errorbar(xs, ms, [ms - low, high - ms], **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(xs, [str(v) for v in xs])
    axes.minorticks_off()
    axes.set(yscale="log", ylim=(5, 2500))  # in both panels: they share their scale
    axes.grid(alpha=0.3)


def figures(records: Path, out: Path):
    """speed.png: cost against M and against T."""
    rows = csv_rows(records / "speed" / "cpu.csv")
    first = rows[0]
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    panel(left, rows, "M", first)
    panel(right, rows, "T", first)
    left.set(xlabel="M, critics", ylabel="ms of an update; median, range")
    right.set(xlabel="T, diffusion steps")
    style = dict(loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.legend(*left.get_legend_handles_labels(), **style)
    where = f"{first['cpu']}, {first['threads']} threads"
    left.set_title(f"T = {first['T']}, batch {first['B']}: {where}", fontsize=9)
    right.set_title(f"M = {first['M']}, batch {first['B']}", fontsize=9)
    figure.savefig(out / "speed.png", dpi=150, metadata={"Software": None})
