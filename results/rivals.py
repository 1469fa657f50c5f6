"""Table of published scores of EDQ's rivals; every figure with its source stands in records/rivals.csv.

The three ways in which a paper may pick the checkpoint it reports are kept apart, and so are versions of datasets.
"""

from pathlib import Path

from record import csv_rows, markdown

GROUPS = {
    ("antmaze", "v0"): "AntMaze **v0** (EDQ's), mean of six",
    ("antmaze", "v2"): "AntMaze **v2**, mean of six",
    ("locomotion", "v2"): "locomotion v2, mean of nine",
    ("adroit", "v1"): "pen-human and pen-cloned v1",
    ("kitchen", "v0"): "kitchen v0, mean of three",
}
LAST, CHOSEN = ("last", "average of last N"), ("offline", "best", "unclear")


def tables(records: Path) -> dict[str, str]:
    """A row a group of tasks and method, reruns by other papers left out."""
    lines: dict[tuple, dict[str, str]] = {}
    for row in csv_rows(records / "rivals.csv"):
        if (row["group"], row["version"]) in GROUPS and "rerun" not in row["method"]:
            cells = lines.setdefault((row["group"], row["version"], row["method"]), {"sources": []})
            how = "last" if row["protocol"] in LAST else row["protocol"]
            score = f"{float(row['score']):.1f}" + ("*" if row["protocol"] == LAST[1] else "")
            cells[how] = f"{cells[how]}, {score}" if how in cells else score
            source = row["source"].split(";")[0].split(", ")[0].split(" column")[0]
            cells["sources"] += [source] if source not in cells["sources"] else []
    rows = []
    for of, label in GROUPS.items():
        for key, cells in lines.items():
            if key[:2] == of:
                scores = [cells.get(how, "") for how in ("last", *CHOSEN)]
                rows.append([label, key[2], *scores, "; ".join(cells["sources"])])
    return {"rivals": markdown(["tasks", "method", "last", "offline", "best of run", "rule not found", "source"], rows)}


def figures(records: Path, out: Path) -> None:
    """None."""
