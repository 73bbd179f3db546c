"""What the authors of SQA published of their own models, to stand beside our results."""

from collections.abc import Mapping
from typing import NamedTuple

from sqat.compare.plan import ComparePlan


class Result(NamedTuple):
    """One published run. Loss and accuracy count padding as targets."""

    loss: float
    accuracy: float
    minutes: int
    parameters_m: float | None = None  # millions, where they are told


class Published(NamedTuple):
    """What was published of a family of models."""

    how: str  # the results were made
    results: Mapping[str, Result]


_FAMILIES = {
    "micro": Published(
        "by the original's model card: five epochs of the whole TinyStories (2.3 B tokens), one run each, minutes on "
        "one L4",
        {
            "gqa": Result(1.139, 0.7066, 398, 8.67),
            "mqa": Result(1.158, 0.7033, 399, 8.64),
            "sqa": Result(1.159, 0.7032, 387, 8.57),
            "ssqa": Result(1.142, 0.7063, 390, 8.62),
            "xsqa": Result(1.169, 0.7012, 383, 8.52),
        },
    ),
    "mini": Published(
        "in arXiv 2510.01817: one epoch of half of the English Wikipedia (1.5 B tokens), one run each, minutes on one "
        "L40S",
        {
            "mha": Result(1.1976, 0.7735, 269),
            "gqa": Result(1.2177, 0.7712, 258),
            "mqa": Result(1.2497, 0.7664, 261),
            "sqa": Result(1.2272, 0.7697, 241),
            "ssqa": Result(1.2201, 0.7705, 243),
            "xsqa": Result(1.2428, 0.7674, 235),
            "xsmqa": Result(1.2815, 0.7622, 235),
        },
    ),
}


def published(plan: ComparePlan) -> Published | None:
    """What was published of a plan's variants; `None` for models of other sizes. Variants with fields of their own are
    left out.
    """
    if plan.model or plan.family not in _FAMILIES:
        return None
    how, results = _FAMILIES[plan.family]
    return Published(how, {name: result for name, result in results.items() if name in plan.variants})
