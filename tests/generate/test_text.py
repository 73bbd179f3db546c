"""Text to text: prompts, ends, stop strings, and streams that say the same."""

import pytest
import tokenizers
import torch

from sqat.data.tokenizer import BOS, EOS, Tokenizer, train_tokenizer
from sqat.errors import ConfigError
from sqat.generate import SamplingConfig, generate, stream

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
        def decode_tokens(model, prompts, config):
            assert len(prompts) == len(answers)
            for i in range(config.max_tokens):
                yield torch.tensor([answer[i] if i < len(answer) else 5 for answer in answers])

        monkeypatch.setattr("sqat.generate.text.decode_tokens", decode_tokens)

    return script


@pytest.fixture
def prompts_read(monkeypatch):
    """The prompts that reach the model, which says nothing but [EOS]."""
    read: list[list[list[int]]] = []

    def decode_tokens(model, prompts, config):
        read.append(prompts)
        return [torch.full((len(prompts),), EOS)]

    monkeypatch.setattr("sqat.generate.text.decode_tokens", decode_tokens)
    return read


def check_stream(tokenizer, config, expected):
    """What is streamed is never taken back, and is the answer in the end."""
    so_far = ""
    for piece in stream(None, tokenizer, "x", config):
        assert piece
        so_far += piece
        assert expected.startswith(so_far)
    assert so_far == expected


class TestEnds:
    def test_eos(self, tokenizer, says):
        tokens = tokenizer.encode(TEXT)
        says([*tokens, EOS])
        assert generate(None, tokenizer, "x") == [("x", TEXT, tuple(tokens), "eos")]
        says([EOS])
        assert generate(None, tokenizer, "x") == [("x", "", (), "eos")]
        assert list(stream(None, tokenizer, "x")) == []

    @pytest.mark.parametrize("max_tokens", range(1, 20))
    def test_length(self, tokenizer, says, max_tokens):
        tokens = tokenizer.encode("🐱 the dög")
        says(tokens)
        config = SamplingConfig(max_tokens=min(max_tokens, len(tokens)))
        (answer,) = generate(None, tokenizer, "x", config)
        assert answer.finish_reason == "length"
        assert answer.tokens == tuple(tokens[:max_tokens])
        assert answer.text == tokenizer.decode(answer.tokens, continuation=True)
        check_stream(tokenizer, config, answer.text)

    def test_rows_end_each_in_their_own_time(self, tokenizer, says):
        cat, dog = tokenizer.encode("The cat."), tokenizer.encode("The dog sat.")
        says([*cat, EOS], [*dog, EOS], [EOS])
        expected = [("a", "The cat.", tuple(cat)), ("b", "The dog sat.", tuple(dog)), ("c", "", ())]
        assert [answer[:3] for answer in generate(None, tokenizer, ["a", "b", "c"])] == expected

    def test_decoding_stops_when_all_have_ended(self, tokenizer, monkeypatch):
        steps = []

        def decode_tokens(*_):
            for step in range(100):
                steps.append(step)
                yield torch.tensor([EOS if step >= 2 else 5, EOS])

        monkeypatch.setattr("sqat.generate.text.decode_tokens", decode_tokens)
        generate(None, tokenizer, ["a", "b"])
        assert steps == [0, 1, 2]


class TestStop:
    @pytest.mark.parametrize("stop", STOPS)
    @pytest.mark.parametrize("ended", [True, False], ids=["eos", "length"])
    def test_the_answer_ends_before_the_first_stop_string(self, tokenizer, says, stop, ended):
        tokens = [*tokenizer.encode(TEXT), *([EOS] if ended else [])]
        says(tokens)
        config = SamplingConfig(stop=stop, max_tokens=len(tokens))
        (answer,) = generate(None, tokenizer, "x", config)
        assert answer.text == STOPS[stop]
        assert answer.finish_reason == ("stop" if answer.text != TEXT else "eos" if ended else "length")
        check_stream(tokenizer, config, STOPS[stop])

    @pytest.mark.parametrize(("text", "stop", "before"), [("xaaab!", "aab", "xa"), ("xababac!", "abac", "xab")])
    def test_stop_strings_that_begin_like_themselves(self, tokenizer, says, text, stop, before):
        says([*map(tokenizer.backend.token_to_id, text)])
        config = SamplingConfig(stop=(stop,), max_tokens=len(text))
        assert generate(None, tokenizer, "x", config)[0].text == before
        check_stream(tokenizer, config, before)

    def test_text_is_handed_out_as_soon_as_it_is_certain(self, tokenizer, says):
        says([*tokenizer.encode("a b c d"), EOS])
        pieces = list(stream(None, tokenizer, "x", SamplingConfig(stop=("b d", "!"))))
        assert pieces == ["a", " ", "b c", " ", "d"]

    def test_tokens_of_the_stop_string_are_kept(self, tokenizer, says):
        tokens = tokenizer.encode("a b c")
        says(tokens)
        (answer,) = generate(None, tokenizer, "x", SamplingConfig(stop=("c",)))
        assert answer.tokens == tuple(tokens)


class TestPrompts:
    def test_bos_comes_first_and_alone_for_an_empty_prompt(self, tokenizer, prompts_read):
        generate(None, tokenizer, ["The cat", "dog"])
        generate(None, tokenizer, "")
        list(stream(None, tokenizer, ""))
        assert prompts_read == [[[BOS, *tokenizer.encode(text)] for text in ("The cat", "dog")], [[BOS]], [[BOS]]]

    @pytest.mark.parametrize(
        ("prefix_space", "prompt", "text"),
        [(False, "", " cat"), (False, "The", " cat"), (True, "", "cat"), (True, "The", " cat")],
    )
    def test_a_leading_space_is_part_of_the_text(self, tokenizer, says, prefix_space, prompt, text):
        """But for a tokenizer that puts one before every text, as the original's, where the answer begins the text."""
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
        says([*tokenizer.encode(" cat"), EOS])
        assert generate(None, Tokenizer(backend), prompt)[0].text == text


class TestModel:
    """With a model whose tokens are anything: half characters, special tokens."""

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("stop", [(), ("a", "e"), ("\ufffd",)], ids=str)
    def test_streamed_is_generated(self, model, tokenizer, seed, stop):
        config = SamplingConfig(temperature=1.0, top_p=1.0, seed=seed, max_tokens=31, stop=stop)
        (answer,) = generate(model, tokenizer, "The cat", config)
        assert "".join(stream(model, tokenizer, "The cat", config)) == answer.text
        assert not any(text in answer.text for text in stop)

    def test_together_is_alone(self, model, tokenizer):
        prompts = ["The cat sat", "", "The dog sat on the mat."]
        together = generate(model, tokenizer, prompts, SamplingConfig(seed=11, max_tokens=31))
        alone = [
            generate(model, tokenizer, p, SamplingConfig(seed=11 + i, max_tokens=31))[0] for i, p in enumerate(prompts)
        ]
        assert together == alone

    def test_no_prompts_or_a_tokenizer_of_another_model(self, tiny_model, tokenizer):
        with pytest.raises(ConfigError, match="prompts is empty"):
            generate(tiny_model(), tokenizer, [])
        with pytest.raises(ConfigError, match="token ids outside 0 … 40: is this the model's tokenizer"):
            generate(tiny_model(), tokenizer, "The cat")
