"""Tables of the ensemble study: pessimism in closed form, and groups of trained members.

With Gaussian members the minimum of M is, in the mean, an LCB whose beta is the expected maximum
of M standard normals; and an LCB's own std over ensembles follows from M.
"""

import functools
import math
from pathlib import Path

from scipy import integrate, stats

from results.common.records import column, markdown, pick, read_record


@functools.cache
def minimum_as_beta(members: int) -> float:
    """Expected maximum of so many standard normals: the beta whose LCB the minimum is, in the
    mean.
    """

    def weighted(x: float) -> float:
        density = stats.norm.pdf(x) * stats.norm.cdf(x) ** (members - 1)
        return x * members * density

    return integrate.quad(weighted, -10, 10)[0]


def lcb_noise(members: int, beta: float) -> float:
    """Std of the LCB of so many Gaussian members over ensembles, in units of the members' std."""
    log_ratio = math.lgamma(members / 2) - math.lgamma((members - 1) / 2)
    mean_std = math.sqrt(2 / (members - 1)) * math.exp(log_ratio)  # E of the sample std
    var_std = 1 - mean_std**2
    return math.sqrt(1 / members + beta**2 * var_std)  # mean and std are independent


def pessimism_table() -> str:
    betas = (1, 2, 4)
    rows = []
    for members in (2, 4, 8, 16, 32, 64, 128, 10_000):
        row = [f"{members:,}", f"{minimum_as_beta(members):.2f}"]
        row += [f"{lcb_noise(members, beta):.2f}" for beta in betas]
        rows.append(row)
    head = ["members M", "beta of which the minimum is the LCB"]
    return markdown([*head, *(f"noise of the LCB, beta = {beta}" for beta in betas)], rows)


def groups_table(rows: list[dict]) -> str:
    """Means over runs, by size of the group."""
    lines = []
    for size in sorted({row["members"] for row in rows}):
        of_size = pick(rows, members=size)
        same = 100 * column(of_size, "same_choice").mean()
        cells = [
            f"{column(of_size, name).mean():.2f}"
            for name in ("loss_in_std", "lcb_noise", "random_seen")
        ]
        lines.append([f"{size:.0f}", f"{same:.0f} %", *cells])
    head = [
        "members of a group",
        "same best of K as the other members",
        "their LCB given up, in std over candidates",
        "noise of the LCB, in member std",
        "random action seen (AUC)",
    ]
    return markdown(head, lines)


def spreads_table(rows: list[dict]) -> str:
    """By how much members differ, and by how much candidates do."""
    runs = pick(rows, members=2)  # these columns are a run's, whatever the size
    names = {
        "std of the members on data actions": "std_data",
        "on the policy's": "std_policy",
        "on random ones": "std_random",
        "std of the mean Q over a state's candidates": "mean_q_over_candidates",
    }
    cells = [f"{column(runs, name).mean():.2f}" for name in names.values()]
    return markdown(list(names), [cells])


def tables(records: Path) -> dict[str, str]:
    """Markdown by name."""
    _, rows = read_record(records / "ensemble" / "groups.csv")
    return {
        "pessimism": pessimism_table(),
        "groups": groups_table(rows),
        "spreads": spreads_table(rows),
    }


def figures(records: Path, out: Path) -> None:
    """None: these are tables."""
