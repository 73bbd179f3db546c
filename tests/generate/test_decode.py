"""Cached, batched decoding gives what reading everything again, one row at a time, gives."""

import re

import pytest
import torch

from sqat.errors import ConfigError
from sqat.generate.decode import FAST_STEPS, PlainStep, decode_tokens, is_hooked, make_step
from sqat.generate.sampling import RowSampler, SamplingConfig
from sqat.model import KVCache

V = 41
PROMPTS = [[5, 17, 3], [40], [1, 2, 3, 4, 5, 6, 7], [11, 0, 11]]
WAYS = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.0, "top_p": 1.0, "seed": 7},
    "limited": {"temperature": 1.5, "top_k": 11, "top_p": 0.9, "min_p": 0.01, "seed": 7},
    "penalised": {"temperature": 0, "repetition_penalty": 1.5},
}


MODELS = {
    "dense": {},
    "experts": {"moe": True},
    "window": {"window": 5},
    "window and global tokens": {"window": 3, "global_tokens": 2},
    "reverse": {"num_query_heads": 1, "num_kv_heads": 3},
}


@pytest.fixture(params=MODELS)
def model(request, tiny_model):
    return tiny_model(**MODELS[request.param])


def decode_naive(model, prompt, config):
    """One row, and everything read again for every token."""
    choose, tokens = RowSampler(config, [prompt], V), list(prompt)
    for _ in range(config.max_tokens):
        with torch.no_grad():
            tokens.append(int(choose(model(torch.tensor([tokens])).logits[:, -1])))
    return tokens[len(prompt) :]


def decode(model, prompts, config, **options):
    return torch.stack(list(decode_tokens(model, prompts, config, **options)), dim=1).tolist()


@pytest.mark.parametrize("way", WAYS)
def test_equals_reading_everything_again(model, way):
    config = SamplingConfig(max_tokens=23, **WAYS[way])  # beyond the context of 19
    for prompt in PROMPTS:
        assert decode(model, [prompt], config) == [decode_naive(model, prompt, config)]


@pytest.mark.parametrize("way", WAYS)
def test_rows_together_are_rows_alone(model, way):
    """Left padding included; row i draws from seed + i."""
    together = decode(model, PROMPTS, SamplingConfig(max_tokens=23, **WAYS[way]))
    seeds = [{"seed": WAYS[way]["seed"] + i} if "seed" in WAYS[way] else {} for i in range(len(PROMPTS))]
    alone = [
        decode(model, [prompt], SamplingConfig(max_tokens=23, **{**WAYS[way], **seed}))[0]
        for prompt, seed in zip(PROMPTS, seeds, strict=True)
    ]
    assert together == alone
    assert len({*map(tuple, together)}) == len(PROMPTS)


def test_bfloat16_decodes(model):
    tokens = decode(model.to(torch.bfloat16), PROMPTS, SamplingConfig(max_tokens=7))
    assert [len(row) for row in tokens] == [7] * len(PROMPTS)


def test_weights_may_change_between_answers(model):
    config = SamplingConfig(temperature=0, max_tokens=13)
    before = decode(model, PROMPTS[:1], config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.1)
    after = decode(model, PROMPTS[:1], config)
    assert after == [decode_naive(model, PROMPTS[0], config)] != before


def test_the_padding_token_does_not_matter_and_no_gradients_are_kept(model):
    config = SamplingConfig(temperature=0, max_tokens=11)
    assert decode(model, PROMPTS, config, pad_id=0) == decode(model, PROMPTS, config, pad_id=40)
    tokens = next(decode_tokens(model, PROMPTS, SamplingConfig()))
    assert tokens.is_inference()
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts is empty, but must hold at least one"),
        ([[5], []], "prompt 1 has no tokens, but must have at least one, such as [BOS]"),
        ([[5], [6], [7, V]], f"prompt 2 has token ids outside 0 … {V - 1}: is this the model's tokenizer?"),
        ([[-1, 5]], f"prompt 0 has token ids outside 0 … {V - 1}"),
    ],
)
def test_unusable_prompts(tiny_model, prompts, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        next(decode_tokens(tiny_model(), prompts, SamplingConfig()))


def test_more_positions_than_there_may_be(tiny_model, monkeypatch):
    monkeypatch.setattr("sqat.generate.decode.MAX_POSITIONS", 13)
    model = tiny_model()
    assert len(list(decode_tokens(model, [[5] * 6], SamplingConfig(max_tokens=7)))) == 7
    with pytest.raises(ConfigError, match="prompt 1 has 7 tokens; with max_tokens 7 that must be at most 13"):
        next(decode_tokens(model, [[5], [5] * 7], SamplingConfig(max_tokens=7)))


def test_dropout_is_off_while_generating_and_back_on_after(tiny_model):
    model = tiny_model(moe=True, feedforward_dropout=0.5).train()
    config = SamplingConfig(temperature=0, max_tokens=7)
    answers = [torch.cat(list(decode_tokens(model, [[5, 3]], config))).tolist() for _ in range(2)]
    assert answers[0] == answers[1] == decode_naive(model.eval(), [5, 3], config)
    generator = decode_tokens(model.train(), [[5, 3]], config)
    next(generator)
    generator.close()
    assert model.training


class TestMakeStep:
    """Each device's fast step is looked for in one place, and may be missing."""

    @staticmethod
    def made(model):
        return make_step(model, KVCache(model.config, 2, 5))

    def test_a_model_as_it_is_built_has_a_fast_step_and_without_its_package_the_model_itself_runs(
        self, tiny_model, monkeypatch
    ):
        pytest.importorskip("numba")
        assert not isinstance(self.made(tiny_model()), PlainStep)
        assert isinstance(self.made(tiny_model().to(torch.bfloat16)), PlainStep)  # which the fast step cannot do
        monkeypatch.setitem(FAST_STEPS, "cpu", ("sqat.cpu.missing", "Step"))
        assert isinstance(self.made(tiny_model()), PlainStep)
        monkeypatch.delitem(FAST_STEPS, "cpu")
        assert isinstance(self.made(tiny_model()), PlainStep)

    @pytest.mark.parametrize(
        "change",
        [
            lambda module: module.register_forward_hook(lambda module, inputs, output: 2 * output),
            lambda module: module.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],)),
            lambda module: setattr(module, "forward", lambda x: 2 * x),
        ],
        ids=["hook", "hook before", "forward"],
    )
    def test_the_model_itself_runs_hooks(self, tiny_model, change):
        model = tiny_model()
        assert not is_hooked(model)
        change(model.layers[1].norm2)
        assert is_hooked(model)
        assert isinstance(self.made(model), PlainStep)
