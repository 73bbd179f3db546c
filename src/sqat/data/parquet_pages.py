"""How large the pages of a Parquet column are, read from their headers before any is decompressed.

Arrow makes a page in memory as large as its header says, and repeats a dictionary's value in every row that names it: a
file of a few kilobytes can stand for terabytes. What the footer says of sizes nobody checks; the pages' own headers are
what memory is taken by.

Where a column's pages are, the footer says; pyarrow 26 ends the process where the footer's statistics contradict each
other (`RowGroupMetaData.column`), so that it is not asked. Fields are numbered as in apache/parquet-format,
parquet.thrift.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from sqat.data.thrift import CompactReader

MAX_PAGE_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 16
MAX_FOOTER_BYTES = 1 << 24
BATCH_BYTES = 1 << 28  # of a batch of rows, whatever its pages hold

# FileMetaData, RowGroup, ColumnChunk, ColumnMetaData; PageHeader
_ROW_GROUPS, _COLUMNS, _METADATA = 4, 1, 3
_PATH, _TOTAL_COMPRESSED_SIZE, _DATA_PAGE_OFFSET, _DICTIONARY_PAGE_OFFSET = 3, 7, 9, 11
_OF_A_COLUMN = dict.fromkeys((_PATH, _TOTAL_COMPRESSED_SIZE, _DATA_PAGE_OFFSET, _DICTIONARY_PAGE_OFFSET))
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3


def rows_at_a_time(stream: BinaryIO, path: str, most: int) -> int:
    """How many rows of the column `path` of a Parquet file may be read at once: at most `most`, and fewer where a row
    may be large, since a row takes at most a page.

    Raises:
        ValueError: a page larger than `MAX_PAGE_BYTES`, or a footer or headers that cannot be read.
    """
    largest = 1
    for start, length in _pages_of(stream, path.encode()):
        largest = max(largest, _largest_page(stream, start, length))
    if largest > MAX_PAGE_BYTES:
        raise ValueError(f"a page of {largest:,} bytes, but at most {MAX_PAGE_BYTES:,} are read")
    return max(1, min(most, BATCH_BYTES // largest))


def _pages_of(stream: BinaryIO, path: bytes) -> Iterator[tuple[int, int]]:
    """In every row group, where the pages of a column start, and their length together."""
    footer = CompactReader(_footer(stream)).struct({_ROW_GROUPS: {_COLUMNS: {_METADATA: _OF_A_COLUMN}}})
    for group in _structs(footer.get(_ROW_GROUPS)):
        for chunk in _structs(group.get(_COLUMNS)):
            [column] = _structs([chunk.get(_METADATA)])
            names = column.get(_PATH)
            if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
                raise ValueError("a column without its name")
            if not (b".".join(names) + b".").startswith(path + b"."):
                continue
            start, length = (column.get(field) for field in (_DATA_PAGE_OFFSET, _TOTAL_COMPRESSED_SIZE))
            if not isinstance(start, int) or not isinstance(length, int):
                raise ValueError("a column without its place")
            if (dictionary := column.get(_DICTIONARY_PAGE_OFFSET)) and isinstance(dictionary, int):
                start = min(start, dictionary)
            if start < 0:
                raise ValueError(f"pages at {start}")
            yield start, length


def _footer(stream: BinaryIO) -> bytes:
    """The file's last bytes are the footer, its length in four bytes, and PAR1."""
    end = stream.seek(-8, io.SEEK_END)
    length = int.from_bytes(stream.read(4), "little")
    if length > min(end, MAX_FOOTER_BYTES):
        raise ValueError(f"a footer of {length:,} bytes, but at most {min(end, MAX_FOOTER_BYTES):,} are read")
    stream.seek(end - length)
    return stream.read(length)


def _structs(values: Any) -> list[dict[int, Any]]:
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise ValueError("a footer without row groups and columns")
    return values


def _largest_page(stream: BinaryIO, start: int, length: int) -> int:
    largest, place, end = 0, start, start + length
    while place < end:
        stream.seek(place)
        header = CompactReader(stream.read(min(MAX_HEADER_BYTES, end - place)))
        sizes = header.struct({_UNCOMPRESSED_SIZE: None, _COMPRESSED_SIZE: None})
        uncompressed, compressed = (sizes.get(field) for field in (_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE))
        if not isinstance(uncompressed, int) or not isinstance(compressed, int) or min(uncompressed, compressed) < 0:
            raise ValueError("a page without its size")
        largest = max(largest, uncompressed, compressed)
        place += header.place + compressed
    return largest
