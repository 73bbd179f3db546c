"""Model cards: the README.md of a checkpoint. They say what is known, and nothing else: no figure is made up, and what
nobody has recorded or named is left out.
"""

from sqat.model_card.card import CARD_FILE, model_card, stock_card
from sqat.model_card.known import Known, Metric, with_known
from sqat.model_card.origin import Origin, read_origin

__all__ = ["CARD_FILE", "Known", "Metric", "Origin", "model_card", "read_origin", "stock_card", "with_known"]
