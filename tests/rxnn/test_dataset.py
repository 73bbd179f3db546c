"""Documents as padded rows, from memory, files and `datasets`."""

import json

import pytest
import torch

from rxnn.training.dataset import AutoregressiveLMDataset
from rxnn.training.tokenizer import to_sqat
from sqat.errors import ConfigError, DataError


@pytest.fixture
def folder(stories, tmp_path, monkeypatch):
    """A data set in the Hub's layout, and a cache of its own."""
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path / "cache"))
    for split, texts in {"train": stories, "validation": stories[:3]}.items():
        lines = [json.dumps({"text": text, "title": text[:4]}) for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


class TestRows:
    def test_padded(self, tokenizer):
        row = AutoregressiveLMDataset(["Tom saw a cat."], tokenizer, max_seq_len=29)[0]
        ids = tokenizer.encode("Tom saw a cat.")
        assert row["input_ids"].tolist() == ids + [0] * (29 - len(ids))
        assert row["attention_mask"].tolist() == [1] * len(ids) + [0] * (29 - len(ids))
        assert torch.equal(row["targets"], row["input_ids"])
        assert row["targets"] is not row["input_ids"]

    def test_cut_as_rxnns_tokenizer_does(self, tokenizer, stories):
        dataset = AutoregressiveLMDataset(stories, tokenizer, max_seq_len=7)
        expected = tokenizer(stories, truncation=True, max_length=7, padding="max_length", return_tensors="pt")
        for i, row in enumerate(dataset):
            assert torch.equal(row["input_ids"], expected.input_ids[i])
            assert torch.equal(row["attention_mask"], expected.attention_mask[i])

    def test_works_with_torchs_loader_and_is_tokenised_before(self, tokenizer, stories):
        dataset = AutoregressiveLMDataset(stories, tokenizer, 17)
        assert next(iter(torch.utils.data.DataLoader(dataset, batch_size=5)))["input_ids"].shape == (5, 17)


class TestSources:
    def test_many_texts(self, tokenizer, stories):
        texts = stories * 100  # more than are tokenised at a time
        dataset = AutoregressiveLMDataset(texts, to_sqat(tokenizer), max_seq_len=64)
        assert len(dataset) == len(texts)
        assert dataset.tokens.document_bytes == sum(len(text.encode()) for text in texts)
        for i in (0, 1023, 1024, len(texts) - 1):
            assert tokenizer.decode(dataset[i]["input_ids"], skip_special_tokens=True) == texts[i]

    def test_datasets(self, tokenizer, stories):
        datasets = pytest.importorskip("datasets")
        source = datasets.Dataset.from_dict({"story": stories, "n": list(range(len(stories)))})
        dataset = AutoregressiveLMDataset(source, tokenizer, 64, hf_field="story")
        plain = AutoregressiveLMDataset(stories, tokenizer, 64)
        assert dataset.tokens.tokens.tolist() == plain.tokens.tokens.tolist()
        with pytest.raises(DataError, match="no column 'text'; the columns are: story, n"):
            AutoregressiveLMDataset(source, tokenizer)

    def test_local_folder_as_the_card_calls_it(self, folder, tokenizer, stories, caplog):
        options = {"tokenizer": tokenizer, "max_seq_len": 64}
        train = AutoregressiveLMDataset.from_hf_hub(str(folder), "subset", **options)
        assert "has no folder 'subset': the whole of it is read" in caplog.text
        valid = AutoregressiveLMDataset.from_hf_hub(str(folder), split="validation", **options)
        assert (len(train), len(valid)) == (len(stories), 3)
        assert tokenizer.decode(valid[1]["input_ids"], skip_special_tokens=True) == stories[1]

    def test_subset_is_a_folder_and_another_field_may_be_read(self, folder, tokenizer):
        dataset = AutoregressiveLMDataset.from_hf_hub(str(folder), target_field="title", tokenizer=tokenizer)
        assert tokenizer.decode(dataset[0]["input_ids"], skip_special_tokens=True) == "Once"
        (folder / "short").mkdir()
        (folder / "short" / "train.txt").write_text("Tom.")
        assert len(AutoregressiveLMDataset.from_hf_hub(str(folder), "short", tokenizer=tokenizer)) == 1

    def test_tokenised_once(self, folder, tokenizer, monkeypatch):
        first = AutoregressiveLMDataset.from_hf_hub(str(folder), tokenizer=tokenizer)

        monkeypatch.setattr("sqat.data.tokenizer.Tokenizer.encode_documents", lambda *_: pytest.fail("tokenised again"))
        again = AutoregressiveLMDataset.from_hf_hub(str(folder), tokenizer=tokenizer)
        assert again.tokens.folder == first.tokens.folder
        tokenizer.save_pretrained(folder / "tokenizer")  # and by its id: the same
        by_id = AutoregressiveLMDataset.from_hf_hub(str(folder), tokenizer_hub_id=str(folder / "tokenizer"))
        assert by_id.tokens.folder == first.tokens.folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: AutoregressiveLMDataset(["Tom"], t, max_seq_len=1), "max_seq_len is 1, but must be at least 2"),
        (lambda t: AutoregressiveLMDataset(["Tom"]), "tokenizer is None"),
        (lambda t: AutoregressiveLMDataset.from_hf_hub("stories"), "tokenizer is None"),
        (lambda t: AutoregressiveLMDataset([], t), "there are no documents"),
        (lambda t: AutoregressiveLMDataset(["Tom", 7], t), "text 1 is 7, but must be a string"),
        (lambda t: AutoregressiveLMDataset("Tom", t), "texts is one string, but must be a list"),
    ],
)
def test_unusable_arguments(tokenizer, make, message):
    with pytest.raises((ConfigError, DataError), match=message):
        make(tokenizer)
