"""report.md and report.html of a comparison, from its raw data alone: the same data give the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqat.compare.pictures import draw_all
from sqat.compare.results import Comparison, read_comparison
from sqat.compare.tables import TextTable, all_tables
from sqat.durable import replace_file
from sqat.errors import ConfigError

MARKDOWN, HTML, PICTURES = "report.md", "report.html", "pictures"
INSTALL = 'pip install "sqat[report]"'


def write_report(out: Path) -> Path:
    """Write report.md, report.html (one file, readable offline) and pictures/; returns the path of report.html.

    Raises:
        ConfigError: matplotlib, jinja2 or scipy is missing.
        DataError: the folder's raw data are missing or damaged.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a report needs {error.name}: {INSTALL}") from error
    comparison = read_comparison(out)
    tables, pictures = all_tables(comparison), draw_all(comparison)
    folder = out / PICTURES
    folder.mkdir(exist_ok=True)
    for name, (_, _, png) in pictures.items():
        (folder / f"{name}.png").write_bytes(png)
    replace_file(
        out / MARKDOWN, _markdown(comparison, tables, {name: title for name, (title, _, _) in pictures.items()})
    )
    loader = jinja2.PackageLoader("sqat.compare")
    template = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    drawn = [(title, _inline(svg)) for title, svg, _ in pictures.values()]
    page = template.get_template("report.html").render(
        title=_title(comparison),
        summary=_summary(comparison),
        tables=tables,
        pictures=drawn,
        stories=_stories(comparison),
    )
    replace_file(out / HTML, page)
    return out / HTML


def _title(comparison: Comparison) -> str:
    return f"{comparison.plan.name}: {', '.join(comparison.variants)}"


def _summary(comparison: Comparison) -> list[str]:
    """What was done, in sentences."""
    plan = comparison.plan
    lines = [
        f"{len(comparison.variants)} variants, family {plan.family}, {len(plan.seeds)} seed(s), "
        f"matched by {plan.match}; data: {plan.data.source}; reference: {plan.reference}."
    ]
    if missing := comparison.missing():
        lines.append(f"Not done yet, and not in this report: {'; '.join(missing)}.")
    if comparison.timing is None:
        lines.append("There is no timing pass, so nothing is said of time.")
    if any(run.get("shared_machine") for run in comparison.runs):
        lines.append("Runs shared the machine; their wall clocks mean nothing and are not shown.")
    revisions = sorted({str(run.get("environment", {}).get("revision")) for run in comparison.runs})
    machines = sorted({str(run.get("environment", {}).get("cpu")) for run in comparison.runs})
    lines.append(f"Revision {', '.join(revisions)}; {', '.join(machines)}.")
    return lines


def _stories(comparison: Comparison) -> list[tuple[str, str]]:
    """The first run's of every variant."""
    return [(name, story) for name in comparison.variants for story in comparison.of(name)[0].get("stories", [])[:2]]


def _markdown(comparison: Comparison, tables: list[TextTable], pictures: dict[str, str]) -> str:
    parts = [f"# {_title(comparison)}", *_summary(comparison)]
    for table in tables:
        head = [f"| {' | '.join(table.columns)} |", f"|---{'|--:' * (len(table.columns) - 1)}|"]
        rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table.rows]
        parts += [f"## {table.title}", "\n".join(head + rows), "\n".join(f"- {note}" for note in table.notes)]
    parts += [f"## {title}\n\n![{title}]({PICTURES}/{name}.png)" for name, title in pictures.items()]
    for name, story in _stories(comparison):
        parts += [f"### A story by {name}", "\n".join(f"> {line}" for line in story.splitlines())]
    return "\n\n".join(part for part in parts if part) + "\n"


def _inline(svg: bytes) -> Any:
    """An SVG without its XML head, to stand within a page; matplotlib made it, and escapes names in it."""
    from markupsafe import Markup

    text = svg.decode("utf-8")
    return Markup(text[text.index("<svg") :])
