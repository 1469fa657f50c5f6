"""AntMaze at the paper's size on a GPU: tables and picture of the suite antmaze-gpu and of run.py.

The runs were stopped when the time on the GPU was over, and recorded with
`run_suite.py --suite antmaze-gpu --so-far`. Of the networks only a part could be taken along: the
policies, and of EDQ 16 of the 64 critics; run.py looked at these on a CPU, with the dataset rebuilt
there.
"""

from pathlib import Path

from matplotlib.figure import Figure

from results.common.intervals import success_interval
from results.common.pictures import draw_mazes
from results.common.records import column, csv_rows, markdown, pick
from results.studies.antmaze import suspects
from results.studies.benchmark.scores import ARMS, COLOURS

SUITE = "antmaze-gpu"
PATHS = [f"antmaze-large-diverse-{arm}-0" for arm in ("edq", "diffusion-ql", "diffusion-bc")]


def curves(records: Path):
    """Evaluations of each run, by arm and seed."""
    found = {}
    for row in csv_rows(records / "benchmark" / f"{SUITE}-curves.csv"):
        found.setdefault((row["arm"], row["seed"]), []).append(row)
    return dict(sorted(found.items(), key=lambda item: [*ARMS].index(item[0][0])))


def run_of(records: Path, arm: str, seed: str) -> dict:
    (row,) = pick(csv_rows(records / "benchmark" / f"{SUITE}.csv"), arm=arm, seed=seed)
    return row


def has_critics(curve) -> bool:
    return float(curve[-1]["q_max_abs"]) > 0


def reached(records: Path) -> str:
    """A run a row: how far it came, its success, and how fast it was."""
    rows = []
    for (arm, seed), curve in curves(records).items():
        row = run_of(records, arm, seed)
        last = float(row["last"])
        low, high = success_interval(last, int(row["episodes"]))
        rows.append(
            [
                f"{ARMS[arm]}, seed {seed}",
                row["critics"] if has_critics(curve) else "-",
                f"{int(row['updates']):,}",
                f"{last:.0f} ({low:.1f} to {high:.1f})",
                f"{float(row['best']):.0f}, of {len(curve)} evaluations",
                f"{float(row['updates_per_second']):,.0f}",
                f"{float(row['seconds']) / 60:.1f}",
                row["gpu"],
            ]
        )
    head = ["run", "M", "updates", "last success, % (95 % interval)", "best, %"]
    return markdown([*head, "updates a second", "minutes", "hardware"], rows)


def critics_say(row: dict):
    """What the critics of a run say of some states; dashes if it has none."""
    if not row["q_data"]:
        return ["-"] * 7
    equal = row["steps_left"] == "1"  # all returns are equal there
    correlation = "-" if equal else f"{float(row['q_and_return']):.2f}"
    names = ("member_std", "member_std_spread", "lcb_spread", "next_q_spread", "q_and_next_q")
    others = [f"{float(row[name]):.2f}" for name in names]
    return [f"{float(row['q_data']):.0f}", correlation, *others]


def inside(records: Path) -> str:
    """What critics and policies say, by the steps that the data still take."""
    rows = []
    for row in csv_rows(records / "antmaze" / "inside.csv"):
        returns = f"{float(row['return']):.0f} ± {float(row['return_std']):.0f}"
        policy, data = 100 * float(row["saturated"]), 100 * float(row["saturated_data"])
        rows.append(
            [
                ARMS[row["preset"]],
                row["steps_left"],
                returns,
                *critics_say(row),
                f"{float(row['spread']):.2f}",
                f"{policy:.0f} ({data:.0f})",
                f"{float(row['entropy_bound']):.2f}",
            ]
        )
    head = [
        "run",
        "steps to the goal",
        "return of the data",
        "Q of its action",
        "correlation of the two",
        "std over members",
        "how much that differs among the candidates (std)",
        "their LCB (std)",
        "value of where they lead (std)",
        "its correlation with their Q",
        "their action components (std)",
        "components at the edge of the box, % (of the data's)",
        "entropy bound, nats per dimension",
    ]
    return markdown(head, rows)


def precision(records: Path) -> str:
    """What rounding does to the LCB of the candidates."""
    rows = []
    for row in csv_rows(records / "antmaze" / "inside.csv"):
        if not row["q_data"]:
            continue
        cells = [ARMS[row["preset"]], row["steps_left"], f"{float(row['lcb_spread']):.2f}"]
        for name in ("tf32", "bf16"):
            error = float(row[f"lcb_error_{name}"])
            changed = 100 * float(row[f"best_changed_{name}"])
            cells += [f"{error:.3f}", f"{changed:.0f}"]
        rows.append(cells)
    head = ["critics", "steps to the goal", "LCB over the candidates, std", "error in tf32"]
    return markdown([*head, "best changed, %", "error in bf16", "best changed, %"], rows)


def with_error(row: dict, name: str, digits: int, scale: int = 1) -> str:
    mean = scale * float(row[name])
    error = scale * float(row[f"{name}_error"])
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def walks(records: Path) -> str:
    """How the ants move."""
    rows = []
    for row in csv_rows(records / "antmaze" / "walks.csv"):
        name = ARMS[row["preset"]]
        if row["actor"] != row["run"]:
            name = f"BC proposes, the critics of {name} choose"
        rows.append(
            [
                name,
                row["choose"] if row["critics"] != "0" else "-",
                f"{float(row['success']):.0f}",
                with_error(row, "metres_per_second", 2),
                with_error(row, "upside_down", 0, 100),
                f"{with_error(row, 'cells_nearer', 1)} of {float(row['cells_to_goal']):.0f}",
            ]
        )
    head = ["policy", "choice among the candidates", "success, %", "metres a second"]
    head += ["upside down, % of the steps", "cells nearer to the goal, at best"]
    return markdown(head, rows)


def tables(records: Path) -> dict[str, str]:
    return {
        "antmaze-gpu": reached(records),
        "antmaze-gpu-inside": inside(records),
        "antmaze-gpu-walks": walks(records),
        "antmaze-gpu-precision": precision(records),
        **suspects.tables(records),
    }


def draw_curves(records: Path, path: Path):
    """Success, mean Q and diffusion loss against updates."""
    figure = Figure(figsize=(10, 3), layout="constrained")
    success, q, loss = figure.subplots(1, 3)
    for (arm, seed), rows in curves(records).items():
        style = dict(color=COLOURS[arm], marker="o", ms=3, label=ARMS[arm])
        steps = column(rows, "step") / 1000
        scores = column(rows, "score")
        episodes = int(run_of(records, arm, seed)["episodes"])
        ends = [success_interval(score, episodes) for score in scores]
        below = [score - low for score, (low, _) in zip(scores, ends)]
        above = [high - score for score, (_, high) in zip(scores, ends)]
        success.errorbar(steps, scores, [below, above], capsize=2, **style)
        if has_critics(rows):
            q.plot(steps, column(rows, "q_mean"), **style)
        loss.plot(steps, column(rows, "diffusion"), **style)
    success.set(ylabel="success in %, exact 95 %", ylim=(-2, 20))
    q.set(ylabel="mean Q at the policy's action")
    loss.set(ylabel="diffusion loss")
    for axes in (success, q, loss):
        axes.set(xlabel="updates, thousands", xlim=(0, None))
        axes.grid(alpha=0.3)
    loss.set_ylim(0, None)
    success.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def figures(records: Path, out: Path):
    draw_curves(records, out / "antmaze-gpu.png")
    draw_mazes(records / "antmaze", PATHS, out / "antmaze-gpu-paths.png")
