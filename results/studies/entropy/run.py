"""Does the entropy term raise entropy? Every published estimator on a diffusion policy.

    python results/studies/entropy/run.py --study known --task bandit  # and toy; an hour each
    python results/studies/entropy/run.py --study learned --task rare  # wander, hopper; 40 minutes
    python results/studies/entropy/run.py --study scale                # 3 minutes
    python results/report.py                                           # tables and pictures

What each arm is: arms.py. Written down before any run:
  (i)   released = quad = none: their entropies lie within 0.05 nats per action dimension of each
        other;
  (ii)  chain moves the measured entropy with its coefficient;
  (iii) at equal measured entropy chain beats noise: its value with 50 candidates is higher.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from results.studies.entropy import known, learned, scale


@dataclass
class Args:
    """Run a part of the study; see the head of this file."""

    study: Literal["known", "learned", "scale"]
    task: Literal["bandit", "toy", "rare", "wander", "hopper"] = "bandit"
    variants: tuple[str, ...] = ()  # by default all


def main(args: Args) -> None:
    if args.study == "known":
        known.run(args.task, list(args.variants))
    elif args.study == "learned":
        learned.run(args.task, list(args.variants))
    else:
        scale.run()


if __name__ == "__main__":
    main(tyro.cli(Args))
