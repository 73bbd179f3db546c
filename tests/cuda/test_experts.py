"""What the kernels for GPUs ask of experts, and where they are the way; tests/model holds what they compute to the
definition, tests/gpu runs them.
"""

from types import SimpleNamespace

import pytest
import torch

from sqat.cuda import experts
from sqat.cuda.experts import ROWS, arrange, grouped_mm_naive, run_experts_few, supports_grouped
from sqat.model.moe import Experts, run_experts

E = 7


@pytest.mark.parametrize("num_experts", [1, 3, E, 401])
def test_groups_as_kernels_ask_for_them(num_experts):
    """None is empty, all begin at multiples of 16 bytes, and they cover the buffer, whose size is known before."""
    experts_Nk = torch.zeros(31, 1, dtype=torch.long)
    arrangement = arrange(experts_Nk, num_experts)
    ends = arrangement.ends_E
    assert ends.dtype == torch.int32
    assert (ends.diff(prepend=ends[:1] * 0) >= ROWS).all()
    assert (ends % ROWS == 0).all()
    assert ends[-1] == len(arrangement.token_R) == (-(-experts_Nk.numel() // ROWS) + num_experts) * ROWS


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("form", ["rows", "columns"])
def test_torchs_kernel_is_the_definition(form, dtype, tolerance):
    offs = torch.tensor([8, 16, 40], dtype=torch.int32)
    a, rows = torch.randn(40, 16, dtype=dtype), torch.randn(40, 24, dtype=dtype)
    pair = (a, torch.randn(3, 24, 16, dtype=dtype).transpose(1, 2)) if form == "rows" else (a.T, rows)
    found, expected = experts.grouped_mm(*pair, offs=offs), grouped_mm_naive(*(x.float() for x in pair), offs=offs)
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_few_tokens_in_bfloat16_give_float32():
    experts_Nk = torch.rand(31, E).topk(2).indices
    shapes = ((E, 10, 11), (E, 10), (E, 11, 5), (E, 11))
    weights = Experts(*(torch.randn(shape).bfloat16() for shape in shapes))
    inputs = torch.randn(31, 11).bfloat16(), experts_Nk, torch.rand(31, 2), weights
    found, expected = run_experts_few(*inputs), run_experts(*inputs)
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


class TestWhichWay:
    """Devices that are not here, by their description."""

    def fits(self, rows=3, dtype=torch.bfloat16, num_experts=E, width=16, hidden=24):
        shapes = (num_experts, 2 * hidden, width), (num_experts, width, hidden)
        fc1, fc2 = (torch.empty(shape, device="meta") for shape in shapes)
        x = torch.empty(rows, width, dtype=dtype)
        return supports_grouped(x, x, x, Experts(fc1, None, fc2, None))

    def test_compute_capability(self, monkeypatch):
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for major, supported in {9: True, 10: True, 8: False, 12: False}.items():
            device = SimpleNamespace(major=major)
            monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, device=device: device)
            assert self.fits() == supported

    def test_what_the_kernel_does_not_take(self, monkeypatch):
        monkeypatch.setattr(experts, "_has_kernel", lambda device: True)
        assert self.fits()
        types = [{"dtype": dtype} for dtype in (torch.float32, torch.float16)]
        for changes in ({"rows": 0}, {"width": 12}, {"hidden": 20}, {"num_experts": 1024}, *types):
            assert not self.fits(**changes), changes

    def test_batched_products_are_for_few_tokens_without_gradients(self):
        few, many = ((torch.empty(rows, 2), None, None, None) for rows in (3, 1000))
        assert not experts._takes_few(*few)
        with torch.no_grad():
            assert experts._takes_few(*few)
            assert not experts._takes_few(*many)
