"""Tokens and text, as the card draws them."""

import pytest
import torch
from safetensors.torch import load_file

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.tokenizer import to_sqat
from rxnn.transformers.sampler import SampleDecoder, Sampler
from sqat.errors import ConfigError
from sqat.generate import SamplingConfig
from sqat.generate.decode import decode_tokens

NO_END = -1


@pytest.fixture
def decoder(small_model, tokenizer):
    return SampleDecoder(Sampler(small_model(), "cpu", end_token_id=3), tokenizer)


class TestSampler:
    def test_greedy_as_the_original(self, case):
        model = ExperimentalAttentionTransformer.from_pretrained(case)
        expected = load_file(case / "golden.safetensors")["greedy_tokens"]
        sampler = Sampler(model, torch.device("cpu"), end_token_id=NO_END)
        prompt = expected[:, :6]
        tokens = list(sampler(prompt, temperature=0.0, max_seq_len=expected.shape[1] - 6))
        assert tokens == expected[0, 6:].tolist()

    def test_chance_comes_from_torchs_generator(self, small_model):
        model = small_model()
        options = {"temperature": 0.7, "top_k": 40, "top_p": 0.9}
        torch.manual_seed(5)
        tokens = list(Sampler(model, "cpu", NO_END)(torch.tensor([[2, 5]]), **options, max_seq_len=11))
        torch.manual_seed(5)
        config = SamplingConfig(**options, max_tokens=11, seed=int(torch.randint(2**62, ())))
        assert tokens == [int(token) for token in decode_tokens(model.model, [[2, 5]], config)]

    def test_puts_training_mode_back_and_ends_after_the_end_token(self, small_model):
        model = small_model(ff_dropout=0.5).train()
        sampler = Sampler(model, "cpu", NO_END)
        first, again = (list(sampler(torch.tensor([[2, 5]]), temperature=0, max_seq_len=5)) for _ in range(2))
        assert first == again  # no dropout
        assert model.training
        with torch.no_grad():
            model.model.head.bias[3] = 100.0
        assert list(Sampler(model, "cpu", 3)(torch.tensor([[2, 5]]), max_seq_len=11)) == [3]

    def test_unusable(self, small_model):
        sampler = Sampler(small_model(), "cpu", 3)
        with pytest.raises(ConfigError, match=r"initial_tokens has the shape \(2, 1\)"):
            list(sampler(torch.tensor([[2], [5]])))
        with pytest.raises(ConfigError, match="temperature is -1"):
            list(sampler(torch.tensor([[2]]), temperature=-1))


class TestSampleDecoder:
    def test_prompt_and_answer(self, decoder, tokenizer):
        text = decoder("Once upon a time", temperature=0, max_seq_len=13)
        prompt = [2, *tokenizer.encode("Once upon a time")[1:-1]]
        config = SamplingConfig(temperature=0, max_tokens=13)
        tokens = [int(token) for token in decode_tokens(decoder.sampler.model.model, [prompt], config)]
        tokens = tokens[: tokens.index(3)] if 3 in tokens else tokens
        assert text == "Once upon a time" + to_sqat(tokenizer).decode(tokens, continuation=True)

    def test_prints_as_it_comes(self, decoder, capsys):
        text = decoder("Once upon a time", temperature=0, max_seq_len=13, print_stream=True)
        assert capsys.readouterr().out == text
        assert decoder("Once upon a time", temperature=0, max_seq_len=13) == text
        assert capsys.readouterr().out == ""

    def test_long_prompts_are_cut_empty_ones_allowed_and_special_tokens_left_out(self, decoder, stories):
        text = decoder(stories[0], temperature=0, max_seq_len=5)
        assert not text.startswith(stories[0])
        assert stories[0].startswith(text[:4])
        assert isinstance(decoder("", max_seq_len=5), str)
        with torch.no_grad():
            decoder.sampler.model.model.head.bias[3] = 100.0
        assert decoder("Once", max_seq_len=13) == "Once"
