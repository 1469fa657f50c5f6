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
PATHS = {
    f"antmaze-large-diverse-{arm}-0": ARMS[arm] for arm in ("edq", "diffusion-ql", "diffusion-bc")
}
SHOWN = 20  # of the 100 paths of an evaluation: more hide one another


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


def critics(records: Path) -> str:
    """What the critics say of the data's action and of the candidates, by the steps that the data
    still take."""
    rows = []
    for row in csv_rows(records / "antmaze" / "inside.csv"):
        if not row["q_data"]:
            continue
        equal = row["steps_left"] == "1"  # all returns are equal there
        names = ("member_std", "member_std_spread", "lcb_spread", "next_q_spread", "q_and_next_q")
        rows.append(
            [
                ARMS[row["preset"]],
                row["steps_left"],
                f"{float(row['return']):.0f} ± {float(row['return_std']):.0f}",
                f"{float(row['q_data']):.0f}",
                "-" if equal else f"{float(row['q_and_return']):.2f}",
                *(f"{float(row[name]):.2f}" for name in names),
            ]
        )
    head = [
        "critics",
        "steps to the goal",
        "return of the data",
        "Q of the data's action",
        "correlation of Q with the return",
        "std over members",
        "how much the std over members differs among candidates (std)",
        "LCB of the candidates (std)",
        "value of where the candidates lead (std)",
        "correlation of that value with the candidates' Q",
    ]
    return markdown(head, rows)


def policies(records: Path) -> str:
    """How far apart the candidates of each policy are; a row a distance of the data's states."""
    all_rows = csv_rows(records / "antmaze" / "inside.csv")
    presets = dict.fromkeys(row["preset"] for row in all_rows)
    table = []
    for steps in dict.fromkeys(row["steps_left"] for row in all_rows):
        here = pick(all_rows, steps_left=steps)
        cells = []
        for preset in presets:
            (row,) = pick(here, preset=preset)
            at_edge = 100 * float(row["saturated"])
            spread, entropy = (f"{float(row[name]):.2f}" for name in ("spread", "entropy_bound"))
            cells.append(f"{spread}, {at_edge:.0f} %, {entropy}")
        of_data = f"{100 * float(here[0]['saturated_data']):.0f} %"
        table.append([steps, *cells, of_data])
    head = ["steps to the goal", *(ARMS[preset] for preset in presets), "data, at the edge"]
    return markdown(head, table)


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
        "antmaze-gpu-critics": critics(records),
        "antmaze-gpu-policies": policies(records),
        "antmaze-gpu-walks": walks(records),
        "antmaze-gpu-precision": precision(records),
        **suspects.tables(records),
    }


def draw_curves(records: Path, path: Path):
    """Mean Q and diffusion loss against updates; success is 0 in every evaluation."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    q, loss = figure.subplots(1, 2)
    for (arm, _), rows in curves(records).items():
        style = dict(color=COLOURS[arm], marker="o", ms=3, label=ARMS[arm])
        steps = column(rows, "step") / 1000
        if has_critics(rows):
            q.plot(steps, column(rows, "q_mean"), **style)
        loss.plot(steps, column(rows, "diffusion"), **style)
    q.set(ylabel="mean Q at the policy's action")
    loss.set(ylabel="diffusion loss")
    for axes in (q, loss):
        axes.set(xlabel="updates, thousands", xlim=(0, None))
        axes.grid(alpha=0.3)
    loss.set_ylim(0, None)
    loss.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def figures(records: Path, out: Path):
    draw_curves(records, out / "antmaze-gpu.png")
    draw_mazes(records / "antmaze", PATHS, out / "antmaze-gpu-paths.png", columns=3, most=SHOWN)
