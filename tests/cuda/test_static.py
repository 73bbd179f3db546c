"""A step of fixed shapes gives what the step of the growing cache gives. What needs a GPU is in tests/gpu."""

import pytest
import torch

from sqat.cuda.experts import FEW_TOKENS
from sqat.cuda.static import StaticStep, fits
from sqat.model import KVCache

V, CAPACITY, STEPS = 41, 29, 7

CONFIGS = {
    "grouped heads": {},
    "one key head": {"num_kv_heads": 1},
    "all key heads": {"num_kv_heads": 6},
    "experts": {"moe": True, "feedforward_bias": True},
    "layernorm and biases": {"norm": "layernorm", "qkv_bias": True, "attention_out_bias": True, "head_bias": True},
    "no final norm": {"final_norm": None, "tie_embeddings": False},
    "reverse": {"num_query_heads": 2, "num_kv_heads": 6},
}
PADDING = {"no padding": None, "left padding": [0, 3, 1, 4, 2]}


def filled(model, prompt_BT, padding, dtype=torch.float32):
    padding_B = None if padding is None else torch.tensor(padding)
    cache = KVCache(model.config, len(prompt_BT), CAPACITY, padding_B=padding_B, dtype=dtype)
    for layer in cache.layers:  # what is there before must not matter
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    model.hidden_states(prompt_BT, cache=cache)
    return cache


@pytest.fixture
def prompt_BT():
    return torch.randint(V, (5, 11))


@pytest.fixture(params=CONFIGS)
def model(request, tiny_model):
    return tiny_model(**CONFIGS[request.param])


@pytest.mark.parametrize("padding", PADDING)
@torch.no_grad()
def test_equals_the_growing_cache(model, prompt_BT, padding):
    cache, grown = (filled(model, prompt_BT, PADDING[padding]) for _ in range(2))
    step = StaticStep(model, cache)
    for i, tokens_B in enumerate(torch.randint(V, (2 * STEPS, 5))):
        expected = model(tokens_B.unsqueeze(1), cache=grown).logits[:, 0]
        turn = i >= STEPS and i % 3 == 1  # at last they take turns
        found = model(tokens_B.unsqueeze(1), cache=cache).logits[:, 0] if turn else step(tokens_B)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert cache.length == grown.length
    for layer, other in zip(cache.layers, grown.layers, strict=True):
        torch.testing.assert_close(layer.keys[:, :, : grown.length], other.keys[:, :, : grown.length])


@torch.no_grad()
def test_from_an_empty_cache_until_it_is_full(model):
    cache, grown = (KVCache(model.config, 2, 3) for _ in range(2))
    step = StaticStep(model, cache)
    for tokens_B in torch.randint(V, (3, 2)):
        expected = model(tokens_B.unsqueeze(1), cache=grown).logits[:, 0]
        torch.testing.assert_close(step(tokens_B), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cache holds 3 positions, but 4 are needed"):
        step(tokens_B)


@torch.no_grad()
def test_a_cache_of_another_type(tiny_model, prompt_BT):
    model = tiny_model(moe=True).bfloat16()
    cache, grown = (filled(model, prompt_BT, None, torch.bfloat16) for _ in range(2))
    step = StaticStep(model, cache)
    for tokens_B in torch.randint(V, (STEPS, 5)):
        expected = model(tokens_B.unsqueeze(1), cache=grown).logits[:, 0]
        assert (step(tokens_B) - expected).abs().max() < 0.05 * expected.abs().max()


def test_what_is_not_recorded(tiny_model):
    dense, experts, windowed = tiny_model(), tiny_model(moe=True), tiny_model(window=5)
    assert fits(experts, KVCache(experts.config, FEW_TOKENS, 3))
    assert not fits(experts, KVCache(experts.config, FEW_TOKENS + 1, 3))
    assert fits(dense, KVCache(dense.config, FEW_TOKENS + 1, 3))
    assert not fits(windowed, KVCache(windowed.config, 1, 6))
