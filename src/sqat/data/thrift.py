"""Structs of Thrift's compact protocol (apache/thrift, doc/specs/thrift-compact-protocol.md), by the byte and within
bounds: of a struct, the fields that are asked for are kept, and all else is passed over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MAX_DEPTH = 16

# Types of fields: 1 and 2 are the truth values themselves, 3 a byte, 4 to 6 whole numbers, 7 a float of 8 bytes,
# 8 bytes with their length, 9 a list, 10 a set, 11 a mapping, 12 a struct.
_STOP, _TRUTH, _BYTE = 0, (1, 2), 3


class CompactReader:
    """Reads `data` from its start; `place` is where it has come to.

    Raises, in all methods:
        ValueError: the data end early, are nested more than `MAX_DEPTH` deep, or are no structs.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def struct(self, wanted: Mapping[int, Any], depth: int = 0) -> dict[int, Any]:
        """The wanted fields by their numbers: whole numbers, bytes, lists and structs; of structs, and of those in
        lists, the fields that `wanted[field]` has, as a mapping of its own.
        """
        found: dict[int, Any] = {}
        for field, kind in self._fields():
            if field in found:
                raise ValueError(f"field {field} twice")
            if field in wanted:
                found[field] = self._value(kind, wanted[field] or {}, depth + 1)
            else:
                self._pass_over(kind, depth + 1)
        return found

    def _fields(self) -> Iterator[tuple[int, int]]:
        """Numbers and types of a struct's fields, while the reader stands before each one's value."""
        field = 0
        while (kind_and_step := self._byte()) != _STOP:
            kind, step = kind_and_step & 15, kind_and_step >> 4
            field = field + step if step else self._signed()
            yield field, kind

    def _value(self, kind: int, wanted: Mapping[int, Any], depth: int) -> Any:
        self._check(depth)
        match kind:
            case 4 | 5 | 6:
                return self._signed()
            case 8:
                size = self._unsigned()
                self._move(size)
                return self.data[self.place - size : self.place]
            case 9:
                size, kind_of_each = self._list()
                return [self._value(kind_of_each, wanted, depth + 1) for _ in range(size)]
            case 12:
                return self.struct(wanted, depth)
        return self._pass_over(kind, depth)

    def _pass_over(self, kind: int, depth: int) -> None:
        self._check(depth)
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
                size, kind_of_each = self._list()
                self._pass_all(size, [kind_of_each], depth)
            case 11:
                if size := self._unsigned():
                    kinds = self._byte()
                    self._pass_all(size, [self._in_a_list(kinds >> 4), self._in_a_list(kinds & 15)], depth)
            case 12:
                for _, inner in self._fields():
                    self._pass_over(inner, depth + 1)
            case _:
                raise ValueError(f"a field of the unknown type {kind}")

    def _pass_all(self, size: int, kinds: list[int], depth: int) -> None:
        for _ in range(size):
            for kind in kinds:
                self._pass_over(kind, depth + 1)

    def _list(self) -> tuple[int, int]:
        """Its length, and how its elements are to be read: truth values take a byte there, and none as fields."""
        size_and_kind = self._byte()
        size = size_and_kind >> 4 if size_and_kind >> 4 < 15 else self._unsigned()
        return size, self._in_a_list(size_and_kind & 15)

    @staticmethod
    def _in_a_list(kind: int) -> int:
        return _BYTE if kind in _TRUTH else kind

    def _check(self, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise ValueError(f"structs nested more than {MAX_DEPTH} deep")

    def _byte(self) -> int:
        self._move(1)
        return self.data[self.place - 1]

    def _move(self, count: int) -> None:
        if count > len(self.data) - self.place:
            raise ValueError("it ends early")
        self.place += count

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
