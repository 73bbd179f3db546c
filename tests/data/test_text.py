"""Which source a spec names, and what every source has in common."""

import logging
import os
import sys
import types
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sqat.data.text import NoSplitError, find_shards, open_source
from sqat.errors import ConfigError, DataError


def documents(spec, split="train", **options):
    return list(open_source(str(spec), split, **options).documents())


def write_texts(folder, *names):
    """Files that hold their names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"text": "{name}"}}' if name.endswith(".jsonl") else name)


def write_parquet(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)
    return path


@pytest.fixture
def generator(monkeypatch):
    """A stand-in for the story generator, whose texts are another test's matter."""
    story = lambda index, seed=0, split="train": f"{split} story {index} of seed {seed}"  # noqa: E731
    fake = types.SimpleNamespace(GENERATOR_VERSION=1, story=story)
    monkeypatch.setitem(sys.modules, "sqat.data.stories", fake)
    return fake


class TestStories:
    def test_counts_and_streams(self, generator):
        assert documents("stories:2", seed=5) == ["train story 0 of seed 5", "train story 1 of seed 5"]
        assert documents("stories:1", "validation") == ["validation story 0 of seed 0"]
        assert len(documents("stories", "validation")) == 1000
        assert open_source("stories").name == "stories:100000 (train)"
        assert len(documents("stories", limit=7)) == 7

    @pytest.mark.parametrize("spec", ["stories:", "stories:0", "stories:-3", "stories:many", "stories:1.5"])
    def test_count_must_be_a_number(self, spec):
        with pytest.raises(DataError, match='write "stories" or "stories:COUNT"'):
            open_source(spec)

    def test_fingerprint_and_an_unknown_split(self, generator):
        def fingerprint(spec="stories:5", **options):
            return open_source(spec, **options).fingerprint()

        first = fingerprint()
        assert first == fingerprint()
        others = [fingerprint(**options) for options in ({"split": "validation"}, {"seed": 1}, {"limit": 3})]
        others.append(fingerprint("stories:6"))
        generator.GENERATOR_VERSION = 2
        assert len({first, *others, fingerprint()}) == 6
        with pytest.raises(DataError, match="stories has no split 'test'; it has: train, validation"):
            open_source("stories", "test")


class TestArguments:
    @pytest.mark.parametrize(("name", "value"), [("limit", 0), ("limit", -2), ("encoding_errors", "ignore")])
    def test_unusable(self, name, value):
        with pytest.raises(ConfigError, match=f"{name} is {value!r}; it must be"):
            open_source("stories", **{name: value})
        assert len(documents("stories:7", limit=10**40)) == 7  # beyond all numbers of the machine

    def test_missing_paths_and_nonsense(self):
        for spec in ("./here", "../here", "/nowhere/here", "a/b/c", "here.txt", "owner/here.jsonl.gz"):
            with pytest.raises(DataError, match=f"{spec}: no such file or folder"):
                open_source(spec)
        for spec in ("", "two words", "owner/name:a:b"):
            with pytest.raises(DataError, match=r"neither .* nor a Hub data set"):
                open_source(spec)


class TestSingleFile:
    def test_is_the_training_split_and_has_a_known_suffix(self, tmp_path):
        write_texts(tmp_path, "any.txt", "table.csv")
        assert documents(tmp_path / "any.txt") == ["any.txt"]
        with pytest.raises(DataError, match=r"any\.txt: a single file .* has no split 'validation'"):
            open_source(str(tmp_path / "any.txt"), "validation")
        with pytest.raises(DataError, match=r"table\.csv: the name must end in \.parquet, or in \.jsonl or \.txt"):
            open_source(str(tmp_path / "table.csv"))

    def test_fingerprint_follows_the_content(self, tmp_path):
        path = tmp_path / "text.txt"
        path.write_text("one")
        first = open_source(str(path)).fingerprint()
        assert first == open_source(str(path)).fingerprint()
        assert first != open_source(str(path), encoding_errors="replace").fingerprint()
        path.write_text("other")
        assert first != open_source(str(path)).fingerprint()

    def test_blank_documents_are_skipped_before_the_limit(self, tmp_path):
        path = write_parquet(tmp_path / "any.parquet", ["", "one", " \n\t", "two", "three"])
        assert documents(path) == ["one", "two", "three"]
        assert documents(path, limit=2) == ["one", "two"]
        source = open_source(str(path))
        assert list(source.documents()) == list(source.documents())  # it can be read twice


class TestFolder:
    def test_names_of_splits(self, tmp_path):
        names = {"train": "Train.jsonl", "validation": "VAL_2.txt", "test": "My_Test_2.txt"}
        names["heldback"] = "heldback-00000-of-00001.txt"
        write_texts(tmp_path, *names.values(), "trainers.txt")
        assert {split: documents(tmp_path, split) for split in names} == {split: [names[split]] for split in names}

    def test_a_split_in_several_formats_or_a_file_named_for_two_splits_is_refused(self, tmp_path):
        write_texts(tmp_path, "train.jsonl", "train.txt")
        message = r"comes as \.jsonl, \.txt \(train\.jsonl, train\.txt\).*name one of them"
        with pytest.raises(DataError, match=message):
            open_source(str(tmp_path))
        assert documents(tmp_path / "*.jsonl") == ["train.jsonl"]
        write_texts(tmp_path / "other", "train-test.txt")
        with pytest.raises(DataError, match=r"train-test\.txt is named for test and train: give it a name with one"):
            open_source(str(tmp_path / "other"))

    @pytest.mark.parametrize(
        "names",
        [
            ["TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"],
            ["wiki.train.txt", "wiki.valid.txt", "wiki.test.txt"],
            ["en_train.jsonl", "en_val.jsonl", "de_dev.jsonl", "my eval set.jsonl"],
            ["train/a.txt", "train/more/b.txt", "en_val/a.txt", "test-1/valid.txt", "notes.txt"],
            ["data/train-00001-of-00002.parquet", "data/train-00000-of-00002.parquet", "data/test-0.parquet"],
            ["data/train-00000-of-00001-abc.parquet", "data/validation-00000-of-00001.parquet", "train.txt"],
            ["data/train.txt", "data/dev.txt"],
            ["Moby Dick.txt", "Training for a marathon.txt", "more/b.txt", "trainers.txt", "invalid.txt"],
            ["._train.txt", ".git/test.txt", "validation.txt"],
        ],
        ids=lambda names: names[0],
    )
    def test_files_are_sorted_into_splits_as_datasets_does(self, tmp_path, names):
        data_files = pytest.importorskip("datasets.data_files")
        write_texts(tmp_path, *names)
        patterns = data_files.get_data_patterns(str(tmp_path))
        expected = data_files.DataFilesDict.from_patterns(patterns, base_path=str(tmp_path))
        for split in ("train", "validation", "test"):
            if split in expected:
                assert [str(path) for path in find_shards(tmp_path, split)] == sorted(expected[split])
            else:
                with pytest.raises(NoSplitError, match=f"no split '{split}'; it has: "):
                    find_shards(tmp_path, split)

    def test_what_is_read_and_what_is_not_is_said(self, tmp_path, caplog):
        write_texts(tmp_path, "train.txt", "b.txt", "table.csv", "README.md", "more/c.txt", ".hidden.txt")
        with caplog.at_level(logging.INFO):
            assert documents(tmp_path) == ["train.txt"]
        left_out, read = caplog.messages
        assert left_out.endswith("left out, as they belong to no split or are no text: b.txt, more/c.txt, table.csv")
        assert read.endswith("the split 'train' is train.txt")

    def test_patterns(self, tmp_path, monkeypatch):
        write_texts(tmp_path, "a/1.jsonl", "a/2.jsonl", "b/3.jsonl", "b/val.jsonl")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert documents("~/a/*.jsonl") == documents(tmp_path / "a") == ["a/1.jsonl", "a/2.jsonl"]
        assert documents(tmp_path / "**" / "[12].jsonl") == ["a/1.jsonl", "a/2.jsonl"]
        assert documents(tmp_path / "b" / "*", "validation") == ["b/val.jsonl"]
        with pytest.raises(DataError, match=r"no \.parquet, \.jsonl, \.txt files match it"):
            open_source(str(tmp_path / "*.txt"))

    def test_files_named_for_no_split_are_training_text(self, tmp_path):
        write_texts(tmp_path, "notes.md")
        with pytest.raises(DataError, match=r"no \.parquet, \.jsonl, \.txt files in it"):
            open_source(str(tmp_path))
        write_texts(tmp_path, "b.txt", "a.txt")
        (tmp_path / os.fsdecode(b"\xff.txt")).write_text("its name is not UTF-8")
        source = open_source(str(tmp_path))
        assert list(source.documents()) == ["a.txt", "b.txt", "its name is not UTF-8"]
        assert source.fingerprint()

    def test_real_stories(self, tinystories):
        assert len(documents(tinystories)) == 16792
        assert len(documents(tinystories, "validation")) == 1000


class TestHub:
    def test_without_datasets(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(DataError, match=r"'some/set' .* pip install datasets"):
            open_source("some/set")

    def test_unreachable_hub(self, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=ConnectionError("no network")))
        with pytest.raises(DataError, match=r"'some/set' \(subset 'small', split 'train'\).*no network") as caught:
            open_source("some/set:small")
        assert isinstance(caught.value.__cause__, ConnectionError)

    @pytest.fixture
    def hub(self, monkeypatch, tmp_path):
        """A Hub of one data set, "some/set", that is a folder on this machine."""
        datasets = pytest.importorskip("datasets")
        write_parquet(tmp_path / "set" / "train.parquet", ["one", "", "two\r\n", "three"])
        load = datasets.load_dataset

        def load_local(dataset_id, subset, split):
            assert dataset_id == "some/set"
            return load(str(tmp_path / "set"), subset, split=split, cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load_local)

    def test_documents_and_fingerprint(self, hub, tmp_path):
        source = open_source("some/set")
        assert source.name == "some/set (train)"
        assert list(source.documents()) == list(source.documents()) == ["one", "two\r\n", "three"]
        assert documents("some/set", limit=1) == ["one"]
        first = source.fingerprint()
        assert first == open_source("some/set").fingerprint()
        write_parquet(tmp_path / "set" / "train.parquet", ["one", "", "2\r\n", "three", "four"])
        assert first != open_source("some/set").fingerprint()

    def test_missing_parts(self, hub):
        with pytest.raises(DataError, match="no field 'story'; the fields are: text"):
            open_source("some/set", field="story")
        with pytest.raises(DataError, match=r"'some/set'.*split 'validation'"):
            open_source("some/set", "validation")
        with pytest.raises(DataError, match=r"'some/set'.*subset 'small'"):
            open_source("some/set:small")


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    assert [*open_source(str(tmp_path), "train").documents()] == ["one"]
    assert "left out, as they belong to no split or are no text: gone.txt, pipe.txt" in caplog.text
    with pytest.raises(DataError, match=r"pipe\.txt: not a regular file"):
        open_source(str(tmp_path / "pipe.txt"), "train")
