"""Records: CSV files with one row a run (or seed), and above them, in a comment, where they come
from.

The first line is `# ` and JSON: command, arguments, seeds, versions, machine, seconds, and for
runs on a dataset its id and hash. The rest is plain CSV (`pandas.read_csv(path, comment="#")`
reads it). Tables and pictures are made from such files alone, by `python results/report.py`.
"""

import csv
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "results" / "records"


def machine() -> dict:
    """Versions and hardware that figures depend on."""
    import torch

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "numpy")}
    return {
        "python": platform.python_version(),
        "versions": versions,
        "cpu": model[1] if model else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def shortened(value: object, digits: int) -> object:
    return f"{value:.{digits}g}" if isinstance(value, float) else value


def write_csv(path: Path, rows, comment: str = "", digits: int = 5):
    """Write rows in one step; a column that a row lacks stays empty, floats keep so many digits."""
    columns = dict.fromkeys(name for row in rows for name in row)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    with open(new, "w", newline="") as file:
        file.write(comment)
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            short = {name: shortened(value, digits) for name, value in row.items()}
            writer.writerow(short)
    new.replace(path)


def write_record(path: Path, rows, started: float, **about: object):
    """Write rows under their header. `about`: arguments, seeds, dataset, threads, ..."""
    script = os.path.relpath(sys.argv[0], ROOT)
    command = " ".join(["python", script, *sys.argv[1:]])
    seconds = round(time.time() - started)
    header = {"command": command, **machine(), **about, "seconds": seconds}
    write_csv(path, rows, f"# {json.dumps(header)}\n")


def number_or_text(text: str) -> float | str:
    """What reads as a number is one."""
    try:
        return float(text)
    except ValueError:
        return text


def read_record(path: Path) -> tuple[dict, list[dict]]:
    """Header (empty if the file has none) and rows."""
    with open(path, newline="") as file:
        first = file.readline()
        if first.startswith("# "):
            about = json.loads(first[2:])
        else:
            about = {}
            file.seek(0)
        rows = []
        for texts in csv.DictReader(file):
            row = {name: number_or_text(text) for name, text in texts.items()}
            rows.append(row)
    return about, rows


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as text, without the header of a record; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        lines = [line for line in file if not line.startswith("# ")]
    return list(csv.DictReader(lines))


def pick(rows, **wanted: object):
    """The rows in which the named columns have these values."""
    found = []
    for row in rows:
        if all(row[k] == v for k, v in wanted.items()):
            found.append(row)
    return found


def column(rows, name: str) -> np.ndarray:
    """A column as numbers."""
    return np.array([float(row[name]) for row in rows])


def markdown(head, rows) -> str:
    """A Markdown table."""
    rule = ["---"] * len(head)
    lines = [" | ".join(cells) for cells in (head, rule, *rows)]
    return "\n".join(f"| {line} |" for line in lines)
