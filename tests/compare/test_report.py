"""A report is made of raw data alone, says what is missing, and is one file."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from sqat.compare.folder import Folder
from sqat.compare.report import write_report
from sqat.errors import DataError


def texts(out):
    html = write_report(out).read_text(encoding="utf-8")
    return (out / "report.md").read_text(encoding="utf-8"), html


def test_tables_and_pictures(fabricated):
    out = fabricated()
    markdown, html = texts(out)
    for heading in ("Quality on validation data", "Loss against gqa", "card's orderings", "Time", "Size and budget"):
        assert heading in markdown
        assert heading in html.replace("&#39;", "'")
    assert "| sqa | +0.1" in markdown
    assert "worse" in markdown
    assert "1.159" in markdown  # the card's loss of SQA
    pictures = sorted(path.name for path in (out / "pictures").iterdir())
    assert pictures == sorted(re.findall(r"pictures/([a-z-]+\.png)", markdown))
    assert len(pictures) == 7
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        assert len(list(ElementTree.fromstring(svg.replace("xlink:", "")).iter())) > 50


def test_one_file_that_needs_nothing_else(fabricated):
    _, html = texts(fabricated())
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)""", html)
    assert "prefers-color-scheme: dark" in html
    assert "@import" not in html


def test_the_same_data_give_the_same_bytes(fabricated):
    out = fabricated()
    files = []
    for _ in range(2):
        write_report(out)
        written = [out / "report.md", out / "report.html", *sorted((out / "pictures").iterdir())]
        files.append([path.read_bytes() for path in written])
    assert files[0] == files[1]


def test_stories_are_text(fabricated):
    markdown, html = texts(fabricated())
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
    ("line", "message"),
    [('{"variant": "sqa"', r"results.jsonl, line 10 is damaged"), ('{"variant": "sqa"}', r"line 10 lacks seed, model")],
)
def test_damaged_data(fabricated, line, message):
    out = fabricated()
    with (out / Folder.RESULTS).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=message):
        write_report(out)


def test_damaged_timing(fabricated):
    out = fabricated()
    (out / Folder.TIMING).write_text("{")
    with pytest.raises(DataError, match=r"timing.json is damaged"):
        write_report(out)


def test_no_results(tmp_path):
    with pytest.raises(DataError, match=r"results.jsonl is missing"):
        write_report(tmp_path)


def test_ratios_are_taken_within_rounds(fabricated):
    markdown, _ = texts(fabricated())
    row = next(line for line in markdown.splitlines() if line.startswith("| xsqa | 1."))
    assert "0.900 [0.900 … 0.900]" in row  # although the rounds' own times differ by 30 %
