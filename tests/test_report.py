"""Tables and pictures of the READMEs: they are what the records give, and neither is there without the other."""

import builtins
import io
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "results"))  # as the studies find each other when report.py is run
import report
from paths import PICTURES
from record import read_record

RECORDS, FIGURES = ROOT / "results" / "records", ROOT / "results" / "figures"
PAGES = [page for page in report.PAGES if (ROOT / page).exists()]


def rows(name: str, **wanted) -> list[dict]:
    """Rows of a record in which the named columns have these values."""
    return [
        r
        for r in read_record(RECORDS / f"{name}.csv")[1]
        if all(r[k] == v for k, v in wanted.items())
    ]


@pytest.fixture(scope="module")
def redrawn(tmp_path_factory):
    """All pictures drawn anew, and the files that were read for tables and pictures."""
    out, seen, plain = tmp_path_factory.mktemp("figures"), set(), io.open

    def noting(file, *args, **kwargs):
        seen.add(str(file))
        return plain(file, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", noting)
        report.report(ROOT, write=False)
        report.draw(RECORDS, out)
    return out, seen


@pytest.fixture
def copied(tmp_path):
    """The pages and the records alone, in a folder of their own."""
    for page in PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(RECORDS, tmp_path / "results" / "records")
    return tmp_path


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, f"{old} is not in {path.name}"
    path.write_text(text.replace(old, new, 1))


def test_pages_hold_what_the_records_give():
    done = subprocess.run(
        [sys.executable, ROOT / "results" / "report.py", "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), "run python results/report.py"


@pytest.mark.parametrize(("record", "old", "new", "tables"), [
    ("pointmaze-umaze-embedded", "edq,2,100.0", "edq,2,90.0", {"embedded-edq", "first-runs"}),
    ("first-runs", "20,0.7,0.0", "20,0.8,0.0", {"first-runs"}),
    ("chance", "door-human,20,0.4", "door-human,20,0.5", {"first-runs"}),
    ("datasets-runs", "50,82.0,5.5", "50,84.0,5.5", {"first-runs", "pointmaze-sets", "mazes"}),
    ("pointmaze-sets", "100,150,13", "100,150,14", {"first-runs", "pointmaze-sets"}),
    ("antmaze-sets", "0.6067", "0.6167", {"antmaze-sets"}),
    ("collect", "1470.4", "1480.4", {"collect"}),
    ("speed", ",168,", ",178,", {"speed"}),
    ("precision", "0.16021", "0.96021", {"precision"}),
    ("rivals", "large-diverse,84,last", "large-diverse,85,last", {"rivals"}),
    ("ensemble", ",0.39802,", ",0.49802,", {"groups"}),
    ("benchmark/pointmaze", ",True,20,75,", ",True,20,5,", {"benchmark", "improvement", "selection", "worth"}),
])  # fmt: skip
def test_a_changed_digit_of_a_record_is_named(copied, record, old, new, tables):
    assert report.report(copied, write=False) == []
    change(copied / "results" / "records" / f"{record}.csv", old, new)
    before = [(copied / page).read_text() for page in PAGES]
    problems = report.report(copied, write=False)
    assert {re.search(r"table (\S+) differs", problem)[1] for problem in problems} == tables
    assert [(copied / page).read_text() for page in PAGES] == before
    assert report.report(copied, write=True) == [] and report.report(copied, write=False) == []


def test_a_changed_page_is_named_and_mended(copied):
    for page in PAGES:
        text = (copied / page).read_text()
        for match in [*report.TABLE.finditer(text), *report.NUMBER.finditer(text)]:
            digit = next(i for i in range(match.end("old") - 1, 0, -1) if text[i].isdigit())
            (copied / page).write_text(
                f"{text[:digit]}{(int(text[digit]) + 1) % 10}{text[digit + 1 :]}"
            )
            assert report.report(copied, write=False) == [
                f"{page}: table {match['name']} differs from what the records give"
            ]
            assert report.report(copied, write=True) == []
            assert (copied / page).read_text() == text


def test_markers_that_fit_no_table_are_named(copied):
    page = copied / "README.md"
    text = page.read_text()
    page.write_text(text.replace("<!-- table speed -->", "<!-- table sped -->"))
    assert report.report(copied, write=True) == [
        "README.md: no study makes a table sped",
        "no page shows the table speed",
    ]
    page.write_text(text.replace("<!-- end table -->", "", 1))
    problems = report.report(copied, write=True)
    assert (
        any("is not closed" in problem for problem in problems)
        and page.read_text().count("<!-- table ") > 1
    )
    page.write_text(text.replace("<!-- /n -->", ""))
    assert any("'<!-- n: NAME -->'" in problem for problem in report.report(copied, write=False))


def test_markers_leave_markdown_as_it_is():
    """A line that begins with a comment ends its paragraph."""
    for page in PAGES:
        assert not re.search(r"^\s*<!-- /?n\b", (ROOT / page).read_text(), re.M), page


def test_pictures_are_what_the_records_give(redrawn):
    """With the pinned matplotlib they are equal; a point of a curve moved by a tenth makes a mean difference of 1."""
    assert {p.name for p in FIGURES.iterdir()} == {p.name for p in redrawn[0].iterdir()}
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    for committed in FIGURES.iterdir():
        assert committed.stat().st_size < 300_000 and f"figures/{committed.name}" in pages, (
            committed.name
        )
        a, b = (
            np.asarray(Image.open(d / committed.name).convert("RGB"), float)
            for d in (FIGURES, redrawn[0])
        )
        assert a.shape == b.shape and np.abs(a - b).mean() < 0.5, (
            f"{committed.name}: run python results/report.py"
        )


def test_no_record_is_without_use(redrawn):
    pages = "".join((ROOT / page).read_text() for page in PAGES)
    unused = [
        p.name for p in RECORDS.rglob("*.*") if str(p) not in redrawn[1] and p.name not in pages
    ]
    assert not unused, f"neither a table nor a picture reads {unused}, and no README names them"


def test_paths_are_of_the_runs_that_the_tables_count():
    """The drawn seed's arrivals and data are those of its row; of the mazes it is EDQ's median seed."""
    for name in (name for names in PICTURES.values() for name in names):
        about, episodes = read_record(RECORDS / f"paths-{name}.csv")
        task, preset, seed = (about["args"][k] for k in ("env_id", "preset", "seed"))
        if task == "pointmaze-umaze-embedded":
            (run,) = rows(task, what=preset, seed=seed)
            score, data = run["success"], run["dataset"]
        else:
            record = "benchmark/antmaze-gpu" if task.startswith("antmaze") else "datasets-runs"
            (run,) = rows(record, task=task, preset=preset, seed=seed)
            score, data = run["last"], run["hash"]
            of_edq = {r["seed"]: r["last"] for r in rows(record, task=task, preset="edq")}
            assert of_edq[seed] == statistics.median(of_edq.values())
        assert 100 * statistics.mean(episode["arrived"] for episode in episodes) == score
        states, _ = read_record(RECORDS / f"states-{task}.csv")
        assert states["dataset"]["hash"] == about["dataset"]["hash"] == data
        assert all(
            (RECORDS / f"{x}.csv").stat().st_size < 200_000
            for x in (f"paths-{name}", f"states-{task}")
        )


def test_figures_in_sentences_come_from_records():
    """What the READMEs say beside their tables, with the figures put in from the records."""

    def of(column: str, name: str, **wanted) -> float:
        return statistics.mean(row[column] for row in rows(name, **wanted))

    def act(column: str, precision: str = "bf16") -> float:
        return of(column, "speed-acting", compile="on", precision=precision)

    def memory(max_q: str) -> float:
        base = dict(M=64, T=5, B=256, entropy="released", compile="on", precision="bf16")
        return of("peak_mib", "speed", max_q=max_q, **base) / 1024

    def together(M: int, runs: int, threads: int) -> float:
        return of(
            "updates_per_second_in_all", "speed-together", M=M, runs=runs, threads_each=threads
        )

    def lcb(column: str, M: int, precision: str = "bf16") -> float:
        return of(column, "precision", task="hopper-medium-expert", M=M, lcb_in=precision)

    def scores(task: str, M: int, mode: str) -> str:
        return ", ".join(
            f"{r['score']:.3g}"
            for r in rows("precision", task=task, M=M, trained_in=mode, lcb_in=mode)
        )

    def ant(updates: int, **wanted) -> float:
        runs = rows("datasets-runs", task="antmaze-umaze", updates=updates, **wanted)
        return next(r["last"] for r in runs if "--normalize-obs" in r["flags"])

    def pace(arm: str, first: float, last: float) -> str:
        found = [
            r["updates_per_second"]
            for r in rows("antmaze-gpu-pace", arm=arm)
            if first < r["seconds"] < last
        ]
        return f"{statistics.median(found):,.0f}"

    kernels, ms = rows("profile-gpu"), read_record(RECORDS / "profile-gpu.csv")[0]["ms_per_update"]

    def share(*parts: str) -> str:
        found = sum(
            r["microseconds"]
            for r in kernels
            if not parts or any(part in r["kernel"] for part in parts)
        )
        return f"{found / ms / 10:.0f} %"

    maze, hopper, train = "pointmaze-umaze-embedded", "hopper-medium-expert", rows("train-ant")
    phrases = {"README.md": [
        f"makes {act('steps_per_second'):,.0f} environment steps a second compiled in bf16 and "
        f"{act('steps_per_second', 'fp32'):.0f} in fp32, {act('times_faster_than_other'):.1f} and "
        f"{act('times_faster_than_other', 'fp32'):.1f} times the authors' loop",
        f"of a step's {act('evaluation_ms_per_step'):.2f} ms the simulator takes {act('simulator_ms_per_step'):.2f} "
        f"and the actor the rest, {act('actor_over_products'):.1f} times what its products take",
        f"At M = 64 the process holds {memory('False'):.1f} GiB, with max-Q {memory('True'):.1f}.",
        f"make {together(4, 2, 1):.0f} updates a second together at M = 4 (fp32), five make {together(4, 5, 1):.0f}, "
        f"and one with both threads {together(4, 1, 2):.0f}; "
        f"but two with two threads each make {together(4, 2, 2):.1f}",
        f"At M = 64 the four are {together(64, 2, 1):.1f}, {together(64, 5, 1):.1f}, {together(64, 1, 2):.1f} and "
        f"{together(64, 2, 2):.1f}",
        f"with Q around {round(lcb('mean_abs_q', 8), -1):.0f} (hopper",
        f"is off by {lcb('lcb_error_rms', 8):.2f} (rms; fp32 {lcb('lcb_error_rms', 8, 'fp32'):.4f})",
        f"spread by {lcb('lcb_std_over_candidates', 8):.1f} and the members by {lcb('ensemble_std', 8):.0f}",
        f"moves {100 * lcb('probability_moved', 8):.0f} % of its probability, and the best candidate is another one in "
        f"{100 * lcb('best_changed', 8):.0f} % of the states",
        f"(Q around {lcb('mean_abs_q', 64):.0f}) it is off by {lcb('lcb_error_rms', 64):.3f} and moves "
        f"{100 * lcb('probability_moved', 64):.1f} %",
        f"EDQ at {pace('edq', 20, 246)} updates a second, Diffusion-QL at {pace('diffusion-ql', 20, 246)}, cloning at "
        f"{pace('diffusion-bc', 20, 246)}, and EDQ at {pace('edq', 256, 470)} when cloning had stopped",
        f"by itself EDQ makes {1000 / ms:.0f} at those sizes", f"What its {ms:.2f} ms are",
        f"{share('f32f32', 'sgemm', 'gemv')} fp32 products (score network, first and last layers of the ensemble), "
        f"{share('nvjet')} bf16 products, {share('multi_tensor')} Adam",
        f"maze {scores(maze, 4, 'fp32')} in fp32 and {scores(maze, 4, 'bf16')} in bf16; hopper "
        f"{scores(hopper, 8, 'fp32')} and {scores(hopper, 8, 'bf16')}",
    ], "results/datasets/README.md": [
        f"{train[-1]['seconds']:.0f} s on one core took success on an open floor to {100 * train[-1]['success']:.0f} % "
        f"({100 * train[0]['success']:.0f} % after 82,000 steps) and its speed to {train[-1]['closing_speed']:.1f} m/s",
        f"with `--normalize-obs` in {ant(20_000, preset='diffusion-bc'):.0f}, 10 and "
        f"{ant(60_000, preset='diffusion-bc'):.0f} % after 20, 40 and 60 thousand",
    ]}  # fmt: skip
    for page, sentences in phrases.items():
        text = " ".join((ROOT / page).read_text().split())
        for sentence in sentences:
            assert sentence in text, f"{page} does not say: {sentence}"
