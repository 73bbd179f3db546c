"""The errors that sqat raises for what a user can put right.

Each message names the field or file, the value found, and what would be right.
"""


class SqatError(Exception):
    """Base of all errors below; the command line prints them without a traceback."""


class ConfigError(SqatError, ValueError):
    """A configuration field, command-line option or argument has an unusable value."""


class DataError(SqatError, ValueError):
    """A data source, tokenizer or token file cannot be read as what it is meant to be."""


class CheckpointError(SqatError, ValueError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class StorageError(SqatError, OSError):
    """A file or folder cannot be written: the disk is full, or nobody may write there."""


class TrainingError(SqatError, RuntimeError):
    """Training cannot usefully go on, such as when the loss is no longer a number."""


class ProcessLostError(TrainingError):
    """Another process of the same run is gone, or does not answer."""
