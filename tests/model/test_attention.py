"""The attention layer alone: any head counts, with and without positions, causal or not."""

import re

import pytest
import torch
from torch import nn

from sqat import Attention
from sqat.errors import ConfigError
from sqat.model.attend import attend_naive
from sqat.model.mask import AttentionMask
from sqat.model.rope import rotary_tables, rotate
from sqat.variants import VARIANTS, head_counts

B, T, D, C = 5, 11, 23, 10


def by_definition(layer, x):
    q, k, v = (p(x).view(*x.shape[:2], -1, C).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
    if layer.rope_theta is not None:
        tables = rotary_tables(torch.arange(x.shape[1]), C, layer.rope_theta)
        q, k = rotate(q, tables), rotate(k, tables)
    limits = {"window": layer.window, "global_tokens": layer.global_tokens}
    out = attend_naive(q, k, v, AttentionMask(*[x.shape[1]] * 2, x.device, layer.causal, **limits).rows())
    return layer.out_proj(out.transpose(1, 2).reshape(*x.shape[:2], -1))


OPTIONS = (
    *({}, {"rope_theta": None}, {"causal": False}, {"qkv_bias": True, "out_bias": True}, {"window": 3}),
    {"window": 4, "global_tokens": 2, "rope_theta": None},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_definition(variant, options):
    layer = Attention(D, *head_counts(variant, 8), C, dropout=0.5, **options)
    x = torch.randn(B, T, D)
    assert not layer(x).equal(layer(x))
    layer.eval()  # dropout acts in training only
    torch.testing.assert_close(layer(x), by_definition(layer, x), rtol=1e-5, atol=1e-6)


def test_without_positions_order_does_not_matter():
    layer = Attention(D, 4, 2, 7, rope_theta=None, causal=False)  # 7 makes no pairs
    x, order = torch.randn(B, T, D), torch.randperm(T)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


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


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(T, T), (B, T, T), (B, 1, T, T), (B, 6, T, T)], ids=str)
@pytest.mark.parametrize("additive", [True, False])
def test_mask_tensors(shape, additive, causal):
    """Together with the module's own causality; a query that sees nothing gets zeros."""
    layer, x = Attention(D, 6, 3, C, causal=causal), torch.randn(B, T, D)
    seen = torch.rand(shape) < 0.6
    seen[..., 3, :] = False
    mask = torch.zeros(shape).masked_fill(~seen, -torch.inf) if additive else seen
    found, weights = layer(x, mask=mask, need_weights=True)
    whole = seen.unsqueeze(1) if seen.dim() == 3 else seen
    whole = (whole & torch.ones(T, T).tril().bool() if causal else whole).expand(B, 6, T, T)
    assert (weights[~whole] == 0).all()
    sums = weights.sum(dim=-1)
    torch.testing.assert_close(sums, whole.any(dim=-1).float())
    torch.testing.assert_close(layer(x, mask=mask), found)
    assert (found[:, 3] == 0).all()


def test_an_additive_mask_is_added():
    layer, x = Attention(D, 6, 3, C), torch.randn(B, T, D)
    weights = layer(x, need_weights=True)[1]
    bias = torch.randn(T, T)
    expected = (weights.log() + bias).softmax(dim=-1)
    torch.testing.assert_close(layer(x, mask=bias, need_weights=True)[1], expected)


@pytest.mark.parametrize("options", [{}, {"causal": False}, {"window": 4, "global_tokens": 1}], ids=str)
def test_weights_on_request(options):
    layer, x = Attention(D, 6, 3, C, **options), torch.randn(B, T, D)
    found, weights = layer(x, need_weights=True)
    torch.testing.assert_close(found, layer(x))
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(B, 6, T))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(T, T + 1), r"mask has the shape \(11, 12\), but must have \(11, 11\), \(1 or 5, 11"),
        (torch.ones(4, T, T), r"mask has the shape \(4, 11, 11\)"),
        (torch.ones(B, 2, T, T), r"mask has the shape \(5, 2, 11, 11\), .* \(1 or 5, 1 or 6, 11, 11\)"),
        (torch.ones(T), r"mask has the shape \(11,\)"),
        (torch.ones(T, T, dtype=torch.long), r"mask is torch\.int64, but must be an AttentionMask, or a tensor of boo"),
        ("causal", r"mask is str, but must be"),
        (AttentionMask(3, 3, torch.device("cpu")), r"mask is for 3 queries and 3 keys, but must be for 11 and 11"),
    ],
)
def test_unusable_masks(mask, message):
    with pytest.raises(ConfigError, match=message):
        Attention(D, 6, 3, C)(torch.randn(B, T, D), mask=mask)


def test_one_sequence_without_a_batch():
    layer, x = Attention(D, 6, 3, C), torch.randn(T, D)
    torch.testing.assert_close(layer(x), layer(x.unsqueeze(0))[0])
    assert [part.shape for part in layer(x, need_weights=True)] == [(T, D), (6, T, T)]


@pytest.mark.parametrize("shape", [(D,), (B, T, D + 1), (2, B, T, D)], ids=str)
def test_inputs_of_another_shape(shape):
    with pytest.raises(ConfigError, match=r"x has the shape \(.*, but must have \(B, T, 23\) or \(T, 23\)"):
        Attention(D, 6, 3, C)(torch.randn(shape))


@pytest.mark.parametrize("options", [{}, {"window": 4, "global_tokens": 1}], ids=str)
@pytest.mark.parametrize("sizes", [[1] * T, [7, 1, 3], [3, 8]], ids=str)
def test_a_new_cache(options, sizes):
    layer, x = Attention(D, 6, 3, C, **options).double(), torch.randn(B, T, D, dtype=torch.float64)
    cache = layer.new_cache(B, T)
    parts = [layer(part, cache=cache) for part in x.split(sizes, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x))
    if not options:
        with pytest.raises(ValueError, match="cache holds 11 positions, but 12 are needed"):
            layer(x[:, :1], cache=cache)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_from_multihead_attention(bias, causal):
    other = nn.MultiheadAttention(24, 4, bias=bias, batch_first=True)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(B, T, 24)
    hidden = torch.ones(T, T).triu(1).bool() if causal else None
    expected, weights = other(x, x, x, attn_mask=hidden, average_attn_weights=False)
    layer = Attention.from_multihead_attention(other, causal=causal)
    found, own_weights = layer(x, need_weights=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(own_weights, weights)
    with pytest.raises(ConfigError, match="kdim or vdim"):
        Attention.from_multihead_attention(nn.MultiheadAttention(24, 4, kdim=7))


def test_a_cache_of_other_rows_or_without_causality_is_refused():
    x = torch.randn(B, T, D)
    layer = Attention(D, 6, 3, C)
    with pytest.raises(ConfigError, match="cache has 1 rows, but must have 5 rows"):
        layer(x, cache=layer.new_cache(1, T))
    both = Attention(D, 6, 3, C, causal=False)
    with pytest.raises(ConfigError, match="must be None where causal is false"):
        both(x, cache=both.new_cache(B, T))
