"""FlexAttention's mask function and blocks, held to the rows that the other ways use; tests/gpu has the kernel."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

from sqat.cuda import flex
from sqat.model.attend import attend_naive
from sqat.model.mask import AttentionMask

B, T, S = 3, 37, 53
DOCUMENTS = torch.tensor([[0] * S, [0] * 4 + [1] * 1 + [2] * 48, [0] * 40 + [1] * 13])
PADDING = torch.tensor([0, 5, 23])

CASES = {
    "plain": {},
    "documents": {"documents_BS": DOCUMENTS},
    "one row of documents": {"documents_BS": DOCUMENTS[1:2]},
    "padding": {"first_key_B": PADDING},
    "documents and padding": {"documents_BS": DOCUMENTS, "first_key_B": PADDING},
}


@pytest.fixture(params=CASES)
def make_mask(request):
    def make(queries, window, global_tokens):
        limits = {"window": window, "global_tokens": global_tokens}
        return AttentionMask(queries, S, torch.device("cpu"), **limits, **CASES[request.param])

    return make


@pytest.mark.parametrize("queries", [T, S])
@pytest.mark.parametrize(("window", "global_tokens"), [(1, 0), (7, 0), (7, 3), (60, 2)])
def test_the_function_is_the_rows_and_every_pair_seen_is_in_a_needed_block(
    monkeypatch, make_mask, queries, window, global_tokens
):
    mask = make_mask(queries, window, global_tokens)
    seen = create_mask(flex.block_mask(mask).mask_mod, B, 1, queries, S, device="cpu")
    assert seen.equal(mask.rows().expand_as(seen))
    monkeypatch.setattr(flex, "BLOCK", 4)
    needed = flex.needed_blocks(mask).repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)[:, :queries, :S]
    seen = mask.rows()[:, 0]
    assert not (seen & ~needed).any()
    assert (window == 60) == bool(needed[:, -1].all())  # and far ones are left out


@pytest.mark.parametrize("global_tokens", [0, 3])
def test_attention_by_the_block_mask(monkeypatch, make_mask, global_tokens):
    """The way that `attend` takes on a GPU, with the plain function for the compiled one."""
    monkeypatch.setattr(flex, "_compiled", lambda: flex_attention)
    mask = make_mask(T, 7, global_tokens)
    q, k, v = (torch.randn(B, heads, length, 16) for heads, length in ((4, T), (2, S), (2, S)))
    torch.testing.assert_close(
        flex.attend_flex(q, k, v, mask=mask), attend_naive(q, k, v, mask.rows()), rtol=1e-5, atol=1e-5
    )


def test_it_serves_windows_of_many_queries_where_there_is_a_compiler(monkeypatch):
    def fits(queries=128, head_dim=16, window=7, compiler=True, **options):
        monkeypatch.setattr(flex, "HAS_COMPILER", compiler)
        q = torch.empty(1, 1, queries, head_dim)
        return flex.fits(q, q, q, mask=AttentionMask(queries, queries, q.device, window=window), **options)

    assert fits()
    for change in ({"queries": 127}, {"head_dim": 8}, {"window": None}, {"compiler": False}, {"dropout": 0.1}):
        assert not fits(**change), change
