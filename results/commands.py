"""What made the records: command, time and machine, from their own first lines."""

from pathlib import Path

from record import markdown, read_record


def tables(records: Path) -> dict[str, str]:
    """One row a command; where each arm has a record of its own the times are added up."""
    found: dict[str, list[tuple[str, dict]]] = {}
    for path in sorted(records.rglob("*.csv")):
        about, _ = read_record(path)
        if about.get("seconds", 0) > 60:
            name = str(path.relative_to(records).with_suffix(""))
            found.setdefault(about["command"].split(" --variants")[0], []).append((name, about))
    lines = []
    for command, parts in found.items():
        names, abouts = zip(*parts)
        seconds = (sum if "--task" in command else max)(about["seconds"] for about in abouts)
        first = abouts[0]
        files = f"{names[0].rsplit('-', 1)[0]}-* ({len(names)})" if len(names) > 4 else ", ".join(names)
        data = f"{first['dataset']} ({first['dataset_hash']})" if "dataset_hash" in first else "-"
        machine = f"{first['cpu']}, {first['capability']}, {first['threads']} thread"
        lines.append([f"`{command}`", f"{seconds:,} s", files, data, f"{machine}, torch {first['versions']['torch']}"])
    return {"commands": markdown(["command", "time", "records", "dataset (hash)", "machine"], lines)}


def figures(records: Path, out: Path) -> None:
    """None."""
