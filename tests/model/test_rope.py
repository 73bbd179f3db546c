"""Rotary embedding: its definition in complex numbers, and what makes it useful."""

import pytest
import torch

from sqat.model.rope import rotary_tables, rotate, rotate_naive

B, H, T, C = 2, 3, 11, 10
THETA = 500.0


def draw(*shape, dtype=torch.float32):
    return torch.randn(*shape, C, dtype=dtype)


def test_pairs_are_turned_as_complex_numbers():
    x, positions = draw(B, H, T), torch.randint(0, 1000, (T,))
    first, second = x.double().chunk(2, dim=-1)
    angles = positions.double().unsqueeze(-1) * THETA ** (-2 * torch.arange(C // 2, dtype=torch.float64) / C)
    expected = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    found = rotate(x, rotary_tables(positions, C, THETA))
    torch.testing.assert_close(found.double(), torch.cat((expected.real, expected.imag), dim=-1), atol=2e-4, rtol=0)


def test_it_is_its_naive_form_and_has_its_gradient():
    tables = rotary_tables(torch.arange(T).expand(B, T) * torch.tensor([[1], [3]]), C, THETA)
    x, upstream = draw(B, T, H).transpose(1, 2).requires_grad_(), draw(B, H, T)
    results = [(out := f(x, tables), *torch.autograd.grad(out, x, upstream)) for f in (rotate, rotate_naive)]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
    assert rotate(x, tables).stride() == x.stride()
    assert rotate(x.bfloat16(), tables).dtype == torch.bfloat16
    assert rotate(x.bfloat16(), tables, torch.float32).dtype == torch.float32


def test_length_is_kept():
    x = draw(B, H, T)
    turned = rotate(x, rotary_tables(torch.arange(T), C, THETA))
    assert not turned[:, :, 1:].allclose(x[:, :, 1:])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_position_zero_stays():
    x = draw(B, H, 1)
    assert rotate(x, rotary_tables(torch.zeros(1), C, THETA)).equal(x)


@pytest.mark.parametrize("shift", [1, 17, 1000])
def test_scores_depend_on_distance_alone(shift):
    q, k = draw(1, 1, T), draw(1, 1, T)
    near, far = (rotary_tables(torch.arange(T) + start, C, THETA) for start in (0, shift))
    scores = [rotate(q, tables) @ rotate(k, tables).transpose(-1, -2) for tables in (near, far)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-3, rtol=0)


def test_positions_of_each_row():
    x, positions = draw(B, H, T), torch.randint(0, 100, (B, T))
    together = rotate(x, rotary_tables(positions, C, THETA))
    for row in range(B):
        torch.testing.assert_close(together[row], rotate(x[row : row + 1], rotary_tables(positions[row], C, THETA))[0])


def test_shared_positions_are_each_row_s():
    shared, own = rotary_tables(torch.arange(T), C, THETA), rotary_tables(torch.arange(T).expand(B, T), C, THETA)
    assert own.cos.shape == (B, 1, T, C // 2)
    x = draw(B, H, T)
    assert rotate(x, shared).equal(rotate(x, own))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_type_is_kept(dtype):
    assert rotate(draw(B, H, T, dtype=dtype), rotary_tables(torch.arange(T), C, THETA)).dtype == dtype
