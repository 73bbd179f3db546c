"""Text out of files: Parquet, and JSON lines and plain text, also compressed.

Everything streams: memory holds a chunk of a file or some hundred rows, and the document being read.
"""

import gzip
import io
import json
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sqat.errors import DataError
from sqat.untrusted import named, shown

FORMATS = (".parquet", ".jsonl", ".txt")
COMPRESSIONS = (".gz", ".zst")
END_OF_TEXT = "<|endoftext|>"

CHUNK_BYTES = 1 << 20
ROWS_AT_A_TIME = 256
MAX_DOCUMENT_BYTES = 1 << 26  # of JSON lines and text, where a forgotten separator would fill the memory
MANY_LINES, MOSTLY = 10, 0.8  # what makes a text file without separators look like one sentence a line
SENTENCE_ENDS = (".", "!", "?", '"', "”", ")", "…", "。", "！", "？", "」", "।")
THRIFT_LIMITS = {"thrift_string_size_limit": 1 << 24, "thrift_container_size_limit": 1 << 20}  # of Parquet footers

logger = logging.getLogger(__name__)
_warned: set[Path] = set()


def text_format(path: Path) -> str | None:
    """The format that a file's name tells: one of `FORMATS`, or None. Only text and JSON lines may be compressed."""
    *others, last = ["", *(suffix.lower() for suffix in path.suffixes)]
    if last in COMPRESSIONS:
        last = others[-1] if others[-1] != ".parquet" else ""
    return last if last in FORMATS else None


def read_file(path: Path, field: str, encoding_errors: str) -> Iterator[str]:
    """The documents of one file, blank ones included. `field` is the column or key of .parquet and .jsonl files.

    Raises:
        DataError: the file cannot be read, is damaged, or has no strings in `field`; the message names file and place.
    """
    readers = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".txt": _read_text}
    try:
        yield from readers[text_format(path) or ".txt"](path, field, encoding_errors)
    except (OSError, EOFError, zlib.error, pa.ArrowException, UnicodeDecodeError) as error:  # the last: a column's name
        raise DataError(f"{path}: cannot be read: {error}") from error


def _unpacked(path: Path) -> io.BufferedReader:
    """The bytes of a file, unpacked."""
    # Arrow opens no names that are not UTF-8, and its gzip takes no padding after the end.
    kind = path.suffix.lower()
    raw: Any = gzip.open(path) if kind == ".gz" else path.open("rb", buffering=0)  # noqa: SIM115
    return io.BufferedReader(pa.CompressedInputStream(raw, "zstd") if kind == ".zst" else raw)


def _read_parquet(path: Path, field: str, encoding_errors: str) -> Iterator[str]:
    with open(path, "rb") as file:
        parquet = pq.ParquetFile(file, **THRIFT_LIMITS)
        if parquet.metadata.num_rows == 0:  # as filters and Spark write them: columns may have no type, or be missing
            return
        check_text_column(parquet.schema_arrow, field, str(path))
        row = 0
        for batch in parquet.iter_batches(ROWS_AT_A_TIME, columns=[field]):
            yield from column_texts(batch.column(0), encoding_errors, str(path), row)
            row += len(batch)


def check_text_column(schema: pa.Schema, field: str, place: str) -> None:
    """Raise DataError unless the column `field` exists and holds strings; `place` names the data in the message."""
    if field not in schema.names:
        raise DataError(f"{place}: there is no field {shown(field)}; the fields are: {named(schema.names)}")
    if (count := schema.names.count(field)) > 1:
        raise DataError(f"{place}: {count} fields are called {shown(field)}, but one must be")
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{place}: the field {shown(field)} holds {str(kind)[:200]}, not strings")


def column_texts(column: pa.Array | pa.ChunkedArray, encoding_errors: str, place: str, first_row: int) -> Iterator[str]:
    """The strings of a column, whose first row messages call `first_row`. Raises DataError for a null, and for invalid
    UTF-8 if `encoding_errors` is "strict"."""
    # Arrow does not check that its strings are UTF-8; as bytes, a bad one can be named or repaired.
    raw = column.cast(pa.large_string()).cast(pa.large_binary())
    for row, value in enumerate(raw.to_pylist(), first_row):
        if value is None:
            raise DataError(f"{place}, row {row}: null, not a string")
        yield _decode(value, encoding_errors, f"{place}, row {row}")


def _read_jsonl(path: Path, field: str, encoding_errors: str) -> Iterator[str]:
    with _unpacked(path) as stream:
        lines = iter(lambda: stream.readline(MAX_DOCUMENT_BYTES + 1), b"")
        for number, line in enumerate(lines, 1):
            if not line.isspace():
                place = f"{path}, line {number}"
                if len(line) > MAX_DOCUMENT_BYTES:
                    raise DataError(f"{place}: longer than {MAX_DOCUMENT_BYTES:,} bytes, the most that a line may have")
                text = _decode(line, encoding_errors, place).removeprefix("\ufeff")
                yield _json_field(text, field, encoding_errors, place)


def _json_field(line: str, field: str, encoding_errors: str, place: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deep
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
            f'{place}: half a surrogate pair, which UTF-8 cannot hold; encoding_errors="replace" reads on, '
            "with U+FFFD in its place"
        )
    return repaired


def _read_text(path: Path, field: str, encoding_errors: str) -> Iterator[str]:
    r"""Documents between <|endoftext|>, or between blank lines if the file has no <|endoftext|>. All line ends are read
    as "\n", and those around a document belong to the separator."""
    marked = _holds_marker(path)
    if not marked and path.parent not in _warned:
        _warn_of_sentences(path)
    separate = _between_markers if marked else _between_blank_lines
    with _unpacked(path) as stream, io.TextIOWrapper(stream, "utf-8-sig", encoding_errors) as text:
        try:
            for document in separate(text, path):
                yield document.strip("\n")
        except UnicodeDecodeError:
            with _unpacked(path) as again:
                for number, line in enumerate(iter(lambda: again.readline(MAX_DOCUMENT_BYTES), b""), 1):
                    _decode(line, encoding_errors, f"{path}, line {number}")
            raise


def _holds_marker(path: Path) -> bool:
    marker = END_OF_TEXT.encode()
    window = b""
    with _unpacked(path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            window = window[1 - len(marker) :] + chunk
            if marker in window:
                return True
    return False


def _between_markers(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    rest = ""
    while chunk := text.read(CHUNK_BYTES):
        *documents, rest = (rest + chunk).split(END_OF_TEXT)
        yield from documents
        _require_length(len(rest), path)
    yield rest


def _between_blank_lines(text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    document: list[str] = []
    length = 0
    while line := text.readline(MAX_DOCUMENT_BYTES + 1):
        if line.isspace():
            if document:
                yield "".join(document)
            document, length = [], 0
        else:
            document.append(line)
            length += len(line)
            _require_length(length, path)
    yield "".join(document)


def _warn_of_sentences(path: Path) -> None:
    """Warn if a text file has many lines, most of them whole sentences, and no blank line between any two."""
    with _unpacked(path) as stream:
        lines = [line.strip() for line in stream.read(CHUNK_BYTES).decode(errors="replace").strip().splitlines()]
    sentences = sum(line.endswith(SENTENCE_ENDS) for line in lines)
    if len(lines) < MANY_LINES or "" in lines or sentences < MOSTLY * len(lines):
        return
    _warned.add(path.parent)  # once, not for each of thousands of files
    logger.warning(
        "%s has %d lines or more, most of them whole sentences, but no blank line or %s between any two: it is read as "
        "one document. If every line is one, put blank lines between them",
        path,
        len(lines),
        END_OF_TEXT,
    )


def _require_length(characters: int, path: Path) -> None:
    if characters > MAX_DOCUMENT_BYTES:
        raise DataError(
            f"{path}: a document of more than {MAX_DOCUMENT_BYTES:,} characters: put {END_OF_TEXT} or blank lines "
            "between documents"
        )


def _decode(data: bytes, encoding_errors: str, place: str) -> str:
    try:
        return data.decode("utf-8", encoding_errors)
    except UnicodeDecodeError as error:
        hint = 'encoding_errors="replace" reads on, with U+FFFD in its place'
        raise DataError(f"{place}: invalid UTF-8 at byte {error.start}; {hint}") from error
