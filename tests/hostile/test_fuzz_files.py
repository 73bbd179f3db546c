"""Damaged files of every kind are read or refused in one line: no other exception, no hanging, no endless memory."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import bounded, changed_bytes, fuzz, json_files, little_memory
from hypothesis import given
from hypothesis import strategies as st

from sqat.checkpoint import load_model, read_config
from sqat.checkpoint.rxnn import config_to_rxnn
from sqat.config import ModelConfig
from sqat.data.stories import story
from sqat.data.text import open_source
from sqat.data.tokenizer import Tokenizer
from sqat.variants import preset

TEXTS = [story(index) for index in range(5)]
JSON_LINES = "\n".join(json.dumps({"text": text, "tags": ["a", {"b": None}]}) for text in TEXTS).encode()


def damage(path, files, read, quick):
    """Write damaged contents to a file, and read each."""

    @fuzz(quick)
    @given(files)
    def check(data):
        path.write_bytes(data)
        with bounded():
            read()

    check()


def parquet(folder):
    """The same rows in several encodings, compressions and versions of pages."""
    found, gzipped = [], {"compression": "gzip", "use_dictionary": False, "row_group_size": 2}
    for options in ({"compression": "zstd"}, {"compression": "snappy", "data_page_version": "2.0"}, gzipped):
        pq.write_table(pa.table({"text": TEXTS, "id": range(5)}), folder / "a.parquet", **options)
        found.append((folder / "a.parquet").read_bytes())
    return found


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.txt", "a.parquet"])
@pytest.mark.parametrize("encoding_errors", ["strict", "replace"])
def test_text(tmp_path, name, encoding_errors):
    valid = {
        "a.jsonl": [JSON_LINES],
        "a.jsonl.gz": [gzip.compress(JSON_LINES)],
        "a.jsonl.zst": [bytes(pa.compress(JSON_LINES, "zstd", asbytes=True))],
        "a.txt": [separator.join(TEXTS).encode() for separator in ("\n\n", "\n<|endoftext|>\n")],
        "a.parquet": parquet(tmp_path),
    }[name]

    def read():
        for text in open_source(str(tmp_path / name), encoding_errors=encoding_errors).documents():
            text.encode()  # whatever is read can be tokenized

    damage(tmp_path / name, st.sampled_from(valid).flatmap(changed_bytes), read, 40)


def test_tokenizer(checkpoint):
    path = checkpoint / "tokenizer.json"
    read = lambda: Tokenizer.load(path).encode(TEXTS[0])  # noqa: E731
    damage(path, changed_bytes(path.read_bytes()), read, 40)


def test_config_of_a_model(checkpoint):
    path = checkpoint / "config.json"
    valid = [json.loads(path.read_text()), config_to_rxnn(preset("sqat-mm"))]

    def read():
        config, _ = read_config(checkpoint)
        assert ModelConfig.from_dict(config.to_dict()) == config
        load_model(checkpoint)

    with little_memory():
        damage(path, st.sampled_from(valid).flatmap(json_files), read, 100)


@st.composite
def safetensors_files(draw, valid):
    """A weights file with its header changed as JSON, its length corrected or not; or changed as bytes."""
    if draw(st.integers(0, 2)) == 0:
        return draw(changed_bytes(valid))
    length = int.from_bytes(valid[:8], "little")
    header = draw(json_files(json.loads(valid[8 : 8 + length])))
    told = draw(st.sampled_from((len(header), len(header), len(header), length, 0, 2**31, 2**63 - 1)))
    return told.to_bytes(8, "little") + header + valid[8 + length :]


def test_weights(checkpoint):
    path = checkpoint / "model.safetensors"
    with little_memory():
        damage(path, safetensors_files(path.read_bytes()), lambda: load_model(checkpoint), 60)
