"""Training: one step, the loop around it, evaluation, callbacks."""

from sqat.train.evaluate import Evaluation, evaluate
from sqat.train.loop import Trainer
from sqat.train.run import start_run

__all__ = ["Evaluation", "Trainer", "evaluate", "start_run"]
