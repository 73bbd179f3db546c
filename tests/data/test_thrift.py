"""Thrift's compact protocol, by structs written out by hand."""

import pytest

from sqat.data.thrift import CompactReader


def read(*data: int, wanted: dict) -> dict:
    reader = CompactReader(bytes(data))
    found = reader.struct(wanted)
    assert reader.place == len(data)
    return found


def test_wanted_fields_and_others():
    data = (
        *(0x15, 0x05),  # field 1: -3
        *(0x18, 2, 65, 66),  # field 2: b"AB"
        *(0x11, 0x12),  # fields 3 and 4: true, false, with no bytes of their own
        *(0x17, *range(8)),  # field 5: a float
        *(0x19, 0x21, 1, 2),  # field 6: a list of two truth values, a byte each
        *(0x1B, 1, 0x85, 1, 66, 4),  # field 7: a mapping of one name to one number
        *(0x1B, 0),  # field 8: an empty mapping
        *(0x06, 0x80, 0x01, 0x80, 0x01),  # field 64, by its number: 64
        0,
    )
    assert read(*data, wanted={}) == {}
    assert read(*data, wanted={2: None, 1: None, 64: None}) == {1: -3, 2: b"AB", 64: 64}


def test_structs_in_lists_and_lists_in_structs():
    inner = (0x15, 2, 0x19, 0x28, 1, 65, 1, 66, 0)  # 1: 1, 2: [b"A", b"B"]
    data = (0x19, 0x2C, *inner, *inner, 0)
    assert read(*data, wanted={1: {2: None}}) == {1: [{2: [b"A", b"B"]}] * 2}
    assert read(*data, wanted={1: {1: None}}) == {1: [{1: 1}] * 2}
    assert read(*data, wanted={}) == {}


def test_long_lists_have_their_length_behind():
    assert read(0x19, 0xF5, 17, *[2] * 17, 0, wanted={1: None}) == {1: [1] * 17}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([0x15], "it ends early"),
        ([0x18, 5, 65], "it ends early"),
        ([0x19, 0xF1, *[0xFF] * 8, 0x7F], "it ends early"),  # a list of truth values without end
        ([0x15, *[0x80] * 10, 1], "a number of more than 64 bits"),
        ([0x1D, 0], "a field of the unknown type 13"),
        ([0x1C] * 30, "structs nested more than 16 deep"),
        ([0x19] * 30, "structs nested more than 16 deep"),
    ],
)
@pytest.mark.parametrize("wanted", [{}, {1: {1: {}}}])
def test_what_is_no_struct(data, message, wanted):
    with pytest.raises(ValueError, match=message):
        CompactReader(bytes(data)).struct(wanted)


def test_a_wanted_field_that_is_there_twice():
    with pytest.raises(ValueError, match="field 1 twice"):
        CompactReader(bytes([0x15, 2, 0x05, 2, 2, 0])).struct({1: None})
