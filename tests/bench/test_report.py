"""What people and machines read."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from sqat.bench import report
from sqat.bench.environment import environment
from sqat.bench.results import Result, Series, Table
from sqat.bench.targets import outcomes


def result() -> Result:
    series = [Series("ours", [1234.0, 1300.0], {"share": 0.123456}), Series("theirs", [500.0, 650.0])]
    table = Table(
        "steps", "tokens/s", series, baseline="theirs", failed={"b": "ValueError: no"}, skipped={"c": "38 GiB"}
    )
    return Result("training", [table], {"rxlm": "pip install it"}, environment=environment())


def test_numbers() -> None:
    assert [report.number(x) for x in (12345.6, 99.96, 0.012345, 0)] == ["12,346", "100", "0.0123", "0"]


def test_cells() -> None:
    assert report.cells(result().tables[0]) == [
        ["", "tokens/s", "against theirs", "share"],
        ["ours", "1,267 [1,234 … 1,300]", "2.23× [2 … 2.47]", "0.123"],
        ["theirs", "575 [500 … 650]", "", ""],
    ]


def test_terminal(capsys) -> None:
    console = Console(width=120)
    report.print_result(console, result())
    report.print_targets(console, outcomes([]))
    out = capsys.readouterr().out
    for part in ("2.23×", "not measured: c: 38 GiB", "failed: b: ValueError: no", "absent: rxlm: pip install it"):
        assert part in out


def test_files(tmp_path: Path) -> None:
    made = result()
    report.write_result(tmp_path / "new", made)
    report.write_summary(tmp_path / "new", [made], outcomes([made]), "sqat bench training")
    assert Result.from_dict(json.loads((tmp_path / "new" / "training.json").read_text())) == made
    page = (tmp_path / "new" / "summary.md").read_text()
    assert "`sqat bench training`" in page
    assert "| ours | 1,267 [1,234 … 1,300] | 2.23× [2 … 2.47] | 0.123 |" in page
    assert len(json.loads((tmp_path / "new" / "targets.json").read_text())) == len(outcomes([]))
