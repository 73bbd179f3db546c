"""Training: the loop, its steps, evaluation, checkpoints, callbacks.

Names are imported on first use, so that code which only reads checkpoints does not import the trainer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqat.train.evaluate import Evaluation
    from sqat.train.run import start_run
    from sqat.train.trainer import Callback, Trainer

__all__ = ["Callback", "Evaluation", "Trainer", "start_run"]

_HOMES = {"Callback": "trainer", "Trainer": "trainer", "Evaluation": "evaluate", "start_run": "run"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
