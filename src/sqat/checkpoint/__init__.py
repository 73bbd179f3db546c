"""Checkpoints: written whole or not at all, checked when read, in this package's layout or RxNN's."""

from sqat.checkpoint.model_files import load_model, read_config, save_model, write_model
from sqat.store import write_folder

__all__ = ["load_model", "read_config", "save_model", "write_folder", "write_model"]
