"""One page on a conversion: what it costs, how close it is, and where in the model it differs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from sqat.convert.plan import ConversionPlan
from sqat.convert.verify import Verification
from sqat.durable import replace_file
from sqat.errors import ConfigError

INSTALL = 'pip install "sqat[report]"'


def require_packages() -> None:
    """Raise a ConfigError where matplotlib or jinja2 is missing."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"a report needs {error.name}: {INSTALL}") from error


def write_report(
    verification: Verification, path: str | Path, *, title: str, plan: ConversionPlan | None = None
) -> Path:
    """Write an HTML page (one file, readable offline); returns its path.

    Args:
        title: what was converted.
        plan: adds the table of costs.

    Raises:
        ConfigError: matplotlib or jinja2 is missing.
    """
    require_packages()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sqat.convert"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    picture = _heat_map(verification)
    page = environment.get_template("verification.html").render(
        title=title,
        verification=verification,
        costs=_costs(plan) if plan else [],
        picture=Markup(picture[picture.index("<svg") :]),
    )
    replace_file(Path(path), page)
    return Path(path)


def _costs(plan: ConversionPlan) -> list[list[str]]:
    return [
        [name.replace("_", " "), f"{old:,}", f"{new:,}", f"{new / old:.0%}"]
        for name, old in vars(plan.before).items()
        for new in [getattr(plan.after, name)]
    ]


def _heat_map(verification: Verification) -> str:
    """Layers up, positions to the right, as SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    grey = "#808080"  # legible on white and on black
    settings: dict[str, Any] = {
        "svg.hashsalt": "sqat",
        "svg.fonttype": "none",
        "axes.edgecolor": grey,
        "axes.labelcolor": grey,
        "xtick.color": grey,
        "ytick.color": grey,
        "text.color": grey,
    }
    layers = len(verification.heat_map)
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7.6, min(9.0, 1.6 + 0.3 * layers)), layout="constrained")
        axes = figure.add_subplot()
        extent = (0, verification.row_length, -0.5, layers - 0.5)
        image = axes.imshow(
            verification.heat_map, aspect="auto", origin="lower", extent=extent, cmap="viridis", vmax=1.0
        )
        axes.set_xlabel("position in the row (tokens)")
        axes.set_ylabel("after layer")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        figure.colorbar(image, label="cosine of hidden states")
        svg = io.StringIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    return svg.getvalue()
