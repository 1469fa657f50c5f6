"""Make every table and every picture of the pages from the records.

    python results/report.py            # fills the tables, draws results/figures
    python results/report.py --check    # writes nothing; names what differs from the records

On a page a table stands between `<!-- table NAME -->` and `<!-- end table -->`; what is between is
replaced. A study is a folder of results/studies whose tables.py has two functions that read
nothing but records (CSV files, see common/records.py):

    tables(records: Path) -> dict[str, str]      # by NAME, the Markdown that goes there
    figures(records: Path, out: Path) -> None    # writes PNG files into `out`

To add one, put its name into STUDIES.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
STUDIES = ("benchmark", "entropy", "toy", "samplers", "ensemble", "speed", "antmaze")
PAGES = (
    "README.md",
    "results/*.md",
    "results/datasets/*.md",
    "results/studies/*/*.md",
)
TABLE = re.compile(r"(<!-- table (\S+) -->\n)(.*?)(<!-- end table -->)", re.S)


def study(name: str) -> ModuleType:
    return importlib.import_module(f"results.studies.{name}.tables")


def pages(root: Path):
    return [path for pattern in PAGES for path in sorted(root.glob(pattern))]


def all_tables(records: Path):
    """What the studies make of the records, and complaints about names that two of them use."""
    found = {}
    problems = []
    for name in STUDIES:
        tables = study(name).tables(records)
        twice = found.keys() & tables.keys()
        problems += [f"study {name}: another study makes a table {table} too" for table in twice]
        found |= tables
    return found, problems


def fill(page: str, text: str, tables):
    """A page with its tables filled in, names of those that were otherwise, and complaints."""
    differing = []
    problems = []

    def replaced(match: re.Match) -> str:
        start, name, old, end = match.groups()
        if "<!--" in old:
            problems.append(f"{page}: table {name} is not closed before the next one")
            return match[0]
        if name not in tables:
            problems.append(f"{page}: no study makes a table {name}")
            return match[0]
        new = tables[name] + "\n"
        if new != old:
            differing.append(name)
        return start + new + end

    filled = TABLE.sub(replaced, text)
    starts, ends = text.count("<!-- table "), text.count("<!-- end table -->")
    if starts != ends:
        problems.append(f"{page}: {starts} tables begin and {ends} end")
    return filled, differing, problems


def report(root: Path, write: bool):
    """Fill the tables of the pages under `root`, or only compare them; what is wrong, a sentence
    each."""
    tables, problems = all_tables(root / "results" / "records")
    shown = set()
    for path in pages(root):
        page = str(path.relative_to(root))
        old = path.read_text()
        shown |= {match[1] for match in TABLE.findall(old)}
        new, differing, found = fill(page, old, tables)
        problems += found
        if not write:
            problems += [f"{page}: table {name} differs from the records" for name in differing]
        elif new != old:
            path.write_text(new)
    unused = [name for name in tables if name not in shown]
    return problems + [f"no page shows the table {name}" for name in unused]


def draw(records: Path, out: Path):
    """Every picture of every study."""
    out.mkdir(parents=True, exist_ok=True)
    for name in STUDIES:
        study(name).figures(records, out)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--check", action="store_true", help="write nothing; name what differs")
    check = parser.parse_args().check
    problems = report(ROOT, write=not check)
    if not check:
        draw(ROOT / "results" / "records", ROOT / "results" / "figures")
    for problem in problems:
        print(problem, file=sys.stderr)
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
