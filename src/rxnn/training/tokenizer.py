"""RxNN's tokenizers: those of `transformers`, trained and loaded by :class:`sqat.data.tokenizer.Tokenizer`."""

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
    """The tokenizer of a model on the Hub, or in a local folder.

    Args:
        repo_id: "owner/name", or the folder.
        kwargs: `revision`, `token` and so on, see :func:`sqat.hub.download`.

    Raises:
        CheckpointError: the repository or its tokenizer.json cannot be downloaded.
        DataError: it is damaged, or not a byte-level BPE that begins with [PAD], [UNK], [BOS], [EOS].
    """
    return TokenizerTrainer.from_pretrained(repo_id, **kwargs).get_hf_tokenizer()


def load_tokenizer_from_file(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a tokenizer.json, or in a folder that holds one.

    Raises:
        DataError: the file is missing, damaged or of another kind.
    """
    return to_transformers(Tokenizer.load(path))


def to_sqat(tokenizer: PreTrainedTokenizerFast | Tokenizer) -> Tokenizer:
    """The same tokenizer as this package's own class.

    Raises:
        ConfigError: not a fast tokenizer of `transformers`.
        DataError: see :func:`load_tokenizer_from_hf_hub`.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise ConfigError(f"tokenizer is {tokenizer!r}, but must be what load_tokenizer_from_hf_hub returns")
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()))  # a copy


class TokenizerTrainer:
    """Trains a byte-level BPE with the special tokens [PAD] 0, [UNK] 1, [BOS] 2, [EOS] 3.

    Args:
        vocab_size: entries, including special tokens; at least 260.
        model_type: only "byte-level-bpe".

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
            ConfigError: `vocab_size` is too small.
            DataError: a file cannot be read, or there are no documents.
        """
        paths = [files] if isinstance(files, (str, Path)) else files
        self._tokenizer = train_tokenizer(_documents(paths), self.vocab_size)

    def load(self, path: str | Path) -> None:
        """Load a tokenizer.json, or the one in a folder. Raises DataError if it is missing, damaged or unsuitable."""
        self._tokenizer = Tokenizer.load(path)

    def save(self, output_dir: str | Path) -> None:
        """Write tokenizer.json and what `AutoTokenizer` needs. Raises ConfigError if nothing is trained or loaded."""
        self._trained().save(output_dir)

    def push_to_hub(
        self,
        repo_id: str,
        create: bool = True,
        private: bool = False,
        api_token: str | None = None,
        commit_message: str = "Tokenizer",
    ) -> str:
        """Commit the files of :meth:`save` to a model repository, created if needed; returns the commit's URL.

        Args:
            create: accepted as in RxNN, without effect.

        Raises:
            ConfigError: nothing is trained or loaded yet.
            CheckpointError: the Hub refused, or could not be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            return upload(folder, repo_id, commit_message, private=private, token=api_token)

    def get_hf_tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer for `transformers`. Raises ConfigError if nothing is trained or loaded."""
        return to_transformers(self._trained())

    hf_tokenizer_from_file = staticmethod(load_tokenizer_from_file)

    @classmethod
    def from_pretrained(cls, repo_id: str, **kwargs: Any) -> Self:
        """A trainer that holds a tokenizer of the Hub, see :func:`load_tokenizer_from_hf_hub`."""
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
