"""Data changed anywhere: text in every format, token files, tokenizers."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import bounded, changed_bytes, fuzz, json_files, little_memory
from hypothesis import given
from hypothesis import strategies as st

from sqat.data.batches import Batches, BatchState
from sqat.data.stories import story
from sqat.data.text import ReadSource, StoriesReader, open_source
from sqat.data.tokenizer import Tokenizer
from sqat.data.tokens import build_tokens, open_tokens

STORIES = [story(i, seed=0, split="train") for i in range(5)]
RECORDS = [{"text": STORIES[i], "id": i, "tags": ["a", {"b": None}], "wide": 1.5} for i in range(3)]


def _read(path: Path, encoding_errors: str) -> None:
    for text in itertools.islice(open_source(str(path), encoding_errors=encoding_errors).documents(), 5000):
        text.encode()  # whatever is given can be tokenised


@st.composite
def jsonl_files(draw: Any) -> bytes:
    lines = [json.dumps(record).encode() for record in RECORDS]
    lines[draw(st.integers(0, 2))] = draw(json_files(RECORDS[0], ("text",)))
    data = draw(st.sampled_from((b"\n", b"\n", b"\r\n", b"\n\n"))).join(lines)
    return draw(changed_bytes(data)) if draw(st.integers(0, 3)) == 0 else data


def test_jsonl(tmp_path: Path) -> None:
    @fuzz(150)
    @given(jsonl_files(), st.sampled_from(("strict", "replace")))
    def check(data: bytes, encoding_errors: str) -> None:
        path = tmp_path / "stories.jsonl"
        path.write_bytes(data)
        with bounded():
            _read(path, encoding_errors)

    with little_memory():
        check()


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_jsonl(tmp_path: Path, suffix: str) -> None:
    plain = "\n".join(json.dumps(record) for record in RECORDS).encode()
    packed = gzip.compress(plain) if suffix == ".gz" else bytes(pa.compress(plain, "zstd", asbytes=True))

    @fuzz(40)
    @given(changed_bytes(packed))
    def check(data: bytes) -> None:
        path = tmp_path / f"stories.jsonl{suffix}"
        path.write_bytes(data)
        with bounded():
            _read(path, "strict")

    with little_memory():
        check()


def test_text(tmp_path: Path) -> None:
    separated = ["\n\n".join(STORIES[:3]).encode(), "\n<|endoftext|>\n".join(STORIES[:3]).encode()]

    @fuzz(60)
    @given(st.sampled_from(separated).flatmap(changed_bytes), st.sampled_from(("strict", "replace")))
    def check(data: bytes, encoding_errors: str) -> None:
        path = tmp_path / "stories.txt"
        path.write_bytes(data)
        with bounded():
            _read(path, encoding_errors)

    with little_memory():
        check()


def _parquet_files(folder: Path) -> list[bytes]:
    """The same few rows by every encoding, compression and version of pages."""
    table = pa.table({"text": [*STORIES[:4], STORIES[0]], "id": range(5), "nested": [[{"a": i}] for i in range(5)]})
    found = []
    for number, options in enumerate(
        (
            {"compression": "zstd"},
            {"compression": "snappy", "data_page_version": "2.0"},
            {"compression": "gzip", "use_dictionary": False},
            {"compression": "none", "use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
            {"compression": "lz4", "row_group_size": 2, "write_page_checksum": True},
        )
    ):
        path = folder / f"{number}.parquet"
        written = table.select(["text", "id"]) if "column_encoding" in options else table
        pq.write_table(written, path, **options)
        found.append(path.read_bytes())
    return found


def test_parquet(tmp_path: Path) -> None:
    @fuzz(120)
    @given(st.sampled_from(_parquet_files(tmp_path)).flatmap(changed_bytes), st.sampled_from(("strict", "replace")))
    def check(data: bytes, encoding_errors: str) -> None:
        path = tmp_path / "stories.parquet"
        path.write_bytes(data)
        with bounded():
            _read(path, encoding_errors)

    with little_memory():
        check()


def test_tokenizer_json(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tokenizer.save(tmp_path)
    valid = json.loads(path.read_text())
    valid["normalizer"] = {"type": "NFC"}
    valid["added_tokens"].append({**valid["added_tokens"][-1], "id": 400, "content": "<x>", "special": False})
    regex = {"type": "Split", "pattern": {"Regex": r"\p{L}+| ?\p{N}{1,3}|\s+"}, "behavior": "Isolated", "invert": False}
    sequence = {"type": "Sequence", "pretokenizers": [regex, valid["pre_tokenizer"]]}
    names = ("Regex", "type", "pattern", "Split", "id", "content")

    @fuzz(50)
    @given(st.one_of(json_files(valid, names), json_files({**valid, "pre_tokenizer": sequence}, names)))
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with bounded():
            loaded = Tokenizer.load(path)
            loaded.decode(loaded.encode(f"{STORIES[0]} [EOS] <x> 12\t\n é\u0301 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"))

    with little_memory():
        check()


def test_token_files(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = build_tokens(ReadSource(StoriesReader(5, "train", 0)), tokenizer, tmp_path / "file").folder
    valid = {path.name: path.read_bytes() for path in folder.iterdir()}
    meta = json.loads(valid["meta.json"])
    changes = st.one_of(
        st.tuples(st.just("meta.json"), json_files(meta)),
        *(st.tuples(st.just(name), changed_bytes(data)) for name, data in valid.items() if name != "meta.json"),
    )

    @fuzz(100)
    @given(changes, st.sampled_from(("rows", "packed")))
    def check(change: tuple[str, bytes], mode: str) -> None:
        name, data = change
        kept = data if name == "meta.json" else data.ljust(len(valid[name]), b"\xff")[: len(valid[name])]
        (folder / name).write_bytes(kept)
        try:
            with bounded():
                tokens = open_tokens(folder)
                batches = Batches(tokens, batch_size=3, context_length=17, mode=mode)
                for batch, _ in batches.epoch(BatchState(0, 0)):
                    assert 0 <= int(batch.inputs.min()) <= int(batch.inputs.max()) < tokens.vocab_size
        finally:
            (folder / name).write_bytes(valid[name])

    with little_memory():
        check()


def test_offsets_of_64_bits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Differences of hostile offsets may wrap around to something small."""
    folder = build_tokens(ReadSource(StoriesReader(3, "train", 0)), tokenizer, tmp_path / "file").folder
    offsets = np.fromfile(folder / "offsets.bin", np.int64)
    with bounded():
        offsets[1:3] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        offsets.tofile(folder / "offsets.bin")
        open_tokens(folder)
        pytest.fail("offsets out of the file were taken")
