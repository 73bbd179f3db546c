"""report.md and report.html of a comparison, from its raw data alone: the same data give the same bytes."""

from pathlib import Path

import jinja2

from sqat.compare.figures import draw_all
from sqat.compare.folder import Comparison, read_comparison
from sqat.compare.tables import Table, all_tables, undecided
from sqat.durable import replace_file, writing
from sqat.errors import ConfigError, DataError

MARKDOWN, HTML, PICTURES = "report.md", "report.html", "pictures"


def write_report(out: Path) -> Path:
    """Write report.md, report.html (one file, readable offline) and pictures/; returns the path of report.html.

    Raises:
        ConfigError: matplotlib or scipy is not installed.
        DataError: the folder's raw data are missing or damaged.
    """
    comparison, folder = read_comparison(out), out / PICTURES
    try:
        tables, figures = all_tables(comparison), draw_all(comparison)
    except ImportError as error:
        raise ConfigError(f"a report needs {error.name}: pip install matplotlib scipy") from error
    except (LookupError, TypeError) as error:
        raise DataError(f"{out}: its raw data are not what a comparison writes: {error!r}") from error
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for name, (_, _, png) in figures.items():
            (folder / f"{name}.png").write_bytes(png)
    replace_file(out / MARKDOWN, _markdown(comparison, tables, {name: title for name, (title, *_) in figures.items()}))
    loader = jinja2.PackageLoader("sqat.compare")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html").render(
        title=_title(comparison),
        summary=_summary(comparison),
        tables=tables,
        figures=figures.values(),
        stories=_stories(comparison),
    )
    replace_file(out / HTML, page)
    return out / HTML


def _title(comparison: Comparison) -> str:
    return f"{comparison.plan.name}: {', '.join(comparison.variants)}"


def _summary(comparison: Comparison) -> list[str]:
    """What was done, in sentences."""
    plan, runs, timing = comparison.plan, comparison.runs, comparison.timing
    lines = [f"{len(comparison.variants)} variants, family {plan.family}; reference: {plan.reference}."]
    if runs:
        seeds = len({run["seed"] for run in runs})
        lines[0] += f" Matched by {plan.match}, {seeds} seed{'s' if seeds > 1 else ''}; data: {plan.data.source}."
    else:
        lines.append("Nothing was trained: sizes and operations are computed, times measured on untrained models.")
    if missing := comparison.missing():
        lines.append(f"Not done yet, and not in this report: {'; '.join(missing)}.")
    if unclear := undecided(comparison):
        lines.append(
            f"With this number of seeds, the loss of {', '.join(unclear)} cannot be told apart from that of "
            f"{plan.reference}, which does not mean that they are equal."
        )
    if timing is None:
        lines.append("There is no timing pass, so nothing is said of time.")
    places = [run.get("environment", {}) for run in runs] or [timing["environment"] if timing else {}]
    revisions, machines = ({str(place.get(key)) for place in places} for key in ("revision", "cpu"))
    lines.append(f"Revision {', '.join(sorted(revisions))}; {', '.join(sorted(machines))}.")
    return lines


def _stories(comparison: Comparison) -> list[tuple[str, str]]:
    """The first two stories of every variant's first run."""
    firsts = [(name, comparison.runs_of(name)[:1]) for name in comparison.variants]
    return [(name, story) for name, runs in firsts for run in runs for story in run.get("stories", [])[:2]]


def _markdown(comparison: Comparison, tables: list[Table], figures: dict[str, str]) -> str:
    parts = [f"# {_title(comparison)}", *_summary(comparison)]
    for table in tables:
        head = [f"| {' | '.join(table.columns)} |", f"|---{'|--:' * (len(table.columns) - 1)}|"]
        rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in table.rows]
        parts += [f"## {table.title}", "\n".join(head + rows), "\n".join(f"- {note}" for note in table.notes)]
    parts += [f"## {title}\n\n![{title}]({PICTURES}/{name}.png)" for name, title in figures.items()]
    for name, story in _stories(comparison):
        parts += [f"### A story by {name}", "\n".join(f"> {line}" for line in story.splitlines())]
    return "\n\n".join(part for part in parts if part) + "\n"
