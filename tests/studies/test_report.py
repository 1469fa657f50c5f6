"""Pages hold what the records give, and no record or picture is without use."""

import builtins
import io
import shutil
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from results import report

pytestmark = pytest.mark.study
RECORDS = ROOT / "results" / "records"
FIGURES = ROOT / "results" / "figures"


@pytest.fixture
def copied(tmp_path):
    """The pages and the records alone, in a folder of their own."""
    for path in report.pages(ROOT):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    shutil.copytree(RECORDS, tmp_path / "results" / "records")
    return tmp_path


def test_a_changed_digit_of_a_record_is_named_and_mended(copied):
    assert report.report(copied, write=False) == [], "run python results/report.py"
    path = copied / "results" / "records" / "speed" / "cpu.csv"
    text = path.read_text()
    assert ",cpu,168," in text
    path.write_text(text.replace(",cpu,168,", ",cpu,178,", 1))
    shown = [page for page in report.pages(copied) if "<!-- table speed -->" in page.read_text()]
    assert shown
    assert sorted(report.report(copied, write=False)) == sorted(
        f"{page.relative_to(copied)}: table speed differs from the records" for page in shown
    )
    assert report.report(copied, write=True) == []
    assert report.report(copied, write=False) == []
    page = shown[0]
    page.write_text(page.read_text().replace("<!-- table speed -->", "<!-- table sped -->"))
    problems = report.report(copied, write=False)
    assert f"{page.relative_to(copied)}: no study makes a table sped" in problems


def test_no_record_and_no_picture_is_without_use(tmp_path, monkeypatch):
    """Each record is read for a table or a picture, or linked by a page; each picture is shown."""
    seen = set()
    plain = io.open

    def noting(file, *args, **kwargs):
        seen.add(str(file))
        return plain(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", noting)
    monkeypatch.setattr(io, "open", noting)
    report.report(ROOT, write=False)
    report.draw(RECORDS, tmp_path)
    monkeypatch.undo()
    text = "".join(page.read_text() for page in report.pages(ROOT))
    records = [path for path in RECORDS.rglob("*.*") if str(path) not in seen]
    unused = [str(p.relative_to(RECORDS)) for p in records if p.name not in text]
    assert not unused, f"neither a table nor a picture reads {unused}, and no page links them"
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {path.name for path in FIGURES.iterdir()}, "run python results/report.py"
    hidden = [name for name in drawn if f"figures/{name}" not in text]
    assert not hidden, f"no page shows {hidden}"
