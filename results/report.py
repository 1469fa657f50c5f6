"""Redraw every table and every picture of the READMEs from the records.

    python results/report.py            # fills the tables, draws results/figures
    python results/report.py --check    # writes nothing; names each table that differs from the records, exit code 1

In a README a table stands between `<!-- table NAME -->` and `<!-- end table -->`, a figure within a sentence between
`<!-- n: NAME -->` and `<!-- /n -->`; what is between is replaced. A study is a module of this folder with two functions
that read nothing but records (CSV files, see record.py):

    tables(records: Path) -> dict[str, str]      # by NAME, the Markdown that goes there
    figures(records: Path, out: Path) -> None    # writes PNG files into `out`

To add one, put its name into STUDIES.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUDIES = "embedded first_runs made_sets paths speed precision entropy toy samplers".split()
STUDIES += "scores ablations ensemble antmaze_gpu rivals commands".split()
PAGES = ("README.md", "results/README.md", "results/datasets/README.md")  # one that is not there is passed over
TABLE = re.compile(r"(?P<start><!-- table (?P<name>\S+) -->\n)(?P<old>.*?)(?P<end><!-- end table -->)", re.S)
NUMBER = re.compile(r"(?P<start><!-- n: (?P<name>\S+) -->)(?P<old>.*?)(?P<end><!-- /n -->)", re.S)


def all_tables(records: Path) -> tuple[dict[str, str], list[str]]:
    """What the studies make of the records, and complaints about names that two of them use."""
    found, problems = {}, []
    for study in STUDIES:
        for name, text in importlib.import_module(study).tables(records).items():
            if name in found:
                problems.append(f"results/{study}.py: another study makes a table {name} too")
            found[name] = text
    return found, problems


def fill(page: str, text: str, tables: dict[str, str], used: set[str]) -> tuple[str, list[str], list[str]]:
    """A page with its tables filled in, the names of those that were other than that, and complaints about markers."""
    differing, problems = [], []

    def replaced(match: re.Match) -> str:
        name, old = match["name"], match["old"]
        if "<!--" in old:
            problems.append(f"{page}: the marker of {name} is not closed before the next one")
        elif name not in tables:
            problems.append(f"{page}: no study makes a table {name}")
        else:
            new = tables[name] + ("\n" if match.re is TABLE else "")
            used.add(name)
            differing.extend([name] if new != old else [])
            return match["start"] + new + match["end"]
        return match[0]

    text = NUMBER.sub(replaced, TABLE.sub(replaced, text))
    for start, end in (("<!-- table ", "<!-- end table -->"), ("<!-- n: ", "<!-- /n -->")):
        if text.count(start) != text.count(end):
            problems.append(f"{page}: {text.count(start)} of '{start}NAME -->', but {text.count(end)} of '{end}'")
    return text, differing, problems


def report(root: Path, write: bool) -> list[str]:
    """Fill the tables of the pages under `root`, or only compare them; returns what is wrong, a sentence each."""
    tables, problems = all_tables(root / "results" / "records")
    used: set[str] = set()
    for page in PAGES:
        if not (path := root / page).exists():
            continue
        old = path.read_text()
        new, differing, found = fill(page, old, tables, used)
        problems += found
        if write and new != old:
            path.write_text(new)
        elif not write:
            problems += [f"{page}: table {name} differs from what the records give" for name in differing]
    return problems + [f"no page shows the table {name}" for name in tables if name not in used]


def draw(records: Path, out: Path) -> None:
    """Draw every picture of every study."""
    out.mkdir(parents=True, exist_ok=True)
    for study in STUDIES:
        importlib.import_module(study).figures(records, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; name each table that differs")
    check = parser.parse_args().check
    problems = report(ROOT, write=not check)
    if not check:
        draw(ROOT / "results" / "records", ROOT / "results" / "figures")
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
