"""Sparse Query Attention transformers: models, training, generation and comparison.

The names below are imported on first use, so that `import sqat` is quick and needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sqat.version import __version__

_HOMES = {
    "ModelConfig": "sqat.config",
    "preset": "sqat.variants",
    "head_counts": "sqat.variants",
    "Attention": "sqat.model",
    "AttentionMask": "sqat.model",
    "Decoder": "sqat.model",
    "DecoderOutput": "sqat.model",
    "KVCache": "sqat.model",
    "load_model": "sqat.load",
    "save_model": "sqat.checkpoint",
    "Tokenizer": "sqat.data.tokenizer",
    "SamplingConfig": "sqat.generate",
    "generate": "sqat",
    "RunConfig": "sqat.run_config",
    "DataConfig": "sqat.run_config",
    "TrainConfig": "sqat.run_config",
    "Trainer": "sqat.train",
    "start_run": "sqat.train",
    "Evaluation": "sqat.train.evaluate",
    "evaluate": "sqat.train.evaluate",
    "push": "sqat.sharing",
    "pull": "sqat.sharing",
    "SqatError": "sqat.errors",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from sqat.checkpoint import save_model as save_model
    from sqat.config import ModelConfig as ModelConfig
    from sqat.data.tokenizer import Tokenizer as Tokenizer
    from sqat.errors import SqatError as SqatError
    from sqat.generate import SamplingConfig as SamplingConfig
    from sqat.generate import generate as generate
    from sqat.load import load_model as load_model
    from sqat.model import Attention as Attention
    from sqat.model import AttentionMask as AttentionMask
    from sqat.model import Decoder as Decoder
    from sqat.model import DecoderOutput as DecoderOutput
    from sqat.model import KVCache as KVCache
    from sqat.run_config import DataConfig as DataConfig
    from sqat.run_config import RunConfig as RunConfig
    from sqat.run_config import TrainConfig as TrainConfig
    from sqat.sharing import pull as pull
    from sqat.sharing import push as push
    from sqat.train import Trainer as Trainer
    from sqat.train import start_run as start_run
    from sqat.train.evaluate import Evaluation as Evaluation
    from sqat.train.evaluate import evaluate as evaluate
    from sqat.variants import head_counts as head_counts
    from sqat.variants import preset as preset


def __getattr__(name: str) -> Any:
    if name == "generate":  # a package that can be called: see its `__init__`
        return importlib.import_module("sqat.generate")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sqat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
