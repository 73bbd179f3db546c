"""Token files: content, atomic building, damage, the cache."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import numpy as np
import pytest

from sqat.checksums import MANIFEST, write_checksums
from sqat.data import tokens as tokens_module
from sqat.data.tokenizer import Tokenizer, train_tokenizer
from sqat.data.tokens import build_tokens, cached_tokens, open_tokens
from sqat.errors import DataError

TEXTS = ["The cat sat.", "été 🙂", "on", "the mat\n\n" * 13, "x"]


class TestContent:
    @pytest.mark.parametrize("batch_documents", [1, 2, 1024])
    def test_documents(self, tokenizer, tmp_path, list_source, batch_documents, monkeypatch):
        monkeypatch.setattr(tokens_module, "BATCH_DOCUMENTS", batch_documents)
        file = build_tokens(list_source(TEXTS), tokenizer, tmp_path / "file")
        expected = tokenizer.encode_documents(TEXTS)
        assert [file.document(i).tolist() for i in range(len(file))] == expected
        assert file.tokens.tolist() == list(chain(*expected))
        assert (file.tokens.dtype, file.offsets.dtype, file.byte_lengths.dtype) == (np.uint16, np.int64, np.int64)
        assert file.num_tokens == sum(map(len, expected))
        assert file.byte_lengths.tolist() == [len(text.encode()) for text in TEXTS]
        assert file.document_bytes == sum(file.byte_lengths)
        assert file.vocab_size == tokenizer.vocab_size
        assert [tokenizer.decode(file.document(i)) for i in range(len(TEXTS))] == TEXTS
        with pytest.raises(IndexError, match="document 5 of 5"):
            file.document(5)

    def test_large_vocabulary(self, tokenizer, tmp_path, list_source, monkeypatch):
        monkeypatch.setattr(Tokenizer, "vocab_size", 65_537)
        monkeypatch.setattr(Tokenizer, "encode_documents", lambda self, texts: [[2, 65_536, 3] for _ in texts])
        file = build_tokens(list_source(TEXTS), tokenizer, tmp_path / "file")
        assert file.tokens.dtype == np.uint32
        assert file.document(1).tolist() == [2, 65_536, 3]

    def test_progress(self, tokenizer, tmp_path, list_source, monkeypatch):
        calls = []
        monkeypatch.setattr(tokens_module, "BATCH_CHARACTERS", 20)  # the fourth text fills a batch by itself
        monkeypatch.setattr(tokens_module, "BATCH_DOCUMENTS", 3)
        progress = lambda *numbers: calls.append(numbers)  # noqa: E731
        file = build_tokens(list_source(TEXTS), tokenizer, tmp_path / "file", progress=progress)
        assert calls == [(documents, file.offsets[documents], 5) for documents in (3, 4, 5)]


class TestBuilding:
    @pytest.mark.parametrize("stop", [DataError, KeyboardInterrupt])
    def test_interrupted_or_empty(self, tokenizer, tmp_path, list_source, stop):
        class Interrupted(list_source):
            def documents(self):
                yield from self.texts[:3]
                raise stop("enough")

        folder = tmp_path / "file"
        with pytest.raises(DataError, match="a list: there are no documents"):
            build_tokens(list_source([]), tokenizer, folder)
        with pytest.raises(stop, match="enough"):
            build_tokens(Interrupted(TEXTS), tokenizer, folder)
        assert list(tmp_path.iterdir()) == []
        assert len(build_tokens(list_source(TEXTS), tokenizer, folder)) == 5

    def test_replaces_an_older_file(self, tokenizer, tmp_path, list_source):
        folder = tmp_path / "file"
        older = build_tokens(list_source(TEXTS[:2]), tokenizer, folder)
        newer = build_tokens(list_source(TEXTS), tokenizer, folder)
        assert (len(older), len(newer), len(open_tokens(folder))) == (2, 5, 5)
        assert older.document(1).tolist() == newer.document(1).tolist()  # still mapped
        assert list(tmp_path.iterdir()) == [folder]

    def test_overwrites_nothing_else(self, tokenizer, tmp_path, list_source):
        (tmp_path / "file").mkdir()
        (tmp_path / "file" / "thesis.txt").touch()
        with pytest.raises(DataError, match="file: not a token file, so it is not overwritten"):
            build_tokens(list_source(TEXTS), tokenizer, tmp_path / "file")
        with pytest.raises(DataError, match=r"thesis\.txt: not a token file"):
            build_tokens(list_source(TEXTS), tokenizer, tmp_path / "file" / "thesis.txt")


class TestDamage:
    @pytest.fixture
    def folder(self, tokenizer, tmp_path, list_source):
        return build_tokens(list_source(TEXTS), tokenizer, tmp_path / "file").folder

    @pytest.mark.parametrize("name", ["tokens.bin", "offsets.bin", "byte_lengths.bin", "meta.json"])
    def test_truncated_or_missing(self, folder, name):
        os.truncate(folder / name, (folder / name).stat().st_size - 1)
        with pytest.raises(DataError, match=rf"{name} is damaged or truncated"):
            open_tokens(folder)
        (folder / name).unlink()
        with pytest.raises(DataError, match=rf"{name} is missing"):
            open_tokens(folder)

    def test_of_another_version_or_without_checksums(self, folder):
        (folder / "meta.json").write_text('{"format": 2}')
        write_checksums(folder)
        with pytest.raises(DataError, match=r"meta\.json: format 2; this version of sqat reads 1"):
            open_tokens(folder)
        (folder / MANIFEST).unlink()
        with pytest.raises(DataError, match=rf"it has no {MANIFEST}"):
            open_tokens(folder)


class TestCache:
    def test_reuse(self, tokenizer, tmp_path, list_source):
        builds = []

        def built(texts, tokenizer=tokenizer):
            progress = lambda *_: builds.append(texts)  # noqa: E731
            return cached_tokens(list_source(texts), tokenizer, tmp_path, progress=progress).folder

        first = built(TEXTS)
        assert first.parent == tmp_path / "tokens"
        assert built(TEXTS) == first
        assert len(builds) == 1
        assert len({first, built(TEXTS[:3]), built(TEXTS, train_tokenizer(["other"], 263))}) == 3
        assert len(builds) == 3

    def test_of_builders_at_once_one_builds(self, tokenizer, tmp_path, list_source):
        builds = []
        progress = lambda *numbers: builds.append(numbers)  # noqa: E731
        build = lambda _: cached_tokens(list_source(TEXTS), tokenizer, tmp_path, progress=progress)  # noqa: E731
        with ThreadPoolExecutor(3) as pool:
            files = list(pool.map(build, range(3)))
        assert [len(file) for file in files] == [5, 5, 5]
        assert len(builds) == 1

    def test_damaged_file_is_built_again(self, tokenizer, tmp_path, list_source, caplog):
        caplog.set_level(logging.WARNING)
        folder = cached_tokens(list_source(TEXTS), tokenizer, tmp_path).folder
        os.truncate(folder / "tokens.bin", 7)
        again = cached_tokens(list_source(TEXTS), tokenizer, tmp_path)
        assert again.folder == folder
        assert len(again) == 5
        assert "made again: " in caplog.text
        assert "tokens.bin is damaged or truncated" in caplog.text
        assert open_tokens(folder).tokens.tolist() == again.tokens.tolist()
