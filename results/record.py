"""Records: CSV files of figures with one row a run (or seed), and above them, in a comment, where these come from.

The first line is `# ` and JSON: command, arguments, seeds, versions, machine, seconds, and for runs on a dataset its id
and hash. The rest is plain CSV (`pandas.read_csv(path, comment="#")` reads it). Tables and pictures are made from such
files alone, by `python results/report.py`.
"""

import csv
import importlib.metadata
import json
import os
import platform
import sys
import time
from pathlib import Path

RECORDS = Path(__file__).resolve().parent / "records"


def machine() -> dict:
    """Versions and hardware that figures depend on."""
    import torch

    cpu = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in ("torch", "numpy")},
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def write_record(path: Path, rows: list[dict], started: float, **about: object) -> None:
    """Write rows with equal keys; floats keep five significant digits. `about`: arguments, seeds, dataset, threads."""
    command = " ".join(["python", os.path.relpath(sys.argv[0], RECORDS.parents[1]), *sys.argv[1:]])
    about = {"command": command, **machine(), **about, "seconds": round(time.time() - started)}
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with open(new, "w", newline="") as file:
        file.write(f"# {json.dumps(about)}\n")
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    new.replace(path)


def read_record(path: Path) -> tuple[dict, list[dict]]:
    """Header (empty if the file has none) and rows; what reads as a number is one."""

    def value(text: str) -> float | str:
        try:
            return float(text)
        except ValueError:
            return text

    with open(path, newline="") as file:
        first = file.readline()
        about = json.loads(first[2:]) if first.startswith("# ") else {}
        if not about:
            file.seek(0)
        return about, [{k: value(v) for k, v in row.items()} for row in csv.DictReader(file)]


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as they stand, without the header of a record; none if there is no file."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return [*csv.DictReader(line for line in file if not line.startswith("# "))]


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
