"""The card's own results, to stand beside ours: five epochs of TinyStories (2.3 B tokens), one run each, padding
counted as targets, minutes on one L4.
"""

from __future__ import annotations

from typing import NamedTuple


class CardFigures(NamedTuple):
    loss: float
    accuracy: float
    minutes: int
    parameters_m: float


MICRO = {
    "gqa": CardFigures(1.139, 0.7066, 398, 8.67),
    "mqa": CardFigures(1.158, 0.7033, 399, 8.64),
    "sqa": CardFigures(1.159, 0.7032, 387, 8.57),
    "ssqa": CardFigures(1.142, 0.7063, 390, 8.62),
    "xsqa": CardFigures(1.169, 0.7012, 383, 8.52),
}
# (better, worse, about equal): loss GQA < sSQA < MQA ≈ SQA < xSQA; time xSQA < SQA < sSQA < GQA ≈ MQA.
LOSS_ORDER = (("gqa", "ssqa", False), ("ssqa", "mqa", False), ("mqa", "sqa", True), ("sqa", "xsqa", False))
TIME_ORDER = (("xsqa", "sqa", False), ("sqa", "ssqa", False), ("ssqa", "gqa", False), ("gqa", "mqa", True))
