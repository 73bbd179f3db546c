"""Errors that a user can fix.

Every message names the field or file, the value found, and what would be right.
"""


class SqatError(Exception):
    """The base class of all errors of this package; the command line prints them as one line, without a traceback."""


class ConfigError(SqatError, ValueError):
    """A configuration field, command-line option or argument has an unusable value."""


class DataError(SqatError, ValueError):
    """A data source, tokenizer or token file is missing, damaged or of the wrong kind."""


class CheckpointError(SqatError, ValueError):
    """A checkpoint is missing, damaged, or does not fit the model."""


class StorageError(SqatError, OSError):
    """A file or folder cannot be written: the disk is full, or permission is missing."""


class TrainingError(SqatError, RuntimeError):
    """Training cannot continue usefully, for example because the loss is NaN."""


class ProcessLostError(TrainingError):
    """Another rank of the same run has ended, or does not respond."""
