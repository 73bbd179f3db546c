"""The file formats: .txt, .jsonl and .parquet, whole, compressed and damaged."""

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqat.data import files
from sqat.data.text import open_source
from sqat.errors import DataError

MARKED = "one\r\n\r\nstill one\n<|endoftext|>\ntwo<|endoftext|>  three \n<|endoftext|>\n\n<|endoftext|>"


def documents(path: Path, **options) -> list[str]:
    return list(open_source(str(path), **options).documents())


def compress(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        return gzip.compress(data[:11]) + gzip.compress(data[11:])  # members, as parallel compressors write
    return pa.compress(data, codec="zstd", asbytes=True) if suffix else data


@pytest.fixture(params=[1 << 20, 1, 7], ids="chunk={}".format)
def chunks(request, monkeypatch):
    """Chunk sizes that cut characters, line ends and markers apart."""
    monkeypatch.setattr(files, "CHUNK_BYTES", request.param)


def test_padding_after_the_end_of_gzip(tmp_path):
    path = tmp_path / "stories.txt.gz"
    path.write_bytes(gzip.compress(b"one") + bytes(512))
    assert documents(path) == ["one"]


def test_one_sentence_a_line_is_warned_of_once(tmp_path, caplog):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A cat sat.\n" * 10)
    (tmp_path / "verse").mkdir()
    (tmp_path / "verse" / "c.txt").write_text("A cat\nsat.\n" * 10)
    assert len(documents(tmp_path)) == 3
    (message,) = caplog.messages
    assert "a.txt has 10 lines, most of them whole sentences, but no blank line or <|endoftext|>" in message


class TestText:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
    def test_marker(self, tmp_path, chunks, suffix):
        path = tmp_path / f"stories.txt{suffix}"
        path.write_bytes(compress(MARKED.encode(), suffix))
        assert documents(path) == ["one\n\nstill one", "two", "  three "]

    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_blank_lines(self, tmp_path, chunks, newline):
        path = tmp_path / "stories.TXT"
        text = "\n\none\nmore – é 🙂\n\n \t\n\n  two\x0b\u2028\nlast"
        path.write_bytes(text.replace("\n", newline).encode())
        assert documents(path) == ["one\nmore – é 🙂", "  two\x0b\u2028\nlast"]

    def test_byte_order_mark(self, tmp_path):
        path = tmp_path / "stories.txt"
        path.write_text("one\n\ntwo", encoding="utf-8-sig")
        assert documents(path) == ["one", "two"]

    @pytest.mark.parametrize("content", ["", " \n\n ", "<|endoftext|>"])
    def test_empty(self, tmp_path, content):
        path = tmp_path / "stories.txt"
        path.write_text(content)
        assert documents(path) == []

    def test_one_document(self, tmp_path):
        path = tmp_path / "stories.txt"
        path.write_text("only this")
        assert documents(path) == ["only this"]

    @pytest.mark.parametrize(
        ("data", "offset"), [(b"caf\xc3\xa9 \xff!", 6), (b"a\r\n\xe2\x82", 3), (b"\xf0\x9f\x99 x", 0)]
    )
    def test_invalid_utf8(self, tmp_path, chunks, data, offset):
        path = tmp_path / "stories.txt"
        path.write_bytes(data)
        message = re.escape(f'{path}: invalid UTF-8 at byte {offset}; encoding_errors="replace" reads on')
        with pytest.raises(DataError, match=message):
            documents(path)
        expected = data.decode("utf-8", "replace").replace("\r\n", "\n")
        assert documents(path, encoding_errors="replace") == [expected]

    def test_invalid_utf8_is_counted_in_the_unpacked_text(self, tmp_path):
        path = tmp_path / "stories.txt.gz"
        path.write_bytes(gzip.compress(b"one\n\n" * 9973 + b"\xff"))
        with pytest.raises(DataError, match="invalid UTF-8 at byte 49865"):
            documents(path)

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_damaged_compression(self, tmp_path, suffix):
        path = tmp_path / f"stories.txt{suffix}"
        path.write_bytes(compress(MARKED.encode() * 99, suffix)[:-11])
        with pytest.raises(DataError, match=rf"stories\.txt\{suffix}: cannot be read: "):
            documents(path)


class TestJsonLines:
    def write(self, folder: Path, data: bytes) -> Path:
        path = folder / "stories.jsonl"
        path.write_bytes(data)
        return path

    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
    def test_documents(self, tmp_path, suffix):
        lines = b'\xef\xbb\xbf{"text": "one\\r\\n"}\r\n\n  \n{"id": 3, "text": "\\ud83d\\ude42"}\n{"text": ""}\n'
        lines += b'{"text": "last"}'
        path = tmp_path / f"stories.jsonl{suffix}"
        path.write_bytes(compress(lines, suffix))
        assert documents(path) == ["one\r\n", "🙂", "last"]

    def test_other_field(self, tmp_path):
        path = self.write(tmp_path, b'{"text": "no", "story": "yes"}')
        assert documents(path, field="story") == ["yes"]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (b'{"id": 1, "story": "x"}', "there is no field 'text'; the fields are: id, story"),
            (b'{"text": 7}', "the field 'text' holds int, not a string"),
            (b'{"text": null}', "the field 'text' holds NoneType, not a string"),
            (b'["text"]', "a JSON object is needed, found list"),
            (b'{"text": "x"', "not JSON: "),
            (b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
            (b'{"text": "\\ud83d"}', "half a surrogate pair"),
            (b"[" * 100_000, "not JSON: "),
            (b'{"text": ' + b"1" * 5000 + b"}", "not JSON: "),
        ],
    )
    def test_unusable_line(self, tmp_path, line, message):
        path = self.write(tmp_path, b'{"text": "fine"}\n\n' + line)
        with pytest.raises(DataError, match=rf"stories\.jsonl, line 3: {re.escape(message)}"):
            documents(path)

    def test_replacement(self, tmp_path):
        path = self.write(tmp_path, b'{"text": "a\xff"}\n{"text": "b\\ud83d"}')
        assert documents(path, encoding_errors="replace") == ["a\ufffd", "b\ufffd"]


class TestParquet:
    def write(self, folder: Path, column: pa.Array, name: str = "text") -> Path:
        path = folder / "stories.parquet"
        pq.write_table(pa.table({"id": pa.nulls(len(column), pa.int8()), name: column}), path)
        return path

    @pytest.mark.parametrize(
        "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
    )
    def test_string_types(self, tmp_path, kind):
        texts = [f"story {n}\r\n" for n in range(2053)]  # more than two batches
        column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
        assert documents(self.write(tmp_path, column)) == texts

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_compressed_whole(self, tmp_path, suffix):
        plain = self.write(tmp_path, pa.array(["one", "two"]))
        path = tmp_path / f"again.parquet{suffix}"
        path.write_bytes(compress(plain.read_bytes(), suffix))
        assert documents(path) == ["one", "two"]

    def test_missing_field(self, tmp_path):
        path = self.write(tmp_path, pa.array(["one"]), "story")
        with pytest.raises(DataError, match=r"stories\.parquet: there is no field 'text'; the fields are: id, story"):
            documents(path)
        assert documents(path, field="story") == ["one"]

    def test_a_shard_without_rows(self, tmp_path):
        self.write(tmp_path, pa.array(["one"]))
        pq.write_table(pa.table({"text": pa.nulls(0)}), tmp_path / "empty.parquet")
        pq.write_table(pa.table({}), tmp_path / "without columns.parquet")
        assert documents(tmp_path) == ["one"]

    def test_two_fields_of_one_name(self, tmp_path):
        path = self.write(tmp_path, pa.array(["one"]))
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), path)
        with pytest.raises(DataError, match=r"stories\.parquet: 2 fields are called 'text', but one must be"):
            documents(path)

    def test_not_strings(self, tmp_path):
        with pytest.raises(DataError, match=r"stories\.parquet: the field 'text' holds int64, not strings"):
            documents(self.write(tmp_path, pa.array([1, 2])))

    def test_null(self, tmp_path):
        with pytest.raises(DataError, match=r"stories\.parquet, row 1: null, not a string"):
            documents(self.write(tmp_path, pa.array(["one", None])))

    def test_invalid_utf8(self, tmp_path):
        column = pa.array([b"fine"] * 1031 + [b"ab\xff"], pa.binary()).view(pa.string())
        path = self.write(tmp_path, column)
        with pytest.raises(DataError, match=r"stories\.parquet, row 1031: invalid UTF-8 at byte 2"):
            documents(path)
        assert documents(path, encoding_errors="replace")[-1] == "ab\ufffd"

    def test_damaged_column_name(self, tmp_path):
        path = self.write(tmp_path, pa.array(["one"]), "n\u00e9")
        path.write_bytes(path.read_bytes().replace("n\u00e9".encode(), b"n\xff\xff"))
        with pytest.raises(DataError, match=r"stories\.parquet: cannot be read: 'utf-8' codec can't decode byte 0xff"):
            documents(path)

    def test_damaged(self, tmp_path):
        path = tmp_path / "stories.parquet"
        path.write_bytes(b"PAR1 is not enough")
        with pytest.raises(DataError, match=r"stories\.parquet: cannot be read"):
            documents(path)


def test_file_that_disappears(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("one")
    source = open_source(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"stories\.txt: cannot be read"):
        list(source.documents())
    with pytest.raises(DataError, match=r"stories\.txt: cannot be read"):
        source.fingerprint()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["long.jsonl", "long.txt"])
def test_document_without_end_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch, name, suffix):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 1 << 20)
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(compress(b"a" * (5 << 20), suffix))
    with pytest.raises(DataError, match="1,048,576"):
        documents(path)
