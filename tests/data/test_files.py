"""The file formats: .txt, .jsonl and .parquet, whole, compressed and damaged."""

import gzip
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqat.data import files
from sqat.data.text import open_source
from sqat.errors import DataError

MARKED = "one\r\n\r\nstill one\n<|endoftext|>\ntwo<|endoftext|>  three \n<|endoftext|>\n\n<|endoftext|>"


def documents(path, **options):
    return list(open_source(str(path), **options).documents())


@pytest.fixture
def write(tmp_path):
    """`write("a.txt.gz", "text")` gives the file's path; it is compressed by its name."""

    def write(name, data):
        data = data.encode() if isinstance(data, str) else data
        if name.endswith(".gz"):
            data = gzip.compress(data[:11]) + gzip.compress(data[11:])  # members, as parallel compressors write
        elif name.endswith(".zst"):
            data = pa.compress(data, codec="zstd", asbytes=True)
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture(params=[1 << 20, 1, 7], ids="chunk={}".format)
def chunks(request, monkeypatch):
    """Chunk sizes that cut characters, line ends and markers apart."""
    monkeypatch.setattr(files, "CHUNK_BYTES", request.param)


@pytest.mark.parametrize("line", ["A cat sat.", "猫が座った。", "बिल्ली बैठी।"])
@pytest.mark.parametrize("end", ["", "\n\n"])
def test_one_sentence_a_line_is_warned_of_once(tmp_path, caplog, line, end):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(f"{line}\n" * 10 + end, encoding="utf-8")
    (tmp_path / "verse").mkdir()
    (tmp_path / "verse" / "c.txt").write_text("A cat\nsat.\n" * 10)
    assert len(documents(tmp_path)) == 3
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "a.txt has 10 lines or more, most of them whole sentences, but no blank line or <|endoftext|>" in message


class TestText:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
    def test_marker(self, write, chunks, suffix):
        assert documents(write(f"stories.txt{suffix}", MARKED)) == ["one\n\nstill one", "two", "  three "]

    @pytest.mark.parametrize("newline", ["\n", "\r\n"])
    def test_blank_lines(self, write, chunks, newline):
        text = "\n\none\nmore – é 🙂\n\n \t\n\n  two\x0b\u2028\nlast"
        path = write("stories.TXT", text.replace("\n", newline))
        assert documents(path) == ["one\nmore – é 🙂", "  two\x0b\u2028\nlast"]

    @pytest.mark.parametrize(
        ("content", "texts"),
        [
            *(("", []), (" \n\n ", []), ("<|endoftext|>", []), ("only this", ["only this"])),
            ("\ufeffone\n\ntwo", ["one", "two"]),  # a byte-order mark
        ],
    )
    def test_few_documents(self, write, content, texts):
        assert documents(write("stories.txt", content)) == texts

    @pytest.mark.parametrize(
        ("data", "line", "offset"),
        [(b"caf\xc3\xa9 \xff!", 1, 6), (b"a\r\n\xe2\x82", 2, 0), (b"\xf0\x9f\x99 x", 1, 0)],
    )
    def test_invalid_utf8(self, write, chunks, data, line, offset):
        path = write("stories.txt", data)
        message = re.escape(f'{path}, line {line}: invalid UTF-8 at byte {offset}; encoding_errors="replace" reads on')
        with pytest.raises(DataError, match=message):
            documents(path)
        expected = data.decode("utf-8", "replace").replace("\r\n", "\n")
        assert documents(path, encoding_errors="replace") == [expected]

    def test_padding_after_packed_text_is_left_out(self, write):
        path = write("stories.txt.gz", "one")
        path.write_bytes(path.read_bytes() + bytes(512))
        assert documents(path) == ["one"]

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_damaged_compression(self, write, suffix):
        path = write(f"stories.txt{suffix}", MARKED * 99)
        path.write_bytes(path.read_bytes()[:-11])
        with pytest.raises(DataError, match=rf"stories\.txt\{suffix}: cannot be read: "):
            documents(path)


class TestJsonLines:
    @pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
    def test_documents(self, write, suffix):
        lines = b'\xef\xbb\xbf{"text": "one\\r\\n"}\r\n\n  \n{"id": 3, "text": "\\ud83d\\ude42"}\n{"text": ""}\n'
        path = write(f"stories.jsonl{suffix}", lines + b'{"text": "last", "story": "yes"}')
        assert documents(path) == ["one\r\n", "🙂", "last"]

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
    def test_unusable_line(self, write, line, message):
        path = write("stories.jsonl", b'{"text": "fine"}\n\n' + line)
        with pytest.raises(DataError, match=rf"stories\.jsonl, line 3: {re.escape(message)}"):
            documents(path)

    def test_replacement_and_another_field(self, write):
        assert documents(write("stories.jsonl", b'{"text": "no", "story": "yes"}'), field="story") == ["yes"]
        path = write("stories.jsonl", b'{"text": "a\xff"}\n{"text": "b\\ud83d"}')
        assert documents(path, encoding_errors="replace") == ["a\ufffd", "b\ufffd"]


class TestParquet:
    def write(self, folder, column, name="text"):
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

    @pytest.mark.parametrize(
        ("values", "name", "message"),
        [
            (["one"], "story", r": there is no field 'text'; the fields are: id, story"),
            ([1, 2], "text", r": the field 'text' holds int64, not strings"),
            (["one", None], "text", r", row 1: null, not a string"),
        ],
    )
    def test_other_columns(self, tmp_path, values, name, message):
        path = self.write(tmp_path, pa.array(values), name)
        with pytest.raises(DataError, match=rf"stories\.parquet{message}"):
            documents(path)
        assert name == "text" or documents(path, field=name) == values

    def test_a_shard_without_rows_or_with_two_fields_of_one_name(self, tmp_path):
        self.write(tmp_path, pa.array(["one"]))
        pq.write_table(pa.table({"text": pa.nulls(0)}), tmp_path / "empty.parquet")
        pq.write_table(pa.table({}), tmp_path / "without columns.parquet")
        assert documents(tmp_path) == ["one"]
        path = self.write(tmp_path, pa.array(["one"]))
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, ["text", "text"]), path)
        with pytest.raises(DataError, match=r"stories\.parquet: 2 fields are called 'text', but one must be"):
            documents(path)

    def test_invalid_utf8(self, tmp_path):
        column = pa.array([b"fine"] * 1031 + [b"ab\xff"], pa.binary()).view(pa.string())
        path = self.write(tmp_path, column)
        with pytest.raises(DataError, match=r"stories\.parquet, row 1031: invalid UTF-8 at byte 2"):
            documents(path)
        assert documents(path, encoding_errors="replace")[-1] == "ab\ufffd"

    def test_damaged(self, tmp_path, write):
        path = self.write(tmp_path, pa.array(["one"]), "n\u00e9")
        path.write_bytes(path.read_bytes().replace("n\u00e9".encode(), b"n\xff\xff"))
        with pytest.raises(DataError, match=r"stories\.parquet: cannot be read: 'utf-8' codec can't decode byte 0xff"):
            documents(path)

        with pytest.raises(DataError, match=r"stories\.parquet: cannot be read"):
            documents(write("stories.parquet", b"PAR1 is not enough"))


def test_file_that_disappears(write):
    path = write("stories.txt", "one")
    source = open_source(str(path))
    path.unlink()
    with pytest.raises(DataError, match=r"stories\.txt: cannot be read"):
        list(source.documents())
    with pytest.raises(DataError, match=r"stories\.txt: cannot be read"):
        source.fingerprint()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["long.jsonl", "long.txt"])
def test_document_without_end_is_refused_before_it_fills_the_memory(write, monkeypatch, name, suffix):
    monkeypatch.setattr(files, "MAX_DOCUMENT_BYTES", 1 << 20)
    with pytest.raises(DataError, match="1,048,576"):
        documents(write(f"{name}{suffix}", b"a" * (5 << 20)))
