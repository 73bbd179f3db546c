"""Byte-level BPE: train, load, save, encode and decode, whole or as a stream."""

import codecs
import hashlib
import json
import logging
import re
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from sqat.checksums import check_files, renew_checksums
from sqat.durable import replace_file, writing
from sqat.errors import ConfigError, DataError
from sqat.folders import run_of
from sqat.untrusted import read_bytes, shown

PAD, UNK, BOS, EOS = 0, 1, 2, 3
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")

TOKENIZER_FILE = "tokenizer.json"
TRANSFORMERS_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (TOKENIZER_FILE, TRANSFORMERS_FILE)
NO_TOKEN = "\ufffd".encode()
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
MAX_VOCABULARY = 1 << 22  # ids are below it: a table is as long as the largest id
MAX_TOKENIZER_BYTES = 1 << 26

CHUNK = 1 << 18  # characters that are encoded at a time
LONGEST_RUN = 1000
_RUN = re.compile(rf"\S{{1,{LONGEST_RUN}}}|\s{{1,{LONGEST_RUN}}}")

logger = logging.getLogger(__name__)


class Tokenizer:
    """A byte-level BPE with the special tokens [PAD] 0, [UNK] 1, [BOS] 2 and [EOS] 3.

    `decode(encode(text))` is `text` for every tokenizer that :func:`train_tokenizer` makes. Those of the original
    system differ: they put a space before a text that does not begin with one (`decode` removes one, so a leading space
    of the text is lost), and they may lose bytes that never occurred in their training text.

    A special token written out in a text, such as "[EOS]", is encoded as ordinary characters: only `encode_documents`
    adds special tokens. `backend`, the wrapped `tokenizers.Tokenizer`, is set up to do the same, but a saved file
    cannot hold this setting: other libraries read "[EOS]" in a text as the special token.

    Raises:
        DataError: the backend is not a byte-level BPE or has other special tokens.
    """

    pad_id, unk_id, bos_id, eos_id = PAD, UNK, BOS, EOS

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        found = tuple(backend.id_to_token(token_id) for token_id in range(len(SPECIAL_TOKENS)))
        if found != SPECIAL_TOKENS:
            raise DataError(f"the ids 0 to 3 are {found}; they must be {SPECIAL_TOKENS}")
        self._prefix_space = bool(_byte_level_settings(backend)["add_prefix_space"])
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        backend.decoder = decoders.ByteLevel()  # the original's files have none
        self.backend = backend
        self._token_bytes = _token_bytes(backend)

    @property
    def vocab_size(self) -> int:
        """Number of entries, special tokens included; all ids are below it."""
        return len(self._token_bytes)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without special tokens. Raises DataError for half a surrogate pair in it."""
        return [*self._encode([text])[0]]

    def encode_documents(self, texts: list[str]) -> list[Sequence[int]]:
        """The ids of each text between [BOS] and [EOS]; texts are encoded in parallel. Raises DataError as `encode`."""
        return [_framed(ids) for ids in self._encode(texts)]

    def decode(self, ids: Iterable[int], *, continuation: bool = False) -> str:
        """The text of token ids. Special tokens are dropped; invalid UTF-8 and ids without a token become U+FFFD.

        Args:
            ids: token ids, such as `encode` returns.
            continuation: whether other ids come before these. A leading space then belongs to the text; otherwise the
                space that some tokenizers add is removed.

        Raises:
            DataError: an id is negative.
        """
        data = b"".join(self.token_bytes(token_id) for token_id in ids)
        if self._prefix_space and not continuation:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of a token: b"" for a special token, U+FFFD for an id without a token (a model's vocabulary may be
        larger than its tokenizer's). Raises DataError for a negative id."""
        if token_id < 0:
            raise DataError(f"token id {token_id} is negative")
        return self._token_bytes[token_id] if token_id < self.vocab_size else NO_TOKEN

    def fingerprint(self) -> str:
        """Hex digits that differ if two tokenizers may encode differently."""
        return hashlib.sha256(self.backend.to_str().encode()).hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Write tokenizer.json into a folder, with the settings that transformers' AutoTokenizer needs beside it.

        Each file is replaced atomically. If the folder has a list of checksums (:mod:`sqat.checksums`), it is updated.

        Returns:
            The path of tokenizer.json.

        Raises:
            StorageError: the files cannot be written.
        """
        folder = Path(folder).expanduser()
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), SPECIAL_TOKENS, strict=True))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **names,
            "add_prefix_space": self._prefix_space,
            "clean_up_tokenization_spaces": False,
        }
        replace_file(folder / TRANSFORMERS_FILE, json.dumps(settings, indent=2))
        replace_file(folder / TOKENIZER_FILE, self.backend.to_str(pretty=True))
        renew_checksums(folder, TOKENIZER_FILES)
        return folder / TOKENIZER_FILE

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a tokenizer.json, or the one in a folder, or in the newest checkpoint of a run's folder.

        Raises:
            DataError: it is missing, damaged, or not a byte-level BPE with these special tokens.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            of_run = sorted(run_of(path).glob(f"checkpoints/step-*/{TOKENIZER_FILE}"))
            path = of_run[-1] if of_run and not (path / TOKENIZER_FILE).is_file() else path / TOKENIZER_FILE
        check_files(path.parent, [path.name], error=DataError)
        try:
            return cls(_build_backend(read_bytes(path, MAX_TOKENIZER_BYTES)))
        except OSError as error:
            raise DataError(f"{path}: no readable tokenizer: {error}") from error
        except ValueError as error:  # a DataError is one, too
            raise DataError(f"{path}: {error}") from error

    def _encode(self, texts: list[str]) -> list[Sequence[int]]:
        try:
            if any(len(text) > CHUNK for text in texts):  # the library takes over 100 bytes a character
                return [self._encode_long(text) for text in texts]
            return [encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)]
        except TypeError:  # the library raises it for surrogates, too, without saying where
            for text in texts:
                if isinstance(text, str) and (surrogate := re.search("[\ud800-\udfff]", text)):
                    place = f"at character {surrogate.start()}"
                    raise DataError(f"the text holds half a surrogate pair {place}, which UTF-8 cannot hold") from None
            raise

    def _encode_long(self, text: str) -> "array[int]":
        """Encode in chunks that end before a single space, where no token crosses; only text without any for a whole
        chunk may get other tokens at its end.
        """
        ids, start = array("I"), 0
        while len(text) - start > CHUNK:
            spaces = [match.end() for match in re.finditer(r"\S(?= \S)", text[start + CHUNK // 2 : start + CHUNK])]
            end = start + CHUNK // 2 + spaces[-1] if spaces else start + CHUNK
            ids.extend(self._encode([text[start:end]])[0])
            start = end
        ids.extend(self._encode([text[start:]])[0])
        return ids


class TextStream:
    """Decodes one token at a time: everything that `push` returns, and `flush` at the end, make up `decode` of all ids.

    A character whose bytes are spread over several tokens is held back until it is complete.

    Args:
        tokenizer: decodes the ids.
        continuation: as for `Tokenizer.decode`: True if the stream continues a prompt.
    """

    def __init__(self, tokenizer: Tokenizer, *, continuation: bool = False) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._continuation = continuation

    def push(self, token_id: int) -> str:
        """The characters that this token completes; "" if there are none. Raises DataError for a negative id."""
        data = self._tokenizer.token_bytes(token_id)
        if data and not self._continuation:
            self._continuation = True
            if self._tokenizer._prefix_space:
                data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def flush(self) -> str:
        """U+FFFD if the last character is unfinished, else ""."""
        return self._utf8.decode(b"", final=True)


def require_room(tokenizer: Any, vocab_size: int) -> None:
    """Raise a ConfigError if a model of this `vocab_size` has fewer embeddings than the tokenizer has entries."""
    if tokenizer.vocab_size > vocab_size:
        entries = f"the tokenizer has {tokenizer.vocab_size} entries"
        raise ConfigError(f"{entries}, but the model's vocab_size is {vocab_size}")


def train_tokenizer(
    documents: Iterable[str], vocab_size: int = 5000, *, progress: Callable[[int, int, int | None], None] | None = None
) -> Tokenizer:
    """Learn a byte-level BPE from a stream of documents. The same documents give the same tokenizer.

    Every byte has a token, so any text can be encoded. Text that is too short or uniform for `vocab_size` entries gives
    fewer, with a warning.

    Args:
        documents: the text to learn from.
        vocab_size: entries, the 4 special tokens and 256 bytes included.
        progress: called with (documents read, 0, None) now and then.

    Raises:
        ConfigError: `vocab_size` is less than 260 or more than `MAX_VOCABULARY`.
        DataError: there are no documents.
    """
    if not SMALLEST_VOCABULARY <= vocab_size <= MAX_VOCABULARY:
        raise ConfigError(
            f"vocab_size is {vocab_size}; it must be at least {SMALLEST_VOCABULARY}: 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens; and at most {MAX_VOCABULARY:,}"
        )
    stream = iter(documents)
    first = next(stream, None)
    if first is None:
        raise DataError("there are no documents to train a tokenizer on")
    backend = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL_TOKENS[UNK]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", BOS), ("[EOS]", EOS)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    _interruptible(backend.train_from_iterator, _pieces(chain([first], stream), progress), trainer)
    tokenizer = Tokenizer(backend)
    if tokenizer.vocab_size < vocab_size:
        logger.warning("the text gave a vocabulary of %d entries, not %d", tokenizer.vocab_size, vocab_size)
    return tokenizer


def _framed(ids: Sequence[int]) -> Sequence[int]:
    if not isinstance(ids, array):
        return [BOS, *ids, EOS]
    ids.insert(0, BOS)  # of a long text: not copied
    ids.append(EOS)
    return ids


def _pieces(documents: Iterable[str], progress: Callable[[int, int, int | None], None] | None) -> Iterator[str]:
    """The documents, runs of `LONGEST_RUN` characters without or of white space cut: learning from words without end
    takes time that grows with the square of their length.
    """
    for number, text in enumerate(documents, 1):
        start = 0
        for match in _RUN.finditer(text):
            if match.end() - match.start() == LONGEST_RUN:
                yield text[start : match.end()]
                start = match.end()
        yield text[start:]
        if progress is not None and number % 1000 == 0:
            progress(number, 0, None)


def _interruptible(call: Callable[..., object], *arguments: object) -> None:
    """Call in a thread, so that Ctrl-C ends the wait: the library itself does not listen. The thread ends with the
    process.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            call(*arguments)
            outcome.set_result(None)
        except BaseException as error:  # noqa: BLE001 (raised by `result`)
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    outcome.result()


def _build_backend(serialized: bytes) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_buffer(serialized)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # the library raises nothing narrower, and its panics are no Exception
        raise DataError(f"damaged, or not a tokenizer: {str(error)[:500]}") from error


def _byte_level_settings(backend: tokenizers.Tokenizer) -> dict[str, Any]:
    state = json.loads(backend.to_str())
    splitter = state.get("pre_tokenizer") or {}
    for step in splitter.get("pretokenizers", [splitter]):
        if step.get("type") == "ByteLevel" and state["model"]["type"] == "BPE":
            return step
    raise DataError(f"a byte-level BPE is needed; this is {state['model']['type']} over {splitter.get('type')}")


def _token_bytes(backend: tokenizers.Tokenizer) -> list[bytes]:
    """The bytes of every token, by id. In the vocabulary each byte is written as one printable character."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of = {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    if (largest := max(vocabulary.values())) >= MAX_VOCABULARY:
        raise DataError(f"a token has the id {largest:,}, but all must be below {MAX_VOCABULARY:,}")
    table = [NO_TOKEN] * (largest + 1)
    for token, token_id in vocabulary.items():
        if token_id in added:
            table[token_id] = b"" if added[token_id].special else token.encode()
        elif token in SPECIAL_TOKENS:
            table[token_id] = b""
        else:
            try:
                table[token_id] = bytes(byte_of[character] for character in token)
            except KeyError as error:
                raise DataError(f"the token {shown(token)} holds {error}, which stands for no byte") from error
    return table
