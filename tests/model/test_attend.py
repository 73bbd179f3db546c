"""`attend` is its definition, whatever the head counts, the mask and the block size.

Shape letters as in sqat.model.attend. Which keys a query sees is written out here once more, one pair at a time.
"""

import functools

import pytest
import torch

from sqat.model import attend as attend_module
from sqat.model.attend import attend, attend_naive
from sqat.model.mask import AttentionMask
from sqat.variants import VARIANTS, head_counts

B, T, C = 3, 13, 10
PADDING = torch.tensor([0, 5, 2])
DOCUMENTS = torch.tensor([[0] * 13, [0] * 4 + [1] * 1 + [2] * 8, [0] * 6 + [1] * 7])

CASES = {  # name: (queries, keys, causal, documents, padding)
    "causal": (T, T, True, None, None),
    "full": (T, T, False, None, None),
    "cached": (7, T, True, None, None),
    "one query": (1, T, True, None, None),
    "one token": (1, 1, True, None, None),
    "full, more keys": (7, T, False, None, None),
    "documents": (T, T, True, DOCUMENTS, None),
    "documents, full": (T, T, False, DOCUMENTS, None),
    "padding": (T, T, True, None, PADDING),
    "padding, cached": (7, T, True, None, PADDING),
    "padding, one query": (1, T, True, None, PADDING),
    "documents and padding": (T, T, True, DOCUMENTS, PADDING),
}


@functools.cache
def visible(case: str) -> torch.Tensor:
    """(B, 1, T, S), by definition."""
    num_queries, num_keys, causal, documents, padding = CASES[case]
    seen = torch.zeros(B, 1, num_queries, num_keys, dtype=torch.bool)
    for row, _, t, key in torch.cartesian_prod(*map(torch.arange, seen.shape)).tolist():
        query = num_keys - num_queries + t
        seen[row, 0, t, key] = (
            (key <= query or not causal)
            and (documents is None or documents[row, query] == documents[row, key])
            and (padding is None or key >= padding[row] or key == query)
        )
    return seen


def with_gradients(function, *inputs):
    """The result and the gradients of a fixed weighted sum of it."""
    out = function(*inputs)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return out, *torch.autograd.grad((out * weights).sum(), inputs)


@pytest.fixture(params=["kernel", "kernel, masks of 5 rows", "blocks of 5", "blocks of 1", "as measured"])
def _blocks(request, monkeypatch):
    if "5 rows" in request.param:
        monkeypatch.setattr("sqat.model.mask.QUERY_BLOCK", 5)
    if request.param != "as measured":
        block = {"blocks of 5": 5, "blocks of 1": 1}.get(request.param)
        monkeypatch.setattr("sqat.model.attend.block_length", lambda num_queries, masked: block)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_definition(variant, case):
    num_queries, num_keys, causal, documents, padding = CASES[case]
    query_heads, kv_heads = head_counts(variant, 8)
    shapes = (query_heads, num_queries), (kv_heads, num_keys), (kv_heads, num_keys)
    q, k, v = (torch.randn(B, *shape, C, dtype=torch.float64, requires_grad=True) for shape in shapes)
    mask = None
    if documents is not None or padding is not None:
        mask = AttentionMask(num_queries, num_keys, q.device, causal, documents, padding)

    found = with_gradients(lambda *qkv: attend(*qkv, causal=causal, mask=mask), q, k, v)
    expected = with_gradients(lambda *qkv: attend_naive(*qkv, visible(case)), q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("threads", "rows", "expected"), [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 1, 6), (99, 1, 6), (5, 3, 2)]
)
def test_backward_has_a_head_for_each_thread(monkeypatch, threads, rows, expected):
    """However many key/value heads the kernel is given, the result is the definition's."""
    given = []
    kernel = attend_module._kernel
    monkeypatch.setattr(
        attend_module, "_kernel", lambda q, k, v, *a, **kw: given.append(len(k[0])) or kernel(q, k, v, *a, **kw)
    )
    monkeypatch.setattr(attend_module, "block_length", lambda num_queries, masked: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k, v = (torch.randn(rows, n, T, C, dtype=torch.float64, requires_grad=True) for n in (6, 1, 1))
    found = with_gradients(attend, q, k, v)
    seen = torch.ones(T, T, dtype=torch.bool).tril()
    torch.testing.assert_close(
        found, with_gradients(lambda *qkv: attend_naive(*qkv, seen), q, k, v), rtol=1e-9, atol=1e-9
    )
    assert given == [expected]


def test_query_heads_read_the_kv_head_of_their_group():
    """With one visible key, the result is that key's value: query head i has kv head i // (H/K)."""
    q, k, v = torch.randn(2, 6, 1, C), torch.randn(2, 3, 1, C), torch.randn(2, 3, 1, C)
    torch.testing.assert_close(attend(q, k, v), v[:, [0, 0, 1, 1, 2, 2]])


def test_rows_made_in_parts_are_parts_of_the_whole():
    mask = AttentionMask(7, T, torch.device("cpu"), documents_BS=DOCUMENTS, first_key_B=PADDING)
    whole = mask.rows()
    part = mask.rows(2, 5)
    assert part.shape == (B, 1, 3, T - 2)  # keys after the last query are left out
    assert part.equal(whole[:, :, 2:5, : T - 2])
    assert not whole[:, :, 2:5, T - 2 :].any()


@pytest.mark.parametrize("case", ["causal", "padding"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.bfloat16, 0.03)])
def test_type_is_kept(case, dtype, tolerance):
    q, k, v = (torch.randn(B, heads, T, C) for heads in (4, 2, 2))
    mask = AttentionMask(T, T, q.device, first_key_B=CASES[case][-1]) if case == "padding" else None
    found = attend(*(x.to(dtype) for x in (q, k, v)), mask=mask)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), attend_naive(q, k, v, visible(case)), rtol=0, atol=tolerance)


@pytest.mark.usefixtures("_blocks")
def test_padded_queries_give_numbers():
    q, k, v = (torch.randn(B, heads, T, C) for heads in (4, 2, 2))
    padding = torch.tensor([T, T - 1, 1])
    assert attend(q, k, v, mask=AttentionMask(T, T, q.device, first_key_B=padding)).isfinite().all()


@pytest.mark.parametrize("documents", [None, DOCUMENTS[:1].expand(11, -1)])
def test_dropout_keeps_the_mean(documents):
    q, k, v = (torch.randn(11, 2, T, C) for _ in range(3))
    mask = None if documents is None else AttentionMask(T, T, q.device, documents_BS=documents)
    draws = torch.stack([attend(q, k, v, mask=mask, dropout=0.3) for _ in range(300)])
    assert not draws[0].equal(draws[1])
    error = (draws.mean(dim=0) - attend(q, k, v, mask=mask)) / draws.std(dim=0).clamp_min(1e-3)
    assert error.pow(2).mean() < 1.5 / 300


@pytest.mark.parametrize("num_queries", [5, 7])
def test_only_a_small_mask_is_kept(monkeypatch, num_queries):
    monkeypatch.setattr("sqat.model.mask.QUERY_BLOCK", 5)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1, 2]])[:, :num_queries]
    made = AttentionMask(num_queries, num_queries, torch.device("cpu"), documents_BS=documents)
    kept = AttentionMask(num_queries, num_queries, torch.device("cpu"), documents_BS=documents).keep()
    assert (kept.whole is None) == (num_queries == 7)
    q, k, v = (torch.randn(1, 2, num_queries, 3) for _ in range(3))
    torch.testing.assert_close(attend(q, k, v, mask=kept), attend(q, k, v, mask=made))
