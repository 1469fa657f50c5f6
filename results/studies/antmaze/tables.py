"""AntMaze at the paper's size on a GPU: tables and picture of the suite antmaze-gpu and of what diagnose.py saw in it.

The runs were stopped when the time on the GPU was over, and recorded with `benchmark.py --suite antmaze-gpu --so-far`.
Of the networks only a part could be taken along: the policies, and of EDQ 16 of the 64 critics; diagnose.py looked at
these on a CPU, with the dataset rebuilt there.
"""

from pathlib import Path

from matplotlib.figure import Figure
from record import csv_rows, markdown
from scipy.stats import binomtest
from scores import ARMS, COLOURS


def interval(row: dict, column: str = "last") -> tuple[float, float]:
    """Clopper and Pearson's exact 95 % interval of a success rate in %."""
    episodes = int(row["episodes"])
    found = binomtest(round(float(row[column]) * episodes / 100), episodes).proportion_ci()
    return 100 * found.low, 100 * found.high


def reached(records: Path) -> str:
    """A run a row: how far it came, its success, and how fast it was."""
    rows, order = [], list(ARMS)
    for row in sorted(
        csv_rows(records / "benchmark" / "antmaze-gpu.csv"), key=lambda r: order.index(r["arm"])
    ):
        success = "{:.0f} ({:.1f} to {:.1f})".format(float(row["last"]), *interval(row))
        curve = csv_rows(records / "benchmark" / "antmaze-gpu-curves.csv")
        curve = [r for r in curve if (r["arm"], r["seed"]) == (row["arm"], row["seed"])]
        M = row["critics"] if float(curve[-1]["q_max_abs"]) else "-"
        speed = f"{float(row['updates_per_second']):,.0f}"
        minutes = f"{float(row['seconds']) / 60:.1f}"
        best = f"{float(row['best']):.0f}, of {len(curve)} evaluations"
        label = f"{ARMS[row['arm']]}, seed {row['seed']}"
        rows.append(
            [label, M, f"{int(row['updates']):,}", success, best, speed, minutes, row["gpu"]]
        )
    head = ["run", "M", "updates", "last success, % (95 % interval)", "best, %"]
    return markdown([*head, "updates a second", "minutes", "hardware"], rows)


def inside(records: Path) -> str:
    """What critics and policies say, by the steps that the data still take."""
    rows = []
    for row in csv_rows(records / "diagnose-antmaze.csv"):
        f = {k: float(v) for k, v in row.items() if v and k not in ("run", "preset", "steps_left")}
        cells = [
            ARMS[row["preset"]],
            row["steps_left"],
            f"{f['return']:.0f} ± {f['return_std']:.0f}",
        ]
        if row["q_data"]:
            correlation = (
                "-" if row["steps_left"] == "1" else f"{f['q_and_return']:.2f}"
            )  # all returns are equal there
            cells += [
                f"{f['q_data']:.0f}",
                correlation,
                f"{f['member_std']:.2f}",
                f"{f['member_std_spread']:.2f}",
            ]
            cells += [
                f"{f['lcb_spread']:.2f}",
                f"{f['next_q_spread']:.2f}",
                f"{f['q_and_next_q']:.2f}",
            ]
        else:
            cells += ["-"] * 7
        cells += [
            f"{f['spread']:.2f}",
            f"{100 * f['saturated']:.0f} ({100 * f['saturated_data']:.0f})",
        ]
        rows.append([*cells, f"{f['entropy_bound']:.2f}"])
    head = [
        "run",
        "steps to the goal",
        "return of the data",
        "Q of its action",
        "correlation of the two",
    ]
    head += [
        "std over members",
        "how much that differs among the candidates (std)",
        "their LCB (std)",
    ]
    head += [
        "value of where they lead (std)",
        "its correlation with their Q",
        "their action components (std)",
    ]
    head += [
        "components at the edge of the box, % (of the data's)",
        "entropy bound, nats a dimension",
    ]
    return markdown(head, rows)


def precision(records: Path) -> str:
    """What rounding does to the LCB of the candidates."""
    rows = []
    for row in csv_rows(records / "diagnose-antmaze.csv"):
        if row["q_data"]:
            cells = [ARMS[row["preset"]], row["steps_left"], f"{float(row['lcb_spread']):.2f}"]
            for name in ("tf32", "bf16"):
                cells += [
                    f"{float(row[f'lcb_error_{name}']):.3f}",
                    f"{100 * float(row[f'best_changed_{name}']):.0f}",
                ]
            rows.append(cells)
    head = [
        "critics",
        "steps to the goal",
        "LCB over the candidates, std",
        "error in tf32",
        "best changed, %",
    ]
    return markdown([*head, "error in bf16", "best changed, %"], rows)


def rounding(records: Path) -> str:
    """The errors as shares of what the candidates of a state differ by, smallest and largest, in a sentence."""
    rows, parts = (
        [
            r
            for r in csv_rows(records / "diagnose-antmaze.csv")
            if r["q_data"] and r["steps_left"] != "1"
        ],
        [],
    )
    for name in ("tf32", "bf16"):
        shares = [100 * float(row[f"lcb_error_{name}"]) / float(row["lcb_spread"]) for row in rows]
        parts.append(f"{name} by {min(shares):.0f} to {max(shares):.0f} %")
    return " and ".join(parts)


def walks(records: Path) -> str:
    """How the ants move."""
    rows = []
    for row in csv_rows(records / "diagnose-antmaze-walks.csv"):
        own = row["actor"] == row["run"]
        label = (
            ARMS[row["preset"]]
            if own
            else f"cloning proposes, the critics of {ARMS[row['preset']]} choose"
        )
        choose = row["choose"] if row["critics"] != "0" else "-"
        speed = (
            f"{float(row['metres_per_second']):.2f} ± {float(row['metres_per_second_error']):.2f}"
        )
        back = (
            f"{100 * float(row['upside_down']):.0f} ± {100 * float(row['upside_down_error']):.0f}"
        )
        nearer = f"{float(row['cells_nearer']):.1f} ± {float(row['cells_nearer_error']):.1f}"
        cells = f"{nearer} of {float(row['cells_to_goal']):.0f}"
        rows.append([label, choose, f"{float(row['success']):.0f}", speed, back, cells])
    head = [
        "policy",
        "choice among the candidates",
        "success, %",
        "metres a second",
        "upside down, % of the steps",
    ]
    return markdown([*head, "cells nearer to the goal, at best"], rows)


def tables(records: Path) -> dict[str, str]:
    studies = {
        "": reached,
        "-inside": inside,
        "-walks": walks,
        "-precision": precision,
        "-rounding": rounding,
    }
    return {f"antmaze-gpu{name}": study(records) for name, study in studies.items()}


def figures(records: Path, out: Path) -> None:
    """Success, mean Q and diffusion loss against updates."""
    curves: dict[tuple, list[dict]] = {}
    for row in csv_rows(records / "benchmark" / "antmaze-gpu-curves.csv"):
        curves.setdefault((row["arm"], row["seed"]), []).append(row)
    episodes = {
        (r["arm"], r["seed"]): r["episodes"]
        for r in csv_rows(records / "benchmark" / "antmaze-gpu.csv")
    }
    fig = Figure(figsize=(10, 3), layout="constrained")
    axes = fig.subplots(1, 3)
    for (arm, seed), rows in sorted(curves.items(), key=lambda item: [*ARMS].index(item[0][0])):
        steps = [int(row["step"]) / 1000 for row in rows]
        style = dict(color=COLOURS[arm], marker="o", ms=3, label=ARMS[arm])
        scores = [float(row["score"]) for row in rows]
        ends = [interval(row | {"episodes": episodes[arm, seed]}, "score") for row in rows]
        error = [
            [s - low for s, (low, _) in zip(scores, ends)],
            [high - s for s, (_, high) in zip(scores, ends)],
        ]
        axes[0].errorbar(steps, scores, error, capsize=2, **style)
        if float(rows[-1]["q_max_abs"]):
            axes[1].plot(steps, [float(row["q_mean"]) for row in rows], **style)
        axes[2].plot(steps, [float(row["diffusion"]) for row in rows], **style)
    for axis, label in zip(
        axes, ("success in %, exact 95 %", "mean Q at the policy's action", "diffusion loss")
    ):
        axis.set(xlabel="updates, thousands", ylabel=label, xlim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylim(-2, 20)
    axes[2].set_ylim(0, None)
    axes[0].legend(fontsize=8, frameon=False)
    fig.savefig(out / "antmaze-gpu.png", dpi=110, metadata={"Software": None})
