"""Byte-level BPE: exact round trips, the original's files, streaming, damaged files."""

import json
import random
import signal
import time

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors, trainers

from sqat.checksums import check_files, write_checksums
from sqat.data import tokenizer as tokenizer_module
from sqat.data.stories import story
from sqat.data.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS, UNK, TextStream, Tokenizer, train_tokenizer
from sqat.errors import CheckpointError, ConfigError, DataError

TEXT = "The cat sat on the mat. The dog sat on the cat.\n"
NASTY = [
    "",
    " ",
    "  leading and trailing  ",
    "\n\n\ttabs\r\nand\rline ends\n",
    "".join(map(chr, range(0x20))) + "\x7f\x80\x9f\xa0\xad",
    "emoji 👩‍👩‍👧‍👦🏳️‍🌈 and flags 🇵🇱",
    "combining e\u0301 and \u00e9, \u202eright to left\u202c",
    "[PAD][UNK][BOS] The [EOS]<|endoftext|>",
    "Ġ Ċ are not bytes",
    "\ufeff\ufffd\ufffe\U0010ffff",
    "中文字符" * 7,
    "a" * 997 + " " * 991,
]


def random_texts(count):
    draw = random.Random(0)
    pools = ["abc \n", "\u00e9ß…", "😀🙂", "".join(map(chr, range(0x100))), " \t"]
    return ["".join(draw.choice(draw.choice(pools)) for _ in range(draw.randrange(23))) for _ in range(count)]


def originals_tokenizer(texts):
    """As the original system makes them: with prefix space and full alphabet, without decoder."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=283, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    return backend


@pytest.fixture
def original(tmp_path):
    backend = originals_tokenizer([TEXT] * 3)
    backend.enable_padding(length=31)
    backend.enable_truncation(31)
    backend.save(str(tmp_path / "tokenizer.json"))
    return Tokenizer.load(tmp_path)


class TestTraining:
    def test_ids_and_the_same_tokenizer_from_the_same_documents(self, tokenizer):
        ids = (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id)
        assert ids == (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
        assert tokenizer.vocab_size == 271
        assert len(tokenizer.encode(TEXT)) < len(TEXT)
        assert train_tokenizer(iter([TEXT] * 3), 271).fingerprint() == tokenizer.fingerprint()
        assert train_tokenizer([TEXT] * 3, 269).fingerprint() != tokenizer.fingerprint()

    def test_vocabularies_that_are_too_small_or_large_for_the_text(self, caplog):
        with pytest.raises(ConfigError, match="vocab_size is 259; it must be at least 260"):
            train_tokenizer([TEXT], 259)
        with pytest.raises(ConfigError, match=f"vocab_size is {10**40}; .* at most 4,194,304"):
            train_tokenizer([TEXT], 10**40)
        assert train_tokenizer([TEXT], 260).vocab_size == 260
        assert train_tokenizer(["ab ab"], 293).vocab_size == 258 + 4  # one merge: ab; another: space ab
        assert "a vocabulary of 262 entries, not 293" in caplog.text

    def test_no_documents_or_an_error_in_them(self):
        with pytest.raises(DataError, match="no documents to train"):
            train_tokenizer(iter(()))

        def documents():
            yield TEXT
            raise DataError("line 7 is bad")

        with pytest.raises(DataError, match="line 7 is bad"):
            train_tokenizer(documents())


class TestEncodeAndDecode:
    def test_round_trip(self, tokenizer):
        texts = NASTY + random_texts(499)
        ids, documents = [tokenizer.encode(text) for text in texts], tokenizer.encode_documents(texts)
        assert documents == [[BOS, *each, EOS] for each in ids]
        for kind in (ids, documents):
            assert [tokenizer.decode(each) for each in kind] == texts

    def test_bytes(self, tokenizer):
        assert min(tokenizer.encode("[PAD][UNK][BOS][EOS]")) > EOS  # in text they are ordinary characters
        assert [tokenizer.token_bytes(i) for i in range(4)] == [b""] * 4
        assert sorted(tokenizer.token_bytes(i) for i in range(4, 260)) == [bytes([byte]) for byte in range(256)]
        assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("The é"))) == "The é".encode()

    def test_incomplete_characters_and_ids_outside_the_vocabulary(self, tokenizer):
        assert tokenizer.decode(tokenizer.encode("a🙂")[:-1]) == "a\ufffd"
        assert tokenizer.decode([271]) == "\ufffd"
        with pytest.raises(DataError, match="token id -100 is negative"):
            tokenizer.decode([4, -100])

    def test_surrogates(self, tokenizer):
        with pytest.raises(DataError, match="half a surrogate pair at character 3"):
            tokenizer.encode("abc\ud83d")
        with pytest.raises(DataError, match="half a surrogate pair at character 1"):
            tokenizer.encode_documents(["fine", "a\udc80"])
        with pytest.raises(TypeError):
            tokenizer.encode(None)


class TestOriginal:
    def test_decodes_without_the_added_space_and_neither_pads_nor_truncates(self, original):
        for text in NASTY + random_texts(499):
            assert original.decode(original.encode(text)) == text.removeprefix(" ")
        ids = original.encode("The cat sat")
        assert original.decode(ids[:2]) + original.decode(ids[2:], continuation=True) == "The cat sat"
        assert [len(ids) for ids in original.encode_documents(["", "cat", "x" * 97])] == [2, 3, 100]

    def test_saved_again(self, original, tmp_path):
        again = Tokenizer.load(original.save(tmp_path / "again"))
        assert again.fingerprint() == original.fingerprint()
        assert again.backend.decode(again.encode("The cat")).strip() == "The cat"


class TestStream:
    @pytest.mark.parametrize("continuation", [False, True])
    def test_equals_decode(self, tokenizer, original, continuation):
        draw = random.Random(1)
        for tokenizer_ in (tokenizer, original):
            texts = [tokenizer_.encode(text) for text in NASTY]
            noise = [[draw.randrange(tokenizer_.vocab_size) for _ in range(draw.randrange(17))] for _ in range(499)]
            for ids in texts + noise:
                stream = TextStream(tokenizer_, continuation=continuation)
                streamed = "".join(map(stream.push, ids)) + stream.flush()
                assert streamed == tokenizer_.decode(ids, continuation=continuation)

    def test_only_whole_characters(self, tokenizer):
        stream = TextStream(tokenizer)
        assert [stream.push(i) for i in tokenizer.encode("é🙂")] == ["", "é", "", "", "", "🙂"]
        assert stream.flush() == ""
        stream.push(tokenizer.encode("🙂")[0])
        assert stream.flush() == "\ufffd"


class TestFiles:
    def test_save_and_load(self, tokenizer, tmp_path):
        path = tokenizer.save(tmp_path / "new" / "folder")
        assert path == tmp_path / "new" / "folder" / "tokenizer.json"
        for place in (path, path.parent, str(path.parent)):
            assert Tokenizer.load(place).fingerprint() == tokenizer.fingerprint()
        tokenizer.save(path.parent)
        assert sorted(file.name for file in path.parent.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]

    def test_in_a_folder_with_a_list_of_checksums_that_stays_true(self, tokenizer, tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"1")
        tokenizer.save(tmp_path)
        write_checksums(tmp_path)
        train_tokenizer(["other"], 263).save(tmp_path)
        check_files(tmp_path)
        assert Tokenizer.load(tmp_path).fingerprint() != tokenizer.fingerprint()
        (tmp_path / "model.safetensors").write_bytes(b"2")
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
            check_files(tmp_path)

    def test_transformers_reads_it(self, tokenizer, tmp_path):
        transformers = pytest.importorskip("transformers")
        tokenizer.save(tmp_path)
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
        assert [theirs.pad_token_id, theirs.unk_token_id, theirs.bos_token_id, theirs.eos_token_id] == [0, 1, 2, 3]
        ids = tokenizer.encode_documents([TEXT])[0]
        assert theirs(TEXT)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == TEXT

    def test_missing_or_damaged(self, tmp_path):
        with pytest.raises(DataError, match=r"tokenizer\.json: no readable tokenizer"):
            Tokenizer.load(tmp_path)
        for content in (b"", b"{", b"[]", b"{}", b"\xff"):
            (tmp_path / "mine.json").write_bytes(content)
            with pytest.raises(DataError, match=r"mine\.json: (damaged|no readable)"):
                Tokenizer.load(tmp_path / "mine.json")

    def test_other_special_tokens_or_not_byte_level(self, tokenizer, tmp_path):
        path = tokenizer.save(tmp_path)
        path.write_text(path.read_text(encoding="utf-8").replace("[EOS]", "[END]"), encoding="utf-8")
        with pytest.raises(DataError, match=r"tokenizer\.json: the ids 0 to 3 are .*'\[END\]'.* must be .*'\[EOS\]'"):
            Tokenizer.load(path)
        vocabulary = {token: number for number, token in enumerate([*SPECIAL_TOKENS, "cat"])}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.save(str(tmp_path / "words.json"))
        message = r"words\.json: a byte-level BPE is needed; this is WordLevel over Whitespace"
        with pytest.raises(DataError, match=message):
            Tokenizer.load(tmp_path / "words.json")

    def test_added_tokens_and_gaps(self, tokenizer, tmp_path):
        path = tokenizer.save(tmp_path)
        state = json.loads(path.read_text(encoding="utf-8"))
        ordinary = {**state["added_tokens"][0], "id": 271, "content": "größer", "special": False}
        state["added_tokens"].append(ordinary)
        path.write_text(json.dumps(state), encoding="utf-8")
        loaded = Tokenizer.load(path)
        assert loaded.vocab_size == 272
        assert loaded.encode("größer") == [271]
        assert loaded.decode([271]) == "größer"


def test_long_texts_are_encoded_in_chunks_to_the_same_ids(monkeypatch):
    stories = [story(i) for i in range(20)]
    tokenizer = train_tokenizer(stories, 400)
    text = "\n\n".join(stories) + "  two  spaces \t" + "x" * 40
    whole = tokenizer.encode(text)
    monkeypatch.setattr(tokenizer_module, "CHUNK", 53)
    assert [*map(list, tokenizer.encode_documents([text, "short"]))] == [
        [2, *whole, 3],
        [2, *tokenizer.encode("short"), 3],
    ]
    runs = "é" * 200  # no place to cut: still all of the text
    assert tokenizer.decode(tokenizer.encode(runs)) == runs


@pytest.mark.parametrize("run", ["ab" * 1500, " " * 3000, "\n" * 3000, "字" * 3000])
def test_words_without_end_are_cut_to_learn_from(run, monkeypatch):
    seen = []

    def learn(call, pieces, trainer):
        seen.extend(pieces)
        call(seen, trainer)

    monkeypatch.setattr(tokenizer_module, "_interruptible", learn)
    train_tokenizer([f"before {run} after", "other"], 300)
    assert "".join(seen) == f"before {run} afterother"
    assert max(map(len, seen)) < 1010


def test_learning_can_be_interrupted():
    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            tokenizer_module._interruptible(time.sleep, 30)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 10


def test_learning_shows_progress(monkeypatch):
    calls = []
    train_tokenizer((f"document {i}" for i in range(2001)), 300, progress=lambda *counts: calls.append(counts))
    assert calls == [(1000, 0, None), (2000, 0, None)]
