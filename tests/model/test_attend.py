"""`attend` is its definition, whatever the head counts, the mask, the window, the blocks and the way it is computed.

Shape letters as in sqat.model.attend. Which keys a query sees is written out here once more, one pair at a time.
"""

import functools
import itertools
from typing import NamedTuple

import pytest
import torch

from sqat.model.attend import attend, attend_naive
from sqat.model.mask import AttentionMask

B, T, C = 3, 29, 10
HEADS = {"full": (4, 4), "grouped": (6, 3), "one key head": (4, 1), "one head": (1, 1), "reverse": (2, 6)}  # (H, K)
PADDING = (0, 5, 23)
DOCUMENTS = ((0,) * 29, (0,) * 4 + (1,) * 1 + (2,) * 24, (0,) * 17 + (1,) * 12)
SLOTS = (0, 1, 2, *range(8, 34))  # positions in a rolling cache, and of new keys


class Case(NamedTuple):
    queries: int = T
    keys: int = T
    causal: bool = True
    documents: tuple | None = None
    padding: tuple | None = None
    positions: tuple | None = None


CASES = {
    "causal": Case(),
    "full": Case(causal=False),
    "after others": Case(7),
    "one query": Case(1),
    "one token": Case(1, 1),
    "full, more keys": Case(7, causal=False),
    "documents": Case(documents=DOCUMENTS),
    "documents, full": Case(causal=False, documents=DOCUMENTS),
    "padding": Case(padding=PADDING),
    "padding, after others": Case(7, padding=PADDING),
    "padding, one query": Case(1, padding=PADDING),
    "documents and padding": Case(documents=DOCUMENTS, padding=PADDING),
    "a rolling cache": Case(7, positions=SLOTS),
    "a rolling cache, padding": Case(17, positions=SLOTS, padding=PADDING),
}
WINDOWS = ((None, 0), (1, 0), (5, 0), (5, 3), (11, 1), (29, 0), (31, 3))  # (window, global tokens)


@functools.cache
def visible(name, window=None, global_tokens=0):
    """(B, 1, T, S), by definition."""
    case = CASES[name]
    seen = torch.zeros(B, 1, case.queries, case.keys, dtype=torch.bool)
    places = case.positions or range(case.keys)
    for row, t, key in itertools.product(range(B), range(case.queries), range(case.keys)):
        query = case.keys - case.queries + t
        first = case.padding[row] if case.padding else 0
        at_query, at_key = places[query], places[key]
        if case.documents:
            first = max(first, case.documents[row].index(case.documents[row][key]))
        seen[row, 0, t, key] = (
            (at_key <= at_query or not case.causal)
            and at_key >= 0
            and (not case.documents or case.documents[row][query] == case.documents[row][key])
            and (not case.padding or at_key >= case.padding[row] or key == query)
            and (window is None or at_query - at_key < window or at_key - first < global_tokens)
        )
    return seen


def make_mask(name, window=None, global_tokens=0):
    case = CASES[name]
    if case[3:] == (None, None, None) and window is None:
        return None
    documents, padding, positions = (None if x is None else torch.tensor(x) for x in case[3:])
    limits = {"window": window, "global_tokens": global_tokens, "positions_S": positions}
    return AttentionMask(*case[:2], torch.device("cpu"), case.causal, documents, padding, **limits)


def draw(name, query_heads, kv_heads, dtype=torch.float64):
    case = CASES[name]
    shapes = (query_heads, case.queries), (kv_heads, case.keys), (kv_heads, case.keys)
    return [torch.randn(B, *shape, C, dtype=dtype, requires_grad=True) for shape in shapes]


def with_gradients(function, *inputs):
    """The result and the gradients of a fixed weighted sum of it."""
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.fixture(params=["plain", "plain, 5 rows at a time", "chosen", "blocks of 5", "blocks of 1"])
def run(request, monkeypatch):
    """The plain path, or what a CPU takes, with blocks of some length."""
    if request.param == "plain, 5 rows at a time":
        monkeypatch.setattr("sqat.model.mask.QUERY_BLOCK", 5)
    if request.param.startswith("blocks"):
        monkeypatch.setattr("sqat.cpu.attend.block_length", lambda num_queries, masked: int(request.param[-1]))
    return attend.plain if request.param.startswith("plain") else attend


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("heads", HEADS)
def test_all_head_counts_are_the_definition(run, heads, case):
    qkv, mask = draw(case, *HEADS[heads]), make_mask(case)
    found = with_gradients(lambda *qkv: run(*qkv, causal=CASES[case].causal, mask=mask), *qkv)
    expected = with_gradients(lambda *qkv: attend_naive(*qkv, visible(case)), *qkv)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.causal])
def test_every_window_is_the_definition(run, case):
    for window in WINDOWS[1:]:
        qkv, mask = draw(case, 4, 2), make_mask(case, *window)
        expected = with_gradients(lambda *qkv, window=window: attend_naive(*qkv, visible(case, *window)), *qkv)
        for _ in range(2):  # the second time with what the mask keeps for later layers
            found = with_gradients(lambda *qkv, mask=mask: run(*qkv, mask=mask), *qkv)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_query_heads_read_the_kv_head_of_their_group():
    """With one visible key, the result is that key's value: query head i has kv head i // (H/K)."""
    q, k, v = torch.randn(2, 6, 1, C), torch.randn(2, 3, 1, C), torch.randn(2, 3, 1, C)
    torch.testing.assert_close(attend(q, k, v), v[:, [0, 0, 1, 1, 2, 2]])


@pytest.mark.parametrize("case", ["causal", "padding"])
@pytest.mark.parametrize("window", [(None, 0), (5, 3)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_type_is_kept(case, window, dtype, tolerance):
    q, k, v = draw(case, 4, 2, torch.float32)
    found = attend(*(x.to(dtype) for x in (q, k, v)), mask=make_mask(case, *window))
    assert found.dtype == dtype
    expected = attend_naive(q, k, v, visible(case, *window))
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=tolerance)


def test_padded_queries_are_finite(run):
    q, k, v = (torch.randn(B, heads, T, C) for heads in (4, 2, 2))
    padding = torch.tensor([T, T - 1, 1])
    assert run(q, k, v, mask=AttentionMask(T, T, q.device, first_key_B=padding)).isfinite().all()


@pytest.mark.parametrize("window", [(None, 0), (5, 2)])
@pytest.mark.parametrize("case", ["causal", "documents"])
def test_dropout_keeps_the_mean(case, window):
    q, k, v = (x.detach() for x in draw(case, 2, 2, torch.float32))
    mask = make_mask(case, *window)
    draws = torch.stack([attend(q, k, v, mask=mask, dropout=0.3) for _ in range(300)])
    assert not draws[0].equal(draws[1])
    error = (draws.mean(dim=0) - attend(q, k, v, mask=mask)) / draws.std(dim=0).clamp_min(1e-3)
    assert error.pow(2).mean() < 1.5 / 300
