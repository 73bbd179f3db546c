"""Local files as documents: .parquet, .jsonl and .txt, also compressed, one by one or as a folder in the Hub's layout.

Everything streams: a chunk of a file, or a thousand rows, is in memory at a time, and the document being read, which
may have `MAX_DOCUMENT_BYTES`: what a few compressed kilobytes unpack to has no other end.
"""

import codecs
import io
import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from sqat.data.parquet_pages import rows_at_a_time
from sqat.data.text_columns import check_text_column, column_texts, decode_utf8, invalid_utf8
from sqat.errors import DataError
from sqat.untrusted import named, shown

FORMATS = (".parquet", ".jsonl", ".txt")
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
END_OF_TEXT = "<|endoftext|>"

CHUNK_BYTES = 1 << 20
ROWS_AT_A_TIME = 1024
MAX_DOCUMENT_BYTES = 1 << 26
MAX_UNPACKING = 256  # times a compressed Parquet file's size: its pages are compressed themselves

SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-\d{5}")
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class FileReader:
    """The documents of some files, in their order. `field` is the column or key of .parquet and .jsonl files."""

    name: str
    paths: tuple[Path, ...]
    field: str
    encoding_errors: str

    def read(self) -> Iterator[str]:
        for path in self.paths:
            try:
                match text_format(path):
                    case ".parquet":
                        yield from _read_parquet(path, self.field, self.encoding_errors)
                    case ".jsonl":
                        yield from _read_jsonl(path, self.field, self.encoding_errors)
                    case _:
                        yield from _read_text(path, self.encoding_errors)
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last of a Parquet column's name
                raise DataError(f"{path}: cannot be read: {error}") from error

    def identity(self) -> list[object]:
        return ["files", [_file_identity(path) for path in self.paths], self.field, self.encoding_errors]


def _file_identity(path: Path) -> list[object]:
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def text_format(path: Path) -> str | None:
    """What a file's name says it is: one of FORMATS, whether compressed or not, or None."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def find_shards(folder: Path, split: str) -> tuple[Path, ...]:
    """The files of one split, by name, as the Hub lays them out: in `folder/data` if that holds any, else in `folder`.

    A file belongs to the split it is named for (train-00000-of-00001.parquet, validation.jsonl, val_2.txt.gz). Where
    no file is named for a split, all are "train". Where a split comes in several formats, Parquet is read before JSON
    lines before text, and only one of them, as they usually hold the same documents.

    Raises DataError for a folder without text files, and for a missing split, naming those found.
    """
    found: list[Path] = []
    for place in (folder / "data", folder):
        if place.is_dir() and not found:
            found = sorted(path for path in place.iterdir() if path.is_file() and text_format(path))
    if not found:
        raise DataError(f"{folder}: no {', '.join(FORMATS)} files in it or in its folder 'data'")
    splits: dict[str, list[Path]] = {}
    for path in found:
        if (named_for := _split_of(path)) is not None:
            splits.setdefault(named_for, []).append(path)
    splits = splits or {"train": found}
    shards = splits.get(SPLIT_WORDS.get(split, split))
    if shards is None:
        raise DataError(f"{folder}: no split {split!r}; it has: {', '.join(sorted(splits))}")
    best = next(name for name in FORMATS if any(text_format(path) == name for path in shards))
    return tuple(path for path in shards if text_format(path) == best)


def _split_of(path: Path) -> str | None:
    stem = path.name.partition(".")[0].lower()
    if shard := SHARD.fullmatch(stem):
        return SPLIT_WORDS.get(shard["split"], shard["split"])
    word = re.match(r"[a-z]*", stem)
    return SPLIT_WORDS.get(word[0]) if word else None


def _read_parquet(path: Path, field: str, encoding_errors: str) -> Iterator[str]:
    with ExitStack() as stack:
        stream: BinaryIO
        if path.suffix.lower() in COMPRESSIONS:  # Parquet is read from its end, a compressed stream only forwards
            stream = stack.enter_context(tempfile.TemporaryFile())
            _unpack(path, stack.enter_context(_open_bytes(path)), stream)
        else:
            stream = stack.enter_context(open(path, "rb"))
        file = stack.enter_context(pq.ParquetFile(stream))
        check_text_column(file.schema_arrow, field, str(path))
        try:
            rows = rows_at_a_time(stream, field, ROWS_AT_A_TIME)
        except ValueError as error:
            raise DataError(f"{path}: the field {shown(field)} cannot be read: {error}") from error
        row = 0
        for batch in file.iter_batches(rows, columns=[field]):
            yield from column_texts(batch.column(0), encoding_errors, str(path), row)
            row += len(batch)


def _unpack(path: Path, packed: BinaryIO, unpacked: BinaryIO) -> None:
    most = MAX_UNPACKING * path.stat().st_size + CHUNK_BYTES
    while chunk := packed.read(CHUNK_BYTES):
        if unpacked.tell() + len(chunk) > most:
            raise DataError(
                f"{path}: it unpacks to more than {MAX_UNPACKING} times its size, which no Parquet file does"
            )
        unpacked.write(chunk)


def _read_jsonl(path: Path, field: str, encoding_errors: str) -> Iterator[str]:
    with _open_bytes(path) as stream:
        lines = iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                place = f"{path}, line {number}"
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise DataError(f"{place}: longer than {MAX_DOCUMENT_BYTES:,} bytes, which no line may be")
                text = decode_utf8(line, encoding_errors, place).removeprefix("\ufeff")
                yield _json_field(text, field, encoding_errors, place)


def _json_field(line: str, field: str, encoding_errors: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # also numbers of too many digits, and what is nested too deep
        raise DataError(f"{place}: not JSON: {error}") from error
    if not isinstance(record, dict):
        raise DataError(f"{place}: a JSON object is needed, found {type(record).__name__}")
    if field not in record:
        raise DataError(f"{place}: there is no field {shown(field)}; the fields are: {named(record)}")
    text = record[field]
    if not isinstance(text, str):
        raise DataError(f"{place}: the field {shown(field)} holds {type(text).__name__}, not a string")
    repaired = re.sub("[\ud800-\udfff]", "\ufffd", text)
    if repaired != text and encoding_errors == "strict":
        raise DataError(
            f'{place}: half a surrogate pair, which no UTF-8 can hold; encoding_errors="replace" reads on, '
            "with U+FFFD in its place"
        )
    return repaired


def _read_text(path: Path, encoding_errors: str) -> Iterator[str]:
    """Documents between <|endoftext|>, or between blank lines where that does not occur. Line ends are read as "\n",
    and those around a document belong to the separator."""
    separate = _between_markers if _holds_marker(path) else _between_blank_lines
    for document in separate(_decoded_chunks(path, encoding_errors), path):
        yield document.strip("\n")


def _holds_marker(path: Path) -> bool:
    marker = END_OF_TEXT.encode()
    window = b""
    with _open_bytes(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            window = window[1 - len(marker) :] + chunk
            if marker in window:
                return True
    return False


def _between_markers(chunks: Iterator[str], path: Path) -> Iterator[str]:
    return _pieces(chunks, END_OF_TEXT, path)


def _between_blank_lines(chunks: Iterator[str], path: Path) -> Iterator[str]:
    document: list[str] = []
    length = 0
    for line in _pieces(chunks, "\n", path):  # splitlines() also splits at characters of the text
        if line and not line.isspace():
            document.append(line)
            length += len(line) + 1
            _require_length(length, path)
        else:
            yield "\n".join(document)
            document, length = [], 0
    yield "\n".join(document)


def _pieces(chunks: Iterator[str], separator: str, path: Path) -> Iterator[str]:
    """What lies between separators, one of which the end of a chunk may cut."""
    held: list[str] = []  # of the piece that is being read, all but the edge
    edge = ""
    for chunk in chunks:
        *pieces, rest = (edge + chunk).split(separator)
        if pieces:
            yield "".join(held) + pieces[0]
            yield from pieces[1:]
            held = []
        cut = max(0, len(rest) - len(separator) + 1)
        held.append(rest[:cut])
        edge = rest[cut:]
        _require_length(sum(map(len, held)), path)
    yield "".join(held) + edge


def _require_length(characters: int, path: Path) -> None:
    if characters > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path}: a document of more than {MAX_DOCUMENT_BYTES:,} characters: put {END_OF_TEXT} or blank lines "
            "between documents"
        )


def _decoded_chunks(path: Path, encoding_errors: str) -> Iterator[str]:
    """The text of a file, without a byte order mark, in chunks that never cut a character."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(encoding_errors), translate=True)
    consumed = 0
    at_start = True
    with _open_bytes(path) as stream:
        while True:
            chunk = stream.read(CHUNK_BYTES)
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                held_back = len(error.object) - len(chunk)  # an unfinished character from the chunk before
                raise invalid_utf8(str(path), consumed - held_back + error.start) from error
            consumed += len(chunk)
            if at_start and text:
                text = text.removeprefix("\ufeff")
                at_start = False
            yield text
            if not chunk:
                return


def _open_bytes(path: Path) -> io.BufferedReader:
    return io.BufferedReader(pa.input_stream(str(path), compression=COMPRESSIONS.get(path.suffix.lower())))
