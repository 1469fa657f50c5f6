"""Why umaze is not learned: one suspect a run, on seeds that no other table shows.

    python results/studies/antmaze/suspects.py runs/suspects/*

Puts into results/records/antmaze/suspects.csv a row a run, from run folders of `edq_antmaze.py`, of
the peer (studies/benchmark/peer.py) and of branches.py.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from results.common.records import RECORDS, csv_rows, markdown, read_record, write_record
from results.studies.benchmark.pilots import row_of, score_text

METHODS = {
    "diffusion-bc": "diffusion BC",
    "bc": "BC by mean squared error (d3rlpy)",
    "iql": "IQL (d3rlpy)",
    "branch": "the script's update from that clone",
    "edq": "EDQ, no entropy term, argmax of 50",
    "authors": "the authors' code, with that row",
}


@dataclass
class Args:
    """Write the record of the named run folders."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """run folders"""
    record: Path = RECORDS / "antmaze" / "suspects.csv"
    """file to write"""


def tables(records: Path) -> dict[str, str]:
    """A run a row."""
    lines = []
    for row in read_record(records / "antmaze" / "suspects.csv")[1]:
        method = METHODS[row["method"]]
        if row["method"] == "branch":
            method += f", eta {row['eta']:g}"
        if row["method"] in ("edq", "authors"):
            method += f", rewards {row['reward']}, gamma {row['gamma']:g}"
        with_q = row["method"] in ("iql", "branch", "edq", "authors")
        critics = f"{row['num_critics']:.0f}" if with_q else "-"
        scaled = "yes" if row["normalize_obs"] in ("True", "") else "no"
        goal = "(-4, 4)" if row["run"].endswith("-fixed") else "drawn"
        part = "the way" if "way" in row["dataset"] else "whole"
        history = str(row["scores"]).removesuffix(".0")
        updates = f"{row['updates']:,.0f}"
        lines.append([method, critics, part, scaled, goal, updates, history, score_text(row)])
    head = ["method", "critics", "data", "standardised", "goal of the evaluation", "updates"]
    head += ["success at each evaluation, %", "last"]
    return {"antmaze-suspects": markdown(head, lines)}


def main(args: Args) -> None:
    started = time.time()
    rows = {row["run"]: row for row in csv_rows(args.record)}  # runs that are not named stay
    for folder in args.runs:
        if (folder / "evaluations.csv").exists():
            rows[folder.name] = row_of(folder)
    rows = list(rows.values())
    rows.sort(key=lambda row: ([*METHODS].index(row["method"]), row["run"]))
    write_record(args.record, rows, started, data="stand-ins, not D4RL's")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
