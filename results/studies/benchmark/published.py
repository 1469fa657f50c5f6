"""Table of published scores of EDQ's rivals; each figure stands with its source in published.csv.

The ways in which a paper may pick the checkpoint it reports are kept apart, and so are versions of
datasets.
"""

from pathlib import Path

from results.common.records import csv_rows, markdown

GROUPS = {
    ("antmaze", "v0"): "AntMaze **v0** (EDQ's), mean of six",
    ("antmaze", "v2"): "AntMaze **v2**, mean of six",
    ("locomotion", "v2"): "locomotion v2, mean of nine",
    ("adroit", "v1"): "pen-human and pen-cloned v1",
    ("kitchen", "v0"): "kitchen v0, mean of three",
}
COLUMNS = ("last", "offline", "best", "unclear")
AVERAGE = "average of last N"


def short_source(source: str) -> str:
    """The paper alone, where a source goes on to name its table's column."""
    for mark in (";", ", ", " column"):
        source = source.split(mark)[0]
    return source


def tables(records: Path) -> dict[str, str]:
    """A row a group of tasks and method, reruns by other papers left out."""
    found = {}
    for row in csv_rows(records / "benchmark" / "published.csv"):
        group = row["group"], row["version"]
        if group not in GROUPS or "rerun" in row["method"]:
            continue
        cells = found.setdefault((group, row["method"]), {})
        averaged = row["protocol"] == AVERAGE
        kind = "last" if averaged else row["protocol"]
        score = f"{float(row['score']):.1f}" + ("*" if averaged else "")
        cells.setdefault(kind, []).append(score)
        sources = cells.setdefault("sources", [])
        if short_source(row["source"]) not in sources:
            sources.append(short_source(row["source"]))
    rows = []
    for wanted, name in GROUPS.items():
        for (group, method), cells in found.items():
            if group == wanted:
                scores = [", ".join(cells.get(kind, [])) for kind in COLUMNS]
                rows.append([name, method, *scores, "; ".join(cells["sources"])])
    head = ["tasks", "method", "last", "offline", "best of run", "rule not found", "source"]
    return {"published": markdown(head, rows)}
