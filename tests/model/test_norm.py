"""Norms by name, held against their formulas."""

import pytest
import torch

from sqat.model.norm import make_norm

D = 23


def rmsnorm(x, eps):
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + eps).sqrt()


def layernorm(x, eps):
    centred = x - x.mean(dim=-1, keepdim=True)
    return rmsnorm(centred, eps)


@pytest.mark.parametrize(
    ("kind", "formula", "default_eps"),
    [("rmsnorm", rmsnorm, torch.finfo(torch.float32).eps), ("layernorm", layernorm, 1e-5)],
)
@pytest.mark.parametrize("eps", [None, 1e-6, 1e-2])
def test_formulas(kind, formula, default_eps, eps):
    x = 1e-3 * torch.randn(2, 5, D)  # small enough for eps to matter
    norm = make_norm(kind, D, eps)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(D))
    expected = formula(x, default_eps if eps is None else eps) * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-4, atol=1e-5)


def test_no_norm_is_the_identity_and_another_width_is_an_error():
    x = torch.randn(2, D)
    norm = make_norm(None, D, None)
    assert norm(x) is x
    assert not list(norm.parameters())
    with pytest.raises(RuntimeError, match="shape"):
        make_norm("rmsnorm", D, None)(torch.randn(3, D - 2))
