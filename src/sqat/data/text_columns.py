"""Text out of Arrow columns, as Parquet files and Hub data sets hold it."""

from collections.abc import Iterator

import pyarrow as pa

from sqat.errors import DataError
from sqat.untrusted import named, shown


def check_text_column(schema: pa.Schema, field: str, place: str) -> None:
    """Raise DataError unless the column `field` exists and holds strings; `place` names the data in the message."""
    if field not in schema.names:
        raise DataError(f"{place}: there is no field {shown(field)}; the fields are: {named(schema.names)}")
    kind = schema.field(field).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise DataError(f"{place}: the field {shown(field)} holds {str(kind)[:200]}, not strings")


def column_texts(
    column: pa.Array | pa.ChunkedArray, encoding_errors: str, place: str, first_row: int = 0
) -> Iterator[str]:
    """The strings of one column. Rows are counted from `first_row` in messages.

    Raises DataError for a null, and for invalid UTF-8 where `encoding_errors` is "strict".
    """
    # Arrow does not check that its strings are UTF-8; as bytes, a bad one can be named or repaired.
    raw = column.cast(pa.large_string()).cast(pa.large_binary())
    for row, value in enumerate(raw.to_pylist(), first_row):
        if value is None:
            raise DataError(f"{place}, row {row}: null, not a string")
        yield decode_utf8(value, encoding_errors, f"{place}, row {row}")


def decode_utf8(data: bytes, encoding_errors: str, place: str, offset: int = 0) -> str:
    """Bytes as text. Raises DataError at `place` and the byte's number (counted from `offset`) where they are not
    UTF-8 and `encoding_errors` is "strict"."""
    try:
        return data.decode("utf-8", encoding_errors)
    except UnicodeDecodeError as error:
        raise invalid_utf8(place, offset + error.start) from error


def invalid_utf8(place: str, offset: int) -> DataError:
    return DataError(
        f'{place}: invalid UTF-8 at byte {offset}; encoding_errors="replace" reads on, with U+FFFD in its place'
    )
