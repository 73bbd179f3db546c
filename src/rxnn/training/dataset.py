"""RxNN's data set: documents as padded rows, tokenised once.

Shape letters: S max_seq_len.
"""

import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast

from rxnn.training.tokenizer import load_tokenizer_from_hf_hub, to_sqat
from sqat.data.text import open_source
from sqat.data.tokenizer import EOS, PAD, Tokenizer
from sqat.data.tokens import TokenFile, cached_tokens
from sqat.errors import ConfigError, DataError

logger = logging.getLogger(__name__)


class AutoregressiveLMDataset(Dataset[dict[str, Tensor]]):
    """One document a row: "[BOS] text [EOS]", truncated to S tokens or padded to S with [PAD]. Tokens are cached, see
    :func:`sqat.data.tokens.cached_tokens`.

    Args:
        texts: a list of strings, a data set of the `datasets` library, or a :class:`sqat.data.tokens.TokenFile`.
        tokenizer: the model's, from `transformers` or from this package; a token file needs none.
        max_seq_len: S, at least 2.
        hf_field: the column with the text, in a data set of `datasets`.

    Raises:
        ConfigError: an unusable argument.
        DataError: no texts, something other than strings, or no such column.
    """

    def __init__(
        self,
        texts: Any,
        tokenizer: PreTrainedTokenizerFast | Tokenizer | None = None,
        max_seq_len: int = 1024,
        hf_field: str = "text",
    ) -> None:
        if max_seq_len < 2:
            raise ConfigError(f"max_seq_len is {max_seq_len}, but must be at least 2 (one token and the one after it)")
        self.max_seq_len = max_seq_len
        if isinstance(texts, str):
            raise ConfigError("texts is one string, but must be a list of them")
        columns = getattr(texts, "column_names", None)
        if columns is not None and hf_field not in columns:
            raise DataError(f"there is no column {hf_field!r}; the columns are: {', '.join(columns)}")
        if not isinstance(texts, TokenFile):
            texts = cached_tokens(_Texts(texts if columns is None else texts[hf_field]), to_sqat(tokenizer))
        self.tokens: TokenFile = texts

    @classmethod
    def from_hf_hub(
        cls,
        dataset_id: str,
        subset: str | None = None,
        split: str = "train",
        target_field: str = "text",
        tokenizer: PreTrainedTokenizerFast | Tokenizer | None = None,
        max_seq_len: int = 1024,
        tokenizer_hub_id: str | None = None,
    ) -> Self:
        """A data set of the Hub, or a local folder or file.

        Args:
            dataset_id: see :func:`sqat.data.text.open_source`; a path needs neither network nor `datasets`.
            subset: the configuration on the Hub; for a local folder, its subfolder of that name, if any.
            split: "train", "validation", …
            target_field: the column with the text.
            tokenizer: the model's; if None, it comes from `tokenizer_hub_id`.
            max_seq_len: S, at least 2.

        Raises:
            ConfigError: no tokenizer, or an unusable argument.
            DataError, CheckpointError: the data set or the tokenizer cannot be loaded.
        """
        if tokenizer is None and tokenizer_hub_id is not None:
            tokenizer = load_tokenizer_from_hf_hub(tokenizer_hub_id)
        converted = to_sqat(tokenizer)
        source = open_source(_source_name(dataset_id, subset), split, field=target_field)
        return cls(cached_tokens(source, converted), max_seq_len=max_seq_len)

    def __len__(self) -> int:
        """The number of documents."""
        return len(self.tokens)

    def __getitem__(self, idx: int) -> dict[str, Tensor]:
        """`input_ids`, `attention_mask` (1 at tokens, 0 at padding) and `targets` (a copy of `input_ids`), each (S,),
        int64.

        As in RxNN, a truncated document still ends in [EOS]. Raises IndexError.
        """
        document = self.tokens.document(idx + len(self) if idx < 0 else idx)
        kept = document[: self.max_seq_len]
        row = np.full(self.max_seq_len, PAD, dtype=np.int64)
        row[: len(kept)] = kept
        if len(kept) < len(document):
            row[-1] = EOS
        input_ids = torch.from_numpy(row)
        attention_mask = (torch.arange(self.max_seq_len) < len(kept)).long()
        return {"input_ids": input_ids, "attention_mask": attention_mask, "targets": input_ids.clone()}


def _source_name(dataset_id: str, subset: str | None) -> str:
    """The name by which :func:`sqat.data.text.open_source` knows a data set and its subset."""
    if subset is None:
        return dataset_id
    folder = Path(dataset_id).expanduser()
    if not folder.exists():
        return f"{dataset_id}:{subset}"
    if (folder / subset).is_dir():
        return str(folder / subset)
    logger.warning("%s is local and has no folder %r: the whole of it is read", dataset_id, subset)
    return dataset_id


class _Texts:
    """Strings, such as a column of a data set of `datasets`, as a source of documents."""

    name = "texts"

    def __init__(self, texts: Iterable[str]) -> None:
        self.texts = texts

    def documents(self) -> Iterator[str]:
        """The strings. Raises DataError if one is none."""
        for i, text in enumerate(self.texts):
            if not isinstance(text, str):
                raise DataError(f"text {i} is {text!r}, but must be a string")
            yield text

    def fingerprint(self) -> str:
        """Hex digits of all of them."""
        digest = hashlib.sha256()
        for text in self.documents():
            digest.update(f"{len(text)} {text}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()
