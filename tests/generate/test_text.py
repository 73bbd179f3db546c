"""Text to text: prompts, ends, stop strings, and streams that say the same."""

from dataclasses import replace

import pytest
import tokenizers
import torch

from sqat.data.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from sqat.errors import ConfigError
from sqat.generate import SamplingConfig, generate, generate_each, stream
from sqat.generate.text import LEAVE_FROM, batches_of
from sqat.variants import preset

TEXT = "The cat sat on the mat. The dög sat on the 🐱.\nThe end."
STOPS = {  # stop strings, and how much of TEXT comes before the first of them
    (): TEXT,
    ("never",): TEXT,
    ("T",): "",
    (".",): "The cat sat on the mat",
    ("at sat",): "The c",
    ("mat. The dög",): "The cat sat on the ",
    ("🐱.\nT",): "The cat sat on the mat. The dög sat on the ",
    ("The end.",): "The cat sat on the mat. The dög sat on the 🐱.\n",
    ("the dog", "dög", "the mat!"): "The cat sat on the mat. The ",
    ("sat", "cat sat"): "The ",
    ("at on", "sat on the mat"): "The cat s",
    ("The end..",): TEXT,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["The cat sat on the mat. The dog sat on the cat.\n"] * 3, vocab_size=271)


@pytest.fixture
def model(tiny_model, tokenizer):
    return tiny_model(vocab_size=tokenizer.vocab_size)


@pytest.fixture
def says(monkeypatch):
    """`says([5, 17], …)`: the model's answer to the first prompt is these tokens, then nothing but token 5."""

    def script(*answers):
        def decode_tokens(model, prompts, config, choose=None):
            assert len(prompts) == len(answers)
            for i in range(config.max_tokens):
                yield torch.tensor([answer[i] if i < len(answer) else 5 for answer in answers])

        monkeypatch.setattr("sqat.generate.text.decode_tokens", decode_tokens)

    return script


@pytest.fixture
def prompts_read(monkeypatch):
    """The prompts that reach the model, which says nothing but [EOS]."""
    read: list[list[list[int]]] = []

    def decode_tokens(model, prompts, config, choose=None):
        read.append(prompts)
        return [torch.full((len(prompts),), EOS)]

    monkeypatch.setattr("sqat.generate.text.decode_tokens", decode_tokens)
    return read


def check_stream(model, tokenizer, config, expected):
    """What is streamed is never taken back, and is the answer in the end."""
    so_far = ""
    for piece in stream(model, tokenizer, "x", config):
        assert piece
        so_far += piece
        assert expected.startswith(so_far)
    assert so_far == expected


class TestEnds:
    def test_eos(self, model, tokenizer, says):
        tokens = tokenizer.encode(TEXT)
        says([*tokens, EOS])
        assert generate(model, tokenizer, ["x"]) == [("x", TEXT, tuple(tokens), "eos")]
        says([EOS])
        assert generate(model, tokenizer, ["x"]) == [("x", "", (), "eos")]
        assert list(stream(model, tokenizer, "x")) == []

    @pytest.mark.parametrize("max_tokens", range(1, 20))
    def test_length(self, model, tokenizer, says, max_tokens):
        tokens = tokenizer.encode("🐱 the dög")
        says(tokens)
        config = SamplingConfig(max_tokens=min(max_tokens, len(tokens)))
        (answer,) = generate(model, tokenizer, ["x"], config)
        assert answer.finish_reason == "length"
        assert answer.tokens == tuple(tokens[:max_tokens])
        assert answer.text == tokenizer.decode(answer.tokens, continuation=True)
        check_stream(model, tokenizer, config, answer.text)

    def test_rows_end_each_in_their_own_time(self, model, tokenizer, says):
        cat, dog = tokenizer.encode("The cat."), tokenizer.encode("The dog sat.")
        says([*cat, EOS], [*dog, EOS], [EOS])
        expected = [("a", "The cat.", tuple(cat)), ("b", "The dog sat.", tuple(dog)), ("c", "", ())]
        assert [answer[:3] for answer in generate(model, tokenizer, ["a", "b", "c"])] == expected

    def test_decoding_stops_when_all_have_ended(self, model, tokenizer, monkeypatch):
        steps = []

        def decode_tokens(*_, choose):
            for step in range(100):
                steps.append(step)
                yield torch.tensor([EOS if step >= 2 else 5, EOS])

        monkeypatch.setattr("sqat.generate.text.decode_tokens", decode_tokens)
        generate(model, tokenizer, ["a", "b"])
        assert steps == [0, 1, 2]


class TestStop:
    @pytest.mark.parametrize("stop", STOPS)
    @pytest.mark.parametrize("ended", [True, False], ids=["eos", "length"])
    def test_the_answer_ends_before_the_first_stop_string(self, model, tokenizer, says, stop, ended):
        tokens = [*tokenizer.encode(TEXT), *([EOS] if ended else [])]
        says(tokens)
        config = SamplingConfig(stop=stop, max_tokens=len(tokens))
        (answer,) = generate(model, tokenizer, ["x"], config)
        assert answer.text == STOPS[stop]
        assert answer.finish_reason == ("stop" if answer.text != TEXT else "eos" if ended else "length")
        check_stream(model, tokenizer, config, STOPS[stop])

    @pytest.mark.parametrize(("text", "stop", "before"), [("xaaab!", "aab", "xa"), ("xababac!", "abac", "xab")])
    def test_stop_strings_that_begin_like_themselves(self, model, tokenizer, says, text, stop, before):
        says([*map(tokenizer.backend.token_to_id, text)])
        config = SamplingConfig(stop=(stop,), max_tokens=len(text))
        assert generate(model, tokenizer, ["x"], config)[0].text == before
        check_stream(model, tokenizer, config, before)

    def test_text_is_handed_out_as_soon_as_it_is_certain(self, model, tokenizer, says):
        says([*tokenizer.encode("a b c d"), EOS])
        pieces = list(stream(model, tokenizer, "x", SamplingConfig(stop=("b d", "!"))))
        assert pieces == ["a", " ", "b c", " ", "d"]


class TestPrompts:
    def test_bos_comes_first_and_alone_for_an_empty_prompt(self, model, tokenizer, prompts_read):
        generate(model, tokenizer, ["The cat", "dog"])
        generate(model, tokenizer, [""])
        list(stream(model, tokenizer, ""))
        assert prompts_read == [[[BOS, *tokenizer.encode(text)] for text in ("The cat", "dog")], [[BOS]], [[BOS]]]

    @pytest.mark.parametrize(
        ("prefix_space", "prompt", "text"),
        [(False, "", " cat"), (False, "The", " cat"), (True, "", "cat"), (True, "The", " cat")],
    )
    def test_a_leading_space_is_part_of_the_text(self, model, tokenizer, says, prefix_space, prompt, text):
        """But for a tokenizer that puts one before every text, as the original's, where the answer begins the text."""
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        says([*tokenizer.encode(" cat"), EOS])
        assert generate(model, Tokenizer(backend), prompt).text == text


class TestModel:
    """With a model whose tokens are anything: half characters, special tokens."""

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("stop", [(), ("a", "e"), ("\ufffd",)], ids=str)
    def test_streamed_is_generated(self, model, tokenizer, seed, stop):
        config = SamplingConfig(temperature=1.0, top_p=1.0, seed=seed, max_tokens=31, stop=stop)
        (answer,) = generate(model, tokenizer, ["The cat"], config)
        assert "".join(stream(model, tokenizer, "The cat", config)) == answer.text
        assert not any(text in answer.text for text in stop)

    def test_rows_that_leave_a_batch_change_no_other(self, model, tokenizer):
        prompts = ["cat " * n for n in range(LEAVE_FROM + 5)]
        config = SamplingConfig(temperature=1.0, top_p=1.0, seed=3, max_tokens=40, stop=("a", "e", "o"))
        answers = generate(model, tokenizer, prompts, config)
        ends = sorted(len(answer.tokens) for answer in answers)
        assert ends[len(ends) // 2] < ends[-1] - 1  # so most left before the last
        for i, answer in enumerate(answers):
            assert [answer] == generate(model, tokenizer, [prompts[i]], replace(config, seed=3 + i))

    @pytest.mark.parametrize("batch_size", [1, 3, None])
    def test_answers_come_in_order_whatever_the_batches(self, model, tokenizer, batch_size):
        prompts = ["cat " * n for n in (2, 90, 1, 40, 0)]
        config = SamplingConfig(seed=5, max_tokens=3)
        answers = list(generate_each(model, tokenizer, prompts, config, batch_size=batch_size))
        assert answers == generate(model, tokenizer, prompts, config)
        assert [answer.prompt for answer in answers] == prompts

    def test_batch_size_below_one(self, model, tokenizer):
        with pytest.raises(ConfigError, match="batch_size is 0, but must be a whole number of at least 1"):
            generate(model, tokenizer, ["x"], batch_size=0)

    def test_a_long_prompt_does_not_pad_short_ones(self, model):
        lengths = [5, 1000, 7, 64, 65, 3, 700]
        assert batches_of(lengths, model.config, 10, None) == [[0, 2, 3, 5], [1, 6], [4]]
        assert batches_of(lengths, model.config, 10, 2) == [[0, 5], [1, 6], [2, 3], [4]]

    def test_batches_are_bounded_by_memory(self):
        sizes = [len(batch) for batch in batches_of([30] * 1000, preset("sqat-s"), 256, None)]
        assert 100 < sizes[0] < 400
        assert sum(sizes) == 1000

    def test_ids_that_the_tokenizer_lacks_are_never_drawn(self, tiny_model, tokenizer):
        larger = tiny_model(vocab_size=tokenizer.vocab_size + 300)
        for temperature in (0.0, 1.0):
            config = SamplingConfig(temperature=temperature, top_p=1.0, seed=1, max_tokens=50, repetition_penalty=1.1)
            answers = generate(larger, tokenizer, ["cat", "dog"], config)
            assert max(max(answer.tokens) for answer in answers) < tokenizer.vocab_size
            streamed = "".join(stream(larger, tokenizer, "cat", config))
            assert streamed == generate(larger, tokenizer, "cat", config).text

    def test_no_prompts_or_a_tokenizer_of_another_model(self, tiny_model, tokenizer):
        with pytest.raises(ConfigError, match="prompts is empty"):
            generate(tiny_model(), tokenizer, [])
        with pytest.raises(ConfigError, match="the tokenizer has 271 entries, but the model's vocab_size is 41"):
            generate(tiny_model(), tokenizer, "The cat")
