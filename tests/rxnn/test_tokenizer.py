"""Tokenizers of `transformers` that decode what they encode, and the way to this package's own and back."""

import json

import pytest
import tokenizers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from rxnn.training.tokenizer import load_tokenizer_from_file, load_tokenizer_from_hf_hub, to_sqat
from sqat.errors import CheckpointError, ConfigError, DataError

TEXTS = ["Once upon a time Tom saw a cat.", "  two  spaces\n\nand lines ", "naïve – 日本 🙂", "", " a"]


@pytest.fixture
def originals_file(tokenizer, tmp_path):
    """A tokenizer.json as the original writes it: a space before every text, and no decoder."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    state = json.loads(backend.to_str())
    state["decoder"] = None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(state))
    return path


class TestTransformersTokenizer:
    @pytest.mark.parametrize("text", TEXTS)
    def test_decodes_what_it_encodes(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text

    @pytest.mark.parametrize("text", [text for text in TEXTS if not text.startswith(" ")])
    def test_so_does_the_originals(self, originals_file, text):
        tokenizer = load_tokenizer_from_file(originals_file)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=True) == to_sqat(tokenizer).decode(ids) == text

    def test_special_tokens_and_conversion_leaves_it_alone(self, tokenizer):
        ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert ids == (0, 1, 2, 3)
        batch = tokenizer(["Tom", "Tom saw a cat."], padding=True, return_tensors="pt").input_ids
        assert batch[:, 0].tolist() == [2, 2]
        assert batch[:, -1].tolist() == [0, 3]

    @pytest.mark.parametrize("folder", [False, True])
    def test_same_ids_after_saving(self, tokenizer, tmp_path, folder):
        tokenizer.save_pretrained(tmp_path)
        for loaded in (
            load_tokenizer_from_file(tmp_path if folder else tmp_path / "tokenizer.json"),
            load_tokenizer_from_hf_hub(str(tmp_path)),
            AutoTokenizer.from_pretrained(tmp_path),
        ):
            assert loaded.encode(TEXTS[0]) == tokenizer.encode(TEXTS[0])
        before = tokenizer.backend_tokenizer.to_str()
        own = to_sqat(tokenizer)
        assert own.encode("Tom") == tokenizer.encode("Tom")[1:-1]
        assert tokenizer.backend_tokenizer.to_str() == before
        assert to_sqat(own) is own

    def test_something_else_or_damaged(self, tmp_path):
        with pytest.raises(ConfigError, match="tokenizer is 'gpt2', but must be the model's"):
            to_sqat("gpt2")
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(DataError, match=r"tokenizer.json: damaged, or not a tokenizer"):
            load_tokenizer_from_file(tmp_path / "tokenizer.json")
        with pytest.raises(CheckpointError, match="is no local folder"):
            load_tokenizer_from_hf_hub("somebody/something", local_files_only=True, cache_dir=tmp_path)
