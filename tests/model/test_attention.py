"""The attention layer alone: any head counts, with and without positions, causal or not."""

import re

import pytest
import torch

from sqat import Attention
from sqat.errors import ConfigError
from sqat.model.attend import attend_naive
from sqat.model.cache import LayerCache
from sqat.model.mask import window_naive
from sqat.model.rope import rotary_tables, rotate
from sqat.variants import VARIANTS, head_counts

B, T, D, C = 5, 11, 23, 10


def by_definition(layer, x):
    q, k, v = (p(x).view(*x.shape[:2], -1, C).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    if layer.rope_theta is not None:
        tables = rotary_tables(torch.arange(x.shape[1]), C, layer.rope_theta)
        q, k = rotate(q, tables), rotate(k, tables)
    seen = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool)
    if layer.window is not None:
        seen = window_naive(x.shape[1], x.shape[1], layer.window, layer.global_tokens)
    out = attend_naive(q, k, v, seen.tril() if layer.causal else seen)
    return layer.out_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))


OPTIONS = (
    *({}, {"rope_theta": None}, {"causal": False}, {"qkv_bias": True, "out_bias": True}, {"window": 3}),
    {"window": 4, "global_tokens": 2, "rope_theta": None},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_definition(variant, options):
    layer = Attention(D, *head_counts(variant, 8), C, **options)
    x = torch.randn(B, T, D)
    torch.testing.assert_close(layer(x), by_definition(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("out_bias", [False, True])
def test_parameters_are_four_projections(qkv_bias, out_bias):
    layer = Attention(D, 6, 3, C, qkv_bias=qkv_bias, out_bias=out_bias)
    expected = {"q_proj.weight": (60, D), "out_proj.weight": (D, 60)}
    expected |= {"k_proj.weight": (30, D), "v_proj.weight": (30, D)}
    expected |= {"q_proj.bias": (60,), "k_proj.bias": (30,), "v_proj.bias": (30,)} if qkv_bias else {}
    expected |= {"out_proj.bias": (D,)} if out_bias else {}
    assert {name: tuple(p.shape) for name, p in layer.named_parameters()} == expected


@pytest.mark.parametrize("causal", [True, False])
def test_causality(causal):
    """A change at token 7 reaches the tokens before it only where attention is not causal."""
    layer = Attention(D, 4, 2, C, causal=causal)
    x = torch.randn(B, T, D)
    changed = x.clone()
    changed[:, 7] += 1
    before, after = (layer(changed) - layer(x)).abs().amax(dim=(0, 2)).split([7, T - 7])
    assert (after > 1e-4).all()
    assert (before > 1e-4).all() if not causal else (before == 0).all()


def test_without_positions_order_does_not_matter():
    assert Attention(D, 4, 2, 7, rope_theta=None)(torch.randn(B, T, D)).shape == (B, T, D)  # 7 makes no pairs
    layer = Attention(D, 4, 2, C, rope_theta=None, causal=False)
    x, order = torch.randn(B, T, D), torch.randperm(T)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])
    layer.rope_theta = 10000.0
    assert not layer(x[:, order]).allclose(layer(x)[:, order], atol=1e-3)


@pytest.mark.parametrize("sizes", [[1] * T, [7, 4], [3, 1, 7]])
def test_cached_equals_uncached(sizes):
    layer = Attention(D, 6, 3, C)
    x = torch.randn(B, T, D)
    cache = LayerCache((B, 3, T, C), "cpu", torch.float32)
    with torch.no_grad():
        parts = [layer(part, cache=cache) for part in x.split(sizes, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=1e-5, atol=1e-6)


def test_dropout_acts_in_training_only():
    layer = Attention(D, 4, 2, C, dropout=0.5)
    x = torch.randn(B, T, D)
    assert not layer(x).equal(layer(x))
    layer.eval()
    torch.testing.assert_close(layer(x), by_definition(layer, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((D, 6, 4, C), "num_kv_heads is 4, but must divide num_query_heads (6) or be a multiple"),
        ((D, 4, 6, C), "num_kv_heads is 6, but must divide num_query_heads (4) or be a multiple"),
        ((D, 4, 2, 7), "head_dim is 7, but must be even"),
        *((s, f"are {s}, but must be at least 1") for s in ((D, 0, 1, C), (D, 4, 0, C), (0, 4, 2, C), (D, 4, 2, -2))),
        ({"window": 0}, "window is 0, but must be at least 1, or None for no window"),
        ({"window": 3, "causal": False}, "window is 3, but must be None where causal is false"),
        ({"global_tokens": 2}, "global_tokens is 2, but must be 0 where window is None"),
        ({"window": 3, "global_tokens": -1}, "global_tokens is -1, but must be 0 (none) or more"),
    ],
)
def test_sizes_and_windows_that_do_not_fit(sizes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        Attention(D, 4, 2, C, **sizes) if isinstance(sizes, dict) else Attention(*sizes)


def test_reverse_heads_serve_neighbouring_key_heads():
    """Two query heads of six: the first for key/value heads 0, 1 and 2; the output projection reads all six."""
    layer = Attention(D, 2, 6, C)
    assert (layer.q_proj.out_features, layer.out_proj.in_features) == (2 * C, 6 * C)
    with torch.no_grad():
        layer.out_proj.weight[:, 3 * C :] = 0
        x = torch.randn(B, T, D)
        before = layer(x)
        layer.q_proj.weight[C:] += 1
        assert layer(x).equal(before)
        layer.q_proj.weight[:C] += 1
        assert not layer(x).allclose(before)
