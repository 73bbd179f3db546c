"""Rotary embedding: its definition in complex numbers, and what makes it useful."""

import torch

from sqat.model.rope import rotary_tables, rotate

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


def test_length_and_type_are_kept_and_position_zero_stays():
    x = draw(B, H, T)
    turned = rotate(x, rotary_tables(torch.arange(T), C, THETA))
    assert turned[:, :, :1].equal(x[:, :, :1])
    assert not turned[:, :, 1:].allclose(x[:, :, 1:])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert rotate(x.to(dtype), rotary_tables(torch.arange(T), C, THETA)).dtype == dtype
