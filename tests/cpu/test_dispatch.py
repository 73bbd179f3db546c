from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from sqat.cpu.dispatch import dispatch
from sqat.model.experts import ExpertWeights, run_experts, run_experts_naive

N, K, E = 31, 2, 7


@pytest.fixture
def experts_Nk() -> torch.Tensor:
    """Expert 3 is chosen by nobody."""
    scores = torch.rand(N, E)
    scores[:, 3] = -1
    return scores.topk(K, dim=-1).indices


@pytest.mark.parametrize("block", [1, 5, 64])
def test_every_selection_has_a_row_of_its_own_among_its_experts(experts_Nk: torch.Tensor, block: int) -> None:
    token, place, spans = dispatch(experts_Nk, E, block)
    assert place.unique().numel() == N * K
    assert torch.equal(token[place], torch.arange(N).unsqueeze(1).expand(N, K))
    for e, rows in enumerate(spans):
        mine = place[experts_Nk == e]
        assert ((mine >= rows.start) & (mine < rows.stop)).all()
        assert (rows.stop - rows.start) % block == 0
        assert 0 <= rows.stop - rows.start - len(mine) < block
    assert spans[0].start == 0
    assert all(a.stop == b.start for a, b in pairwise(spans))
    assert spans[-1].stop <= len(token) == N * K + E * (block - 1)  # however they chose


@pytest.mark.parametrize("dropout", [0.0, 0.375])
def test_filled_up_rows_change_nothing(
    experts_Nk: torch.Tensor, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    width, hidden = 11, 13
    shapes = ((E, 2 * hidden, width), (E, 2 * hidden), (E, width, hidden), (E, width))
    weights = ExpertWeights(*(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes))
    x = torch.randn(N, width, dtype=torch.float64, requires_grad=True)
    share = torch.rand(N, K, dtype=torch.float64, requires_grad=True)

    def gradients(out: torch.Tensor) -> list[torch.Tensor]:
        return [out, *torch.autograd.grad(out.sin().sum(), [x, share, *weights])]

    monkeypatch.setattr("sqat.cpu.sorted_experts._block", lambda *_: 5)
    filled = run_experts(x, experts_Nk, share, weights, "silu", True, dropout)
    if dropout:
        assert not torch.equal(filled, run_experts_naive(x, experts_Nk, share, weights, "silu", True))
        assert all(gradient.isfinite().all() for gradient in gradients(filled))
        return
    expected = gradients(run_experts_naive(x, experts_Nk, share, weights, "silu", True))
    torch.testing.assert_close(gradients(filled), expected)
