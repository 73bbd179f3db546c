"""Our reading of a Parquet footer beside pyarrow's."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqat.data import parquet_pages
from sqat.data.parquet_pages import _pages_of, rows_at_a_time

TABLE = pa.table(
    {
        "text": ["a", "bb", None, "a", "ccc", "a", "bb"],
        "text.more": range(7),
        "nested": [[{"text": "x", "n": i}] for i in range(7)],
        "texts": [["a"] * i for i in range(7)],
    }
)


def written(**options: object) -> io.BytesIO:
    stream = io.BytesIO()
    pq.write_table(TABLE, stream, **options)
    return stream


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False, "compression": "none"},
        {"row_group_size": 3, "compression": "zstd", "write_page_index": True, "write_page_checksum": True},
        {"data_page_version": "2.0", "write_statistics": False, "store_schema": False},
    ],
)
@pytest.mark.parametrize("path", ["text", "nested", "texts", "tex", "nested.list.element.text"])
def test_pages_are_where_pyarrow_says(options, path):
    stream = written(**options)
    metadata, expected = pq.ParquetFile(stream).metadata, []
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            if column.path_in_schema == path or column.path_in_schema.startswith(f"{path}."):
                places = [column.data_page_offset, column.dictionary_page_offset or column.data_page_offset]
                expected.append((min(places), column.total_compressed_size))
    assert list(_pages_of(stream, path.encode())) == expected
    assert (path == "tex") == (not expected)
    assert rows_at_a_time(stream, path, 1019) == 1019


def test_a_footer_of_many_bytes(monkeypatch):
    monkeypatch.setattr(parquet_pages, "MAX_FOOTER_BYTES", 101)
    with pytest.raises(ValueError, match=r"a footer of [\d,]+ bytes, but at most 101 are read"):
        rows_at_a_time(written(), "text", 7)
