"""From a data configuration to a tokenizer and token files: tokenised once, kept in the cache."""

import hashlib
import logging
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sqat.checkpoint import write_folder
from sqat.data.text import NoSplitError, Source, open_source, split_within
from sqat.data.tokenizer import Tokenizer, require_room, train_tokenizer
from sqat.data.tokens import Progress, TokenFile, cached, cached_tokens
from sqat.errors import DataError
from sqat.folders import default_cache
from sqat.run_config import DataConfig

logger = logging.getLogger(__name__)

HELD_OUT_EVERY = 100  # documents; where a source has no validation split
TOKENIZER_DOCUMENTS = 200_000  # more change a small vocabulary very little


class PreparedData(NamedTuple):
    """A run's tokenizer and token files."""

    tokenizer: Tokenizer
    train: TokenFile
    validation: TokenFile | None

    def fingerprints(self) -> dict[str, str | None]:
        """Hex digits by part, which differ where a run's tokens do."""
        validation = None if self.validation is None else self.validation.digest
        return {"tokenizer": self.tokenizer.fingerprint(), "train": self.train.digest, "validation": validation}


class HeldOut:
    """One part of a source without splits: every hundredth document is held out for validation, the others train."""

    def __init__(self, source: Source, *, validation: bool) -> None:
        self.source = source
        self.validation = validation
        self.name = f"{source.name} ({'held-out documents' if validation else 'without held-out documents'})"

    def documents(self) -> Iterator[str]:
        """The documents of this part, in the source's order."""
        for i, document in enumerate(self.source.documents()):
            if (i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1) == self.validation:
                yield document

    def fingerprint(self) -> str:
        """What the part's cached tokens are found by."""
        return f"{self.source.fingerprint()}/every-{HELD_OUT_EVERY}/{'validation' if self.validation else 'train'}"


def prepare_data(
    config: DataConfig, vocab_size: int, *, tokenizer: Tokenizer | None = None, progress: Progress | None = None
) -> PreparedData:
    """Open the sources, train or load the tokenizer, and build token files, each once.

    Args:
        vocab_size: the model's; a tokenizer trained here has at most that many entries.
        tokenizer: the one to use, instead of the configured one.
        progress: called with (documents, tokens, documents in all or None) while a token file is built.

    Raises:
        ConfigError: the tokenizer has more entries than the model.
        DataError: a source that cannot be read, or is empty.
    """
    train, validation = open_sources(config)
    if tokenizer is None and config.tokenizer is not None:
        tokenizer = Tokenizer.load(config.tokenizer)
    tokenizer = tokenizer or cached_tokenizer(train, vocab_size, config.cache_dir, progress=progress)
    require_room(tokenizer, vocab_size)
    train_tokens = cached_tokens(train, tokenizer, config.cache_dir, progress=progress)
    if isinstance(validation, HeldOut) and next(validation.documents(), None) is None:
        text = "%s has fewer than %d documents: nothing is held out, and nothing is evaluated"
        logger.warning(text, train.name, HELD_OUT_EVERY)
        return PreparedData(tokenizer, train_tokens, None)
    validation_tokens = cached_tokens(validation, tokenizer, config.cache_dir, progress=progress)
    return PreparedData(tokenizer, train_tokens, validation_tokens)


def open_sources(config: DataConfig) -> tuple[Source, Source]:
    """Training and validation sources; the second is held out from the first if there is no other."""

    def opened(spec: str, split: str, limit: int | None) -> Source:
        return open_source(spec, split, field=config.field, limit=limit, encoding_errors=config.encoding_errors)

    train = opened(config.source, "train", config.limit)
    if config.validation is not None:
        split = split_within(config.validation, "validation")
        return train, opened(config.validation, split, config.validation_limit)
    try:
        return train, opened(config.source, "validation", config.validation_limit)
    except NoSplitError as error:
        logger.info("holding out one document in %d for validation: %s", HELD_OUT_EVERY, error)
        return HeldOut(train, validation=False), HeldOut(train, validation=True)


def cached_tokenizer(
    source: Source, vocab_size: int, cache_dir: str | Path | None = None, *, progress: Progress | None = None
) -> Tokenizer:
    """A byte-level BPE tokenizer trained on the source, or the one trained on the same earlier."""
    key = hashlib.sha256(f"bpe/{vocab_size}/{TOKENIZER_DOCUMENTS}/{source.fingerprint()}".encode()).hexdigest()[:24]
    folder = Path(cache_dir or default_cache()).expanduser() / "tokenizers" / key

    def learn() -> Tokenizer:
        if next(source.documents(), None) is None:
            raise DataError(f"{source.name} has no documents to train a tokenizer on")
        tokenizer = train_tokenizer(islice(source.documents(), TOKENIZER_DOCUMENTS), vocab_size, progress=progress)
        with write_folder(folder) as temporary:
            tokenizer.save(temporary)
        return tokenizer

    return cached(folder, Tokenizer.load, learn)
