"""RxNN's tokenizers: those of `transformers`, loaded by :class:`sqat.data.tokenizer.Tokenizer`."""

from pathlib import Path
from typing import Any

import tokenizers
from transformers import PreTrainedTokenizerFast

from sqat.data.tokenizer import TOKENIZER_FILE, Tokenizer
from sqat.errors import ConfigError
from sqat.hf.tokenizer import to_transformers
from sqat.hub import download


def load_tokenizer_from_hf_hub(repo_id: str, **kwargs: Any) -> PreTrainedTokenizerFast:
    """The tokenizer of a model on the Hub, or in a local folder.

    Args:
        repo_id: "owner/name", or the folder.
        kwargs: `revision`, `token` and so on, see :func:`sqat.hub.download`.

    Raises:
        CheckpointError: the repository or its tokenizer.json cannot be downloaded.
        DataError: it is damaged, or not a byte-level BPE that begins with [PAD], [UNK], [BOS], [EOS].
    """
    folder = Path(repo_id)
    return load_tokenizer_from_file(folder if folder.is_dir() else download(repo_id, [TOKENIZER_FILE], **kwargs))


def load_tokenizer_from_file(path: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer in a tokenizer.json, or in a folder that holds one.

    Raises:
        DataError: the file is missing, damaged or of another kind.
    """
    return to_transformers(Tokenizer.load(path))


def to_sqat(tokenizer: PreTrainedTokenizerFast | Tokenizer | None) -> Tokenizer:
    """The same tokenizer as this package's own class.

    Raises:
        ConfigError: not a fast tokenizer of `transformers`.
        DataError: see :func:`load_tokenizer_from_hf_hub`.
    """
    if isinstance(tokenizer, Tokenizer):
        return tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        right = "the model's, such as load_tokenizer_from_hf_hub returns"
        raise ConfigError(f"tokenizer is {tokenizer!r}, but must be {right}")
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()))  # a copy
