"""RxNN's tokenizers: those of `transformers`, made and loaded through :class:`sqat.data.tokenizer.Tokenizer`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import tokenizers
from transformers import PreTrainedTokenizerFast

from sqat.data.text import open_source
from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer, train_tokenizer
from sqat.errors import ConfigError, DataError
from sqat.hf.tokenizer import to_transformers
from sqat.hub import download, upload

MODEL_TYPE = "byte-level-bpe"


def load_tokenizer_from_hf_hub(repo_id: str, **kwargs: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a model on the Hub, or in a folder.

    Args:
        kwargs: `revision`, `token` and others, see :func:`sqat.hub.download`.

    Raises:
        CheckpointError: the repository or its tokenizer.json cannot be had.
        DataError: it is damaged, or no byte-level BPE with [PAD], [UNK], [BOS], [EOS] as its first entries.
    """
    return TokenizerTrainer.from_pretrained(repo_id, **kwargs).get_hf_tokenizer()


def load_tokenizer_from_file(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a tokenizer.json, or in the folder of one.

    Raises:
        DataError: it is missing, damaged or unfit.
    """
    return to_transformers(Tokenizer.load(path))


def to_sqat(tokenizer: PreTrainedTokenizerFast | Tokenizer) -> Tokenizer:
    """The same tokenizer as this package's own class.

    Raises:
        ConfigError: something else than a fast tokenizer of `transformers`.
        DataError: as :func:`load_tokenizer_from_hf_hub`.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ConfigError(f"tokenizer is {tokenizer!r}, but must be what load_tokenizer_from_hf_hub returns")
    return Tokenizer(_copy(backend))


def _copy(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(backend.to_str())


class TokenizerTrainer:
    """Trains a byte-level BPE with [PAD] 0, [UNK] 1, [BOS] 2, [EOS] 3.

    Args:
        vocab_size: entries, special tokens included; at least 260.
        model_type: "byte-level-bpe", the only one.

    Raises:
        ConfigError: another `model_type`.
    """

    def __init__(self, vocab_size: int = 5000, model_type: str = MODEL_TYPE) -> None:
        if model_type != MODEL_TYPE:
            raise ConfigError(f"model_type is {model_type!r}, but must be {MODEL_TYPE!r}")
        self.vocab_size = vocab_size
        self._tokenizer: Tokenizer | None = None

    def train(self, files: str | Path | Sequence[str | Path]) -> None:
        """Learn from the documents of .txt, .jsonl or .parquet files (also .gz, .zst).

        Raises:
            ConfigError: too small a `vocab_size`.
            DataError: a file that cannot be read, or no documents.
        """
        paths = [files] if isinstance(files, (str, Path)) else files
        self._tokenizer = train_tokenizer(_documents(paths), self.vocab_size)

    def load(self, path: str | Path) -> None:
        """Take over a tokenizer.json, or the one in a folder. Raises DataError for one missing, damaged or unfit."""
        self._tokenizer = Tokenizer.load(path)

    def save(self, output_dir: str | Path) -> None:
        """Write tokenizer.json and what `AutoTokenizer` needs. Raises ConfigError where there is none yet."""
        self._trained().save(output_dir)

    def push_to_hub(
        self,
        repo_id: str,
        create: bool = True,
        private: bool = False,
        api_token: str | None = None,
        commit_message: str = "Tokenizer",
    ) -> str:
        """Commit the files of :meth:`save` to a model repository, made if need be; returns the commit's address.

        Args:
            create: taken for RxNN's sake, without effect.

        Raises:
            ConfigError: nothing trained or loaded yet.
            CheckpointError: the Hub refused, or could not be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return upload(folder, repo_id, commit_message, private=private, token=api_token)

    def get_hf_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, for use. Raises ConfigError where there is none yet."""
        return to_transformers(self._trained())

    @staticmethod
    def hf_tokenizer_from_file(path: str | Path) -> PreTrainedTokenizerFast:
        """See :func:`load_tokenizer_from_file`."""
        return load_tokenizer_from_file(path)

    @classmethod
    def from_pretrained(cls, repo_id: str, **kwargs: Any) -> Self:
        """A trainer that holds a tokenizer of the Hub; see :func:`load_tokenizer_from_hf_hub`."""
        folder = Path(repo_id)
        trainer = cls()
        trainer.load(folder if folder.is_dir() else download(repo_id, [TOKENIZER_FILE], **kwargs))
        trainer.vocab_size = trainer._trained().vocab_size
        return trainer

    def _trained(self) -> Tokenizer:
        if self._tokenizer is None:
            raise ConfigError("there is no tokenizer yet: call train(files) or load(path) first")
        return self._tokenizer


def _documents(paths: Sequence[str | Path]) -> Iterator[str]:
    for path in paths:
        if not Path(path).exists():
            raise DataError(f"{path}: no such file")
        yield from open_source(str(path)).documents()
