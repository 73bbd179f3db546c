"""A report is made of raw data alone, says what is missing, and is one file."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from sqat.compare.figures import look_of
from sqat.compare.folder import Folder, read_comparison
from sqat.compare.plan import ComparePlan
from sqat.compare.report import write_report
from sqat.errors import DataError
from sqat.variants import VARIANTS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _pictures(request, monkeypatch):
    """Pictures are drawn only for the tests that look at them: it takes seconds."""
    if "drawn" not in request.keywords:
        names = re.findall(r"\[(.*)\]\(pictures/(.*)\.png\)", (BENCHMARKS / "stories-recall/report.md").read_text())
        stubs = {file: (title, "<svg", b"") for title, file in names}
        monkeypatch.setattr("sqat.compare.report.draw_all", lambda comparison: stubs)


def texts(out):
    html = write_report(out).read_text(encoding="utf-8")
    return (out / "report.md").read_text(encoding="utf-8"), html


@pytest.mark.drawn
def test_tables_and_pictures(fabricated):
    out = fabricated()
    markdown, html = texts(out)
    for heading in ("Quality on validation data", "Against gqa, seed by seed", "Size and budget"):
        assert heading in markdown
        assert heading in html.replace("&#39;", "'")
    assert "| sqa | +0.1" in markdown
    assert "worse" in markdown
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == sorted(re.findall(r"pictures/([a-z-]+\.png)", markdown))
    assert len(pictures) == 5
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert len(list(ElementTree.fromstring(svg.replace("xlink:", "")).iter())) > 50
    before = {path: path.read_bytes() for path in out.rglob("*.*")}
    write_report(out)  # the same data give the same bytes
    assert {path: path.read_bytes() for path in out.rglob("*.*")} == before


def test_the_page_needs_no_other_file_and_stories_are_text(fabricated):
    markdown, html = texts(fabricated())
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", html)
    assert "prefers-color-scheme: dark" in html
    assert "@import" not in html
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "there was a fox" in markdown


def test_one_seed_says_so(fabricated):
    markdown, _ = texts(fabricated(seeds=(0,)))
    assert "one seed: nothing can be said" in markdown
    assert "± inf" not in markdown
    assert "nan" not in markdown


def test_missing_runs_and_timing_are_named(fabricated):
    out = fabricated()
    lines = (out / Folder.RESULTS).read_text().splitlines(keepends=True)
    (out / Folder.RESULTS).write_text("".join(lines[:-1]))
    (out / Folder.TIMING).unlink()
    markdown, _ = texts(out)
    assert "Not done yet, and not in this report: xsqa, seed 2." in markdown
    assert "There is no timing pass" in markdown
    assert "## Time" not in markdown


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        (Folder.RESULTS, '{"variant": "sqa"', r"results.jsonl, line 1 is damaged"),
        (Folder.RESULTS, '{"variant": "sqa"}', r"its raw data are not what a comparison writes"),
        (Folder.RESULTS, "\udcff\udcfe", r"results.jsonl, line 1 is damaged"),
        (Folder.TIMING, "{", r"timing.json is damaged"),
        (Folder.TIMING, '{"variants": {}}', r"its raw data are not what a comparison writes"),
    ],
)
def test_damaged_data_are_named(fabricated, file, text, message):
    out = fabricated()
    (out / file).write_text(text, errors="surrogateescape")
    with pytest.raises(DataError, match=message):
        write_report(out)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in BENCHMARKS.glob("*/report.md")))
def test_committed_results_make_their_report_again(name, monkeypatch, tmp_path):
    """The words and numbers; pictures depend on the fonts of a machine."""
    for part in (Folder.PLAN, Folder.SETUP, Folder.RESULTS, Folder.TIMING):
        if (path := BENCHMARKS / name / part).is_file():
            (tmp_path / part).write_bytes(path.read_bytes())
    pictures = re.findall(r"\[(.*)\]\(pictures/(.*)\.png\)", (BENCHMARKS / name / "report.md").read_text())
    drawn = {file: (title, "<svg", b"") for title, file in pictures}
    monkeypatch.setattr("sqat.compare.report.draw_all", lambda comparison: drawn)
    write_report(tmp_path)
    assert (tmp_path / "report.md").read_text() == (BENCHMARKS / name / "report.md").read_text()


def test_no_results(tmp_path):
    with pytest.raises(DataError, match=r"has no finished run to report on and no timing pass"):
        write_report(tmp_path)


def test_ratios_are_taken_within_rounds(fabricated):
    markdown, _ = texts(fabricated())
    row = next(line for line in markdown.splitlines() if line.startswith("| xsqa | 1."))
    assert "0.900 [0.900 … 0.900]" in row  # although the rounds' own times differ by 30 %


def test_metrics_and_differences_have_intervals(fabricated):
    out = fabricated(("gqa", "sqa"), (0, 1, 2))
    losses = {"gqa": (1.0, 2.0, 3.0), "sqa": (1.5, 2.0, 3.1)}
    lines = [json.loads(line) for line in (out / Folder.RESULTS).read_text().splitlines()]
    for line in lines:
        line["evaluation"]["loss"] = losses[line["variant"]][line["seed"]]
        line["evaluation"]["accuracy"] = 0.3 + 0.1 * line["seed"] * (line["variant"] == "sqa")
    (out / Folder.RESULTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    markdown, _ = texts(out)
    assert "| gqa | 3 | 2.0000 ± 2.4841 |" in markdown  # t(0.975, 2) = 4.3027, over √3
    assert "| sqa | +0.2000 ± 0.6572 | 0.321 | 0.321 | cannot be told apart (n = 3) | +10.00 ± 24.84 points" in markdown
    assert "the loss of sqa cannot be told apart from that of gqa, which does not mean that they are equal" in markdown


def test_every_run_is_listed_and_shared_machines_are_marked(fabricated):
    out = fabricated(("gqa", "sqa"), (0, 7))
    text = (out / Folder.RESULTS).read_text()
    assert "0.2 |" in texts(out)[0]
    (out / Folder.RESULTS).write_text(text.replace('"shared_machine": false', '"shared_machine": true'))
    markdown, _ = texts(out)
    rows = [line.split(" | ")[:2] for line in markdown.splitlines() if line.endswith(" 0.2* |")]
    assert rows == [["| gqa", "0"], ["| gqa", "7"], ["| sqa", "0"], ["| sqa", "7"]]


class TestWithoutTraining:
    @pytest.fixture
    def out(self, fabricated):
        out = fabricated(("mha", "gqa", "sqa", "xsqa"))
        plan = (out / Folder.PLAN).read_text()
        windowed = "\n- sw-sqa: {variant: sqa, window: 64, global_tokens: 4}\nreference"
        plan = plan.replace("\nreference", windowed).replace("seeds:\n- 0\n- 1\n- 2", "seeds: []")
        (out / Folder.PLAN).write_text(plan)
        (out / Folder.RESULTS).unlink()
        timing = json.loads((out / Folder.TIMING).read_text())
        timing["variants"]["sw-sqa"] = timing["variants"]["sqa"]
        (out / Folder.TIMING).write_text(json.dumps(timing))
        return out

    @pytest.mark.drawn
    def test_the_report_says_so_and_has_what_needs_none(self, out):
        markdown, html = texts(out)
        assert "Nothing was trained" in markdown
        assert "Nothing was trained" in html
        headings = re.findall(r"^## (.*)$", markdown, re.MULTILINE)
        assert headings == [
            *("Time", "Attention alone, forward, ms", "Attention alone, forward and backward, ms"),
            *("Size", "Operations"),
            "Attention alone, forward and backward",
        ]
        assert "loss:" not in markdown
        assert "| mha | 8 | 8 | 8.81 M | 2.88 M |" in markdown

    def test_operations_add_up(self, out):
        markdown, _ = texts(out)
        table = markdown[markdown.index("## Operations") :].splitlines()
        for row in (line for line in table if line.startswith(("| mha", "| sqa", "| sw-sqa"))):
            parts = [float(cell.replace(",", "")) for cell in row.split("|")[3:-1]]
            assert sum(parts[:4]) == pytest.approx(parts[4], abs=0.006)
            assert parts[6] == pytest.approx(parts[4], abs=0.06)  # at 256 tokens, the model's own context

    def test_more_variants_than_colours_are_told_apart(self, out):
        comparison = read_comparison(out)
        names = [*VARIANTS, "sw-sqa"]
        plan = ComparePlan.from_dict(
            {**comparison.plan.to_dict(), "variants": [*VARIANTS, *comparison.plan.variants[4:]]}
        )
        looks = [look_of(replace(comparison, plan=plan), name) for name in names]
        assert len({(look["color"], look["marker"]) for look in looks}) == len(names)
