"""Why umaze is not learned: one suspect a run, on seeds that no other table shows.

    python results/studies/antmaze/suspects.py runs/suspects/*

Writes results/records/antmaze/suspects.csv, a row a run, from run folders of `edq_antmaze.py`, of
the peer (studies/benchmark/peer.py) and of branches.py.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from results.common.records import RECORDS, markdown, read_record, write_record
from results.studies.benchmark.pilots import row_of, score_text

METHODS = {
    "diffusion-bc": "diffusion BC",
    "bc": "BC by mean squared error (d3rlpy)",
    "iql": "IQL (d3rlpy)",
    "branch": "the script's update from that clone",
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
        critics = f"{row['num_critics']:.0f}" if row["method"] in ("iql", "branch") else "-"
        scaled = "yes" if row["normalize_obs"] in ("True", "") else "no"
        goal = "(-4, 4)" if row["run"].endswith("-fixed") else "drawn"
        cells = [method, critics, scaled, goal, f"{row['updates']:,.0f}", f"{row['best']:.0f}"]
        lines.append([*cells, score_text(row)])
    head = ["method", "critics", "standardised", "goal of the evaluation", "updates", "best, %"]
    return {"antmaze-suspects": markdown([*head, "last success, %"], lines)}


def main(args: Args) -> None:
    started = time.time()
    rows = [row_of(folder) for folder in args.runs if (folder / "evaluations.csv").exists()]
    rows.sort(key=lambda row: ([*METHODS].index(row["method"]), row["run"]))
    write_record(args.record, rows, started, data="stand-ins, not D4RL's")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__.split("\n\n")[0]))
