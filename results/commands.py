"""What made the records: command, time and machine, from their own first lines."""

from pathlib import Path

from record import markdown, read_record


def tables(records: Path) -> dict[str, str]:
    """One row for each kind of record that says where it comes from; the parts of a study are added up."""
    parts: dict[str, list[dict]] = {}
    for path in sorted(records.rglob("*.csv")):
        about, _ = read_record(path)
        if "seconds" in about:
            name = f"entropy/{'-'.join(path.stem.split('-')[:2])}" if path.parent.name == "entropy" else path.stem
            parts.setdefault(name, []).append(about)
    lines = []
    for name, abouts in parts.items():
        first = abouts[0]
        command = first["command"].split(" --variants")[0]
        files = f"{name}-*.csv ({len(abouts)})" if len(abouts) > 1 else f"{name}.csv"
        seconds = sum(about["seconds"] for about in abouts)
        machine = f"{first['cpu']}, {first['capability']}, {first['threads']} thread"
        machine += f", torch {first['versions']['torch']}"
        data = f"{first['dataset']} ({first['dataset_hash']})" if "dataset" in first else "-"
        lines.append([files, f"`{command}`", f"{seconds:,} s", data, machine])
    return {"commands": markdown(["records", "command", "time", "dataset (hash)", "machine"], lines)}


def figures(records: Path, out: Path) -> None:
    """None."""
