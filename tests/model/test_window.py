"""Windowed attention is its definition: outputs and gradients, whatever the window, the blocks and the rows.

Shape letters as in sqat.model.attend. Which keys a query sees is written out here once more, one pair at a time.
"""

import functools
import itertools
import re

import pytest
import torch

from sqat.model.attend import attend, attend_naive
from sqat.model.mask import AttentionMask, window_naive

B, T, C = 3, 29, 10
PADDING = (0, 5, 23)
DOCUMENTS = ((0,) * 29, (0,) * 4 + (1,) * 1 + (2,) * 24, (0,) * 17 + (1,) * 12)
CASES = {  # name: (queries, keys, documents, padding)
    "whole": (T, T, None, None),
    "after others": (7, T, None, None),
    "one query": (1, T, None, None),
    "documents": (T, T, DOCUMENTS, None),
    "padding": (T, T, None, PADDING),
    "padding, after others": (7, T, None, PADDING),
    "documents and padding": (T, T, DOCUMENTS, PADDING),
}
WINDOWS = (1, 3, 5, 11, 29, 31)


@functools.cache
def visible(case: str, window: int, global_tokens: int) -> torch.Tensor:
    """(B, 1, T, S), by definition."""
    num_queries, num_keys, documents, padding = CASES[case]
    seen = torch.zeros(B, 1, num_queries, num_keys, dtype=torch.bool)
    for row, t, key in itertools.product(range(B), range(num_queries), range(num_keys)):
        query = num_keys - num_queries + t
        first = padding[row] if padding else 0
        if documents:
            first = max(first, documents[row].index(documents[row][key]))
        seen[row, 0, t, key] = key == query or (
            key < query
            and (not documents or documents[row][query] == documents[row][key])
            and (not padding or key >= padding[row])
            and (query - key < window or key - first < global_tokens)
        )
    return seen


def make_mask(case: str, window: int, global_tokens: int) -> AttentionMask:
    num_queries, num_keys, documents, padding = CASES[case]
    return AttentionMask(
        num_queries,
        num_keys,
        torch.device("cpu"),
        documents_BS=None if documents is None else torch.tensor(documents),
        first_key_B=None if padding is None else torch.tensor(padding),
        window=window,
        global_tokens=global_tokens,
    )


def draw(case: str, query_heads: int, kv_heads: int) -> list[torch.Tensor]:
    num_queries, num_keys, *_ = CASES[case]
    shapes = (query_heads, num_queries), (kv_heads, num_keys), (kv_heads, num_keys)
    return [torch.randn(B, *shape, C, dtype=torch.float64, requires_grad=True) for shape in shapes]


def with_gradients(function, *inputs):
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.fixture(params=["kernel", "kernel, 5 rows at a time", "blocks of 5", "blocks of 1", "as measured"])
def _blocks(request, monkeypatch):
    if "5 rows" in request.param:
        monkeypatch.setattr("sqat.model.mask.QUERY_BLOCK", 5)
    if request.param != "as measured":
        block = {"blocks of 5": 5, "blocks of 1": 1}.get(request.param)
        monkeypatch.setattr("sqat.model.attend.block_length", lambda num_queries, masked: block)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("keep", [False, True], ids=["made", "kept"])
@pytest.mark.parametrize("global_tokens", [0, 1, 3])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case, global_tokens, keep):
    for window in WINDOWS:
        qkv = draw(case, 4, 2)
        mask = make_mask(case, window, global_tokens)
        if keep:
            mask.keep()
        seen = visible(case, window, global_tokens)
        expected = with_gradients(lambda *qkv, seen=seen: attend_naive(*qkv, seen), *qkv)
        for _ in range(2 if keep else 1):  # the second time with what was kept
            found = with_gradients(lambda *qkv, mask=mask: attend(*qkv, mask=mask), *qkv)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("window", "global_tokens"), [(5, 0), (3, 2), (29, 0), (31, 1)])
def test_the_short_definition_is_the_long_one(window, global_tokens):
    for case in ("whole", "after others"):
        num_queries, num_keys, *_ = CASES[case]
        short = window_naive(num_queries, num_keys, window, global_tokens)
        assert short.equal(visible(case, window, global_tokens)[0, 0])


@pytest.mark.parametrize("heads", [(2, 6), (1, 3), (6, 2), (3, 3)])
@pytest.mark.parametrize("case", ["whole", "after others", "one query", "documents", "padding"])
def test_any_heads(case, heads):
    qkv = draw(case, *heads)
    found = with_gradients(lambda *qkv: attend(*qkv, mask=make_mask(case, 5, 2)), *qkv)
    expected = with_gradients(lambda *qkv: attend_naive(*qkv, visible(case, 5, 2)), *qkv)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("global_tokens", [0, 3])
@pytest.mark.parametrize("first", [[0, 2, 9], [-4, -20, 1]])
def test_keys_of_a_cache_that_rolls(global_tokens, first):
    """Slots of the first positions, then positions from `first` of each row on; negative ones are padding."""
    slots, others = torch.arange(global_tokens), torch.arange(T - global_tokens)
    first_B1 = torch.tensor(first).unsqueeze(1)
    own = torch.cat((slots.where(slots < first_B1, -1), first_B1 + others), dim=1)
    q, k, v = draw("after others", 4, 2)
    mask = AttentionMask(7, T, q.device, window=11, global_tokens=global_tokens, own_BS=own)
    key, query = own[:, None, None], own[:, None, -7:, None]
    seen = (key >= 0) & (key <= query) & ((query - key < 11) | (key < global_tokens))
    seen |= torch.eye(T, dtype=torch.bool)[-7:]
    torch.testing.assert_close(attend(q, k, v, mask=mask), attend_naive(q, k, v, seen), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype):
    q, k, v = (x.detach().to(dtype) for x in draw("padding", 4, 2))
    found = attend(q, k, v, mask=make_mask("padding", 5, 3).keep())
    assert found.dtype == dtype
    expected = attend_naive(*(x.float() for x in (q, k, v)), visible("padding", 5, 3))
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)


def test_dropout_keeps_the_mean():
    q, k, v = (x.detach() for x in draw("documents", 2, 2))
    mask = make_mask("documents", 5, 2)
    draws = torch.stack([attend(q, k, v, mask=mask, dropout=0.3) for _ in range(300)])
    error = (draws.mean(dim=0) - attend(q, k, v, mask=mask)) / draws.std(dim=0).clamp_min(1e-3)
    assert error.pow(2).mean() < 1.5 / 300


@pytest.mark.parametrize("case", ["whole", "documents", "padding"])
def test_a_part_has_the_keys_in_reach_alone(case):
    part = make_mask(case, 5, 3).part(20, 24)
    assert part.keys == slice(16, 24)  # query 20 reaches back to 16
    assert part.seen.shape[2:] == (4, 3 + 8)
    assert part.global_BG.shape[1] == 3
    assert make_mask(case, 5, 0).part(20, 24).global_BG is None
    assert make_mask(case, 5, 3).part(0, 4).global_BG is None


def test_like_blocks_are_made_once():
    mask = AttentionMask(640, 640, torch.device("cpu"), window=70).keep()
    q, k, v = (torch.randn(1, 1, 640, C) for _ in range(3))
    attend(q, k, v, mask=mask)
    assert len(mask.parts) == 3  # the first two blocks of 64, and all others


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 5, "causal": False}, "window is 5, but must be None where causal is false"),
        ({"global_tokens": 2}, "global_tokens is 2, but must be 0 where window is None"),
    ],
)
def test_what_does_not_go_together(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        AttentionMask(T, T, torch.device("cpu"), **options)
