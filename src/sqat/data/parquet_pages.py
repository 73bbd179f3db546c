"""How large the pages of a Parquet column are, read from their headers before any is decompressed.

Arrow makes a page in memory as large as its header says, and repeats a dictionary's value in every row that names it: a
file of a few kilobytes can stand for terabytes. What the footer says of sizes nobody checks; the pages' own headers are
what memory is taken by.

Headers are in Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md); fields 1 to 3 of a
PageHeader (apache/parquet-format, parquet.thrift) are its type and its sizes uncompressed and compressed.
"""

from __future__ import annotations

from typing import BinaryIO

import pyarrow.parquet as pq

MAX_PAGE_BYTES = 1 << 28
MAX_HEADER_BYTES = 1 << 16
BATCH_BYTES = 1 << 28  # of a batch of rows, whatever its pages hold

# Types of fields: 1 and 2 are the truth values themselves, 3 a byte, 4 to 6 whole numbers, 7 a float of 8 bytes,
# 8 bytes with their length, 9 a list, 10 a set, 11 a mapping, 12 a struct.
_STOP, _TRUTH, _WHOLE = 0, (1, 2), (4, 5, 6)
_UNCOMPRESSED_SIZE, _COMPRESSED_SIZE = 2, 3


def rows_at_a_time(stream: BinaryIO, metadata: pq.FileMetaData, path: str, most: int) -> int:
    """How many rows of the column `path` may be read at once: at most `most`, and fewer where a row may be large, since
    a row takes at most a page.

    Raises:
        ValueError: a page larger than `MAX_PAGE_BYTES`, or headers that cannot be read.
    """
    largest = 1
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for number in range(row_group.num_columns):
            column = row_group.column(number)
            if column.path_in_schema != path and not column.path_in_schema.startswith(f"{path}."):
                continue
            starts = [column.data_page_offset]
            if column.has_dictionary_page and column.dictionary_page_offset:
                starts.append(column.dictionary_page_offset)
            largest = max(largest, _largest_page(stream, min(starts), column.total_compressed_size))
    if largest > MAX_PAGE_BYTES:
        raise ValueError(f"a page of {largest:,} bytes, but at most {MAX_PAGE_BYTES:,} are read")
    return max(1, min(most, BATCH_BYTES // largest))


def _largest_page(stream: BinaryIO, start: int, length: int) -> int:
    largest, place, end = 0, start, start + length
    while place < end:
        stream.seek(place)
        header = _Header(stream.read(min(MAX_HEADER_BYTES, end - place)))
        sizes = header.read()
        uncompressed, compressed = sizes.get(_UNCOMPRESSED_SIZE, -1), sizes.get(_COMPRESSED_SIZE, -1)
        if uncompressed < 0 or compressed < 0:
            raise ValueError("a page without its size")
        largest = max(largest, uncompressed, compressed)
        place += header.place + compressed
    return largest


class _Header:
    """A struct of the compact protocol, of which whole numbers at the top are kept and all else is passed over."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def read(self) -> dict[int, int]:
        """The top's whole numbers by field."""
        found: dict[int, int] = {}
        field = 0
        while (kind_and_step := self._byte()) != _STOP:
            kind, step = kind_and_step & 15, kind_and_step >> 4
            field = field + step if step else self._signed()
            if kind in _WHOLE:
                found[field] = self._signed()
            else:
                self._pass_over(kind, 0)
        return found

    def _pass_over(self, kind: int, depth: int) -> None:
        if depth > 16:
            raise ValueError("a page header nested more than 16 deep")
        match kind:
            case 1 | 2:
                return
            case 3:
                self._byte()
            case 4 | 5 | 6:
                self._signed()
            case 7:
                self._move(8)
            case 8:
                self._move(self._unsigned())
            case 9 | 10:
                size_and_kind = self._byte()
                size = size_and_kind >> 4 if size_and_kind >> 4 < 15 else self._unsigned()
                self._pass_all(size, [size_and_kind & 15], depth)
            case 11:
                if size := self._unsigned():
                    kinds = self._byte()
                    self._pass_all(size, [kinds >> 4, kinds & 15], depth)
            case 12:
                while (kind_and_step := self._byte()) != _STOP:
                    if not kind_and_step >> 4:
                        self._signed()
                    self._pass_over(kind_and_step & 15, depth + 1)
            case _:
                raise ValueError(f"a page header with a field of the unknown type {kind}")

    def _pass_all(self, size: int, kinds: list[int], depth: int) -> None:
        if size > MAX_HEADER_BYTES:
            raise ValueError(f"a page header with a list of {size:,}")
        for _ in range(size):
            for kind in kinds:
                if kind in _TRUTH:  # a byte each in lists, none as fields
                    self._byte()
                else:
                    self._pass_over(kind, depth + 1)

    def _byte(self) -> int:
        if self.place >= len(self.data):
            raise ValueError("a page header that ends early")
        self.place += 1
        return self.data[self.place - 1]

    def _move(self, count: int) -> None:
        if count > len(self.data) - self.place:
            raise ValueError("a page header that ends early")
        self.place += count

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a page header with a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
