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


@pytest.mark.parametrize("num_experts", [1, 3, E, 401])
def test_no_group_is_empty_and_all_begin_at_multiples_of_16_bytes(num_experts):
    token_R, _, ends_E = arrange(torch.zeros(31, 1, dtype=torch.long), num_experts)
    assert ends_E.dtype == torch.int32
    assert (ends_E.diff(prepend=ends_E[:1] * 0) >= ROWS).all()
    assert (ends_E % ROWS == 0).all()
    assert ends_E[-1] == len(token_R)


def test_grouped_products_are_for_devices_types_and_sizes_that_have_a_kernel(monkeypatch):
    """Devices that are not here, by their description."""

    def fits(major=9, rows=3, dtype=torch.bfloat16, num_experts=E, width=16, hidden=24, **kind):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=major))
        shapes = (num_experts, 2 * hidden, width), (num_experts, width, hidden)
        fc1, fc2 = (torch.empty(shape, device="meta") for shape in shapes)
        x = torch.empty(rows, width, dtype=dtype)
        return supports_grouped(x, x, x, Experts(fc1, None, fc2, None, **kind))

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert fits()
    assert fits(major=10)
    sizes = ({"rows": 0}, {"width": 12}, {"hidden": 20}, {"num_experts": 1024})
    kinds = ({"dtype": torch.float32}, {"dtype": torch.float16}, {"activation": "gelu"}, {"gated": False})
    for change in ({"major": 8}, {"major": 12}, *sizes, *kinds):
        assert not fits(**change), change


def test_batched_products_are_for_few_tokens_without_gradients():
    assert not experts._takes_few(torch.empty(3, 2))
    with torch.no_grad():
        assert experts._takes_few(torch.empty(3, 2))
        assert not experts._takes_few(torch.empty(1000, 2))
