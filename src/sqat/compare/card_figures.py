"""The card's and the paper's own results, to stand beside ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqat.compare.plan import ComparePlan


class Figures(NamedTuple):
    """Of one run, padding counted as targets."""

    loss: float
    accuracy: float
    minutes: int
    parameters_m: float | None = None  # millions, where they are told


class Claim(NamedTuple):
    """That a figure of one variant is below, or about equal to, that of another."""

    lower: str
    higher: str
    equal: bool = False


class Published(NamedTuple):
    """What was published of a family."""

    whose: str
    how: str  # they were made
    figures: Mapping[str, Figures]
    loss_order: tuple[Claim, ...]
    time_order: tuple[Claim, ...]


_CARD = Published(
    "the card's",
    "five epochs of the whole TinyStories (2.3 B tokens), one run each, minutes on one L4",
    {
        "gqa": Figures(1.139, 0.7066, 398, 8.67),
        "mqa": Figures(1.158, 0.7033, 399, 8.64),
        "sqa": Figures(1.159, 0.7032, 387, 8.57),
        "ssqa": Figures(1.142, 0.7063, 390, 8.62),
        "xsqa": Figures(1.169, 0.7012, 383, 8.52),
    },
    (Claim("gqa", "ssqa"), Claim("ssqa", "mqa"), Claim("mqa", "sqa", equal=True), Claim("sqa", "xsqa")),
    (Claim("xsqa", "sqa"), Claim("sqa", "ssqa"), Claim("ssqa", "gqa"), Claim("gqa", "mqa", equal=True)),
)
_PAPER = Published(
    "the paper's",
    "one epoch of half of the English Wikipedia (1.5 B tokens), one run each, minutes on one L40S (arXiv 2510.01817)",
    {
        "mha": Figures(1.1976, 0.7735, 269),
        "gqa": Figures(1.2177, 0.7712, 258),
        "mqa": Figures(1.2497, 0.7664, 261),
        "sqa": Figures(1.2272, 0.7697, 241),
        "ssqa": Figures(1.2201, 0.7705, 243),
        "xsqa": Figures(1.2428, 0.7674, 235),
        "xsmqa": Figures(1.2815, 0.7622, 235),
    },
    (
        Claim("mha", "gqa"),
        Claim("gqa", "ssqa"),
        Claim("ssqa", "sqa"),
        Claim("sqa", "xsqa"),
        Claim("xsqa", "mqa"),
        Claim("mqa", "xsmqa"),
    ),
    (
        Claim("xsmqa", "xsqa", equal=True),
        Claim("xsqa", "sqa"),
        Claim("sqa", "ssqa"),
        Claim("ssqa", "gqa"),
        Claim("gqa", "mqa"),
        Claim("mqa", "mha"),
    ),
)
_FAMILIES = {"micro": _CARD, "mini": _PAPER}


def published(plan: ComparePlan) -> Published | None:
    """What was published of a plan's variants; nothing of families of other sizes, or of variants with fields of their
    own.
    """
    if plan.model or plan.family not in _FAMILIES:
        return None
    found, own = _FAMILIES[plan.family], {entry for entry in plan.variants if isinstance(entry, str)}

    def told(claims: Iterable[Claim]) -> tuple[Claim, ...]:
        return tuple(claim for claim in claims if {claim.lower, claim.higher} <= own)

    return found._replace(
        figures={name: figures for name, figures in found.figures.items() if name in own},
        loss_order=told(found.loss_order),
        time_order=told(found.time_order),
    )
