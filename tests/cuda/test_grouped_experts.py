"""Experts for GPUs. What they compute is checked here, with torch's kernels for CPUs and with the definition of these;
how they run on a GPU, in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from sqat.config import ACTIVATIONS
from sqat.cuda import grouped_experts
from sqat.cuda.grouped_experts import (
    ROWS,
    arrange,
    grouped_mm_naive,
    run_experts_few,
    run_experts_grouped,
    supports_grouped,
    takes_few,
)
from sqat.model.experts import ExpertWeights, run_experts, run_experts_naive

N, E = 31, 7

ROUTINGS: dict[str, tuple[int, Callable[[], Tensor]]] = {  # name: (E, experts of each token)
    "two of seven": (E, lambda: torch.rand(N, E).topk(2).indices),
    "some never chosen": (E, lambda: torch.tensor([[5, 1]]).expand(N, 2)),
    "last one never chosen": (3, lambda: torch.zeros(N, 1, dtype=torch.long)),
    "the only expert": (1, lambda: torch.zeros(N, 1, dtype=torch.long)),
    "all experts": (3, lambda: torch.arange(3).expand(N, 3)),
    "multiples of the block": (3, lambda: torch.arange(ROWS * 3).view(-1, 1) % 3),
    "one token": (E, lambda: torch.tensor([[6, 2]])),
    "hundreds of experts": (401, lambda: torch.rand(5, 401).topk(3).indices),
}


def draw(
    experts_Nk: Tensor, num_experts: int, gated: bool = True, biased: bool = True, dtype=torch.float64, sizes=(11, 5)
) -> tuple[Tensor, Tensor, ExpertWeights]:
    width, hidden = sizes
    inner = hidden * (2 if gated else 1)
    shapes = ((num_experts, inner, width), (num_experts, inner), (num_experts, width, hidden), (num_experts, width))
    weights = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]
    if not biased:
        weights[1::2] = None, None
    x = torch.randn(len(experts_Nk), width, dtype=dtype, requires_grad=True)
    share = torch.rand(experts_Nk.shape, dtype=torch.promote_types(dtype, torch.float32), requires_grad=True)
    return x, share, ExpertWeights(*weights)


def with_gradients(function: Callable, x: Tensor, experts_Nk: Tensor, share: Tensor, weights, *options) -> list[Tensor]:
    out = function(x, experts_Nk, share, weights, *options)
    scale = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    leaves = [leaf for leaf in (x, share, *weights) if leaf is not None]
    return [out, *torch.autograd.grad((out * scale).sum(), leaves)]


def assert_close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):  # relative to the largest entry: sums of many terms round alike
        assert a.shape == b.shape
        assert (a - b).abs().max() <= tolerance * b.abs().max()


@pytest.fixture
def by_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any type and width, which torch's kernels do not take."""
    monkeypatch.setattr(grouped_experts, "grouped_mm", grouped_mm_naive)


@pytest.mark.parametrize("routing", ROUTINGS)
class TestArrange:
    def test_every_selection_has_a_row_of_its_own_among_its_experts(self, routing: str) -> None:
        num_experts, make = ROUTINGS[routing]
        experts_Nk = make()
        token, place, ends = arrange(experts_Nk, num_experts)
        assert place.unique().numel() == experts_Nk.numel()
        assert torch.equal(token[place], torch.arange(len(experts_Nk)).unsqueeze(1).expand(experts_Nk.shape))
        owner = torch.repeat_interleave(torch.arange(num_experts), ends.diff(prepend=ends[:1] * 0))
        assert torch.equal(owner[place], experts_Nk)

    def test_what_kernels_ask_of_groups(self, routing: str) -> None:
        """None is empty, all begin at multiples of 16 bytes, and they cover the buffer, whose size is known before."""
        num_experts, make = ROUTINGS[routing]
        experts_Nk = make()
        arrangement = arrange(experts_Nk, num_experts)
        ends = arrangement.ends_E
        assert ends.dtype == torch.int32
        assert (ends.diff(prepend=ends[:1] * 0) >= ROWS).all()
        assert (ends % ROWS == 0).all()
        assert ends[-1] == len(arrangement.token_R) == (-(-experts_Nk.numel() // ROWS) + num_experts) * ROWS


@pytest.mark.usefixtures("by_definition")
class TestGrouped:
    @pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
    @pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=str)
    def test_equals_the_naive_loop(self, activation: str, gated: bool, biased: bool, dtype, tolerance: float) -> None:
        num_experts, make = ROUTINGS["two of seven"]
        experts_Nk = make()
        x, share, weights = draw(experts_Nk, num_experts, gated, biased, dtype)
        found, expected = (
            with_gradients(run, x, experts_Nk, share, weights, activation, gated)
            for run in (run_experts_grouped, run_experts_naive)
        )
        assert_close(found, expected, tolerance)

    @pytest.mark.parametrize("routing", ROUTINGS)
    def test_every_routing(self, routing: str) -> None:
        num_experts, make = ROUTINGS[routing]
        experts_Nk = make()
        x, share, weights = draw(experts_Nk, num_experts)
        found, expected = (
            with_gradients(run, x, experts_Nk, share, weights, "silu", True)
            for run in (run_experts_grouped, run_experts_naive)
        )
        assert_close(found, expected, 1e-11)

    @pytest.mark.parametrize("activation", ["silu", "linear"])
    @pytest.mark.parametrize("gated", [True, False])
    def test_dropout_and_its_gradients(self, activation: str, gated: bool) -> None:
        """Backward uses the mask of its forward: with the generator set back, gradients are finite differences."""
        experts_Nk = torch.tensor([[0, 2], [2, 1], [2, 0], [1, 2], [0, 1]])
        x, share, weights = draw(experts_Nk, 4, gated, sizes=(3, 2))

        def run(x: Tensor, share: Tensor, *weights: Tensor) -> Tensor:
            torch.manual_seed(3)
            return run_experts_grouped(x, experts_Nk, share, ExpertWeights(*weights), activation, gated, 0.4)

        assert torch.autograd.gradcheck(run, (x, share, *weights))
        kept = run_experts_grouped(x, experts_Nk, share, weights, activation, gated)
        assert not run(x, share, *weights).equal(kept)

    def test_dropout_keeps_the_mean(self) -> None:
        rows, experts_Nk = 3000, torch.tensor([[4, 1]])
        x, share, weights = draw(experts_Nk, E)
        many = x.expand(rows, -1), experts_Nk.expand(rows, 2), share.expand(rows, 2), weights, "silu", True
        kept, dropped = run_experts_grouped(*many), run_experts_grouped(*many, 0.3)
        error = (dropped.mean(dim=0) - kept[0]) / (dropped.std(dim=0) / rows**0.5)
        assert dropped.std(dim=0).min() > 0
        assert error.abs().max() < 5

    def test_only_wanted_gradients_are_asked_for(self) -> None:
        experts_Nk = ROUTINGS["two of seven"][1]()
        x, share, weights = draw(experts_Nk, E)
        frozen = ExpertWeights(*(tensor.detach() for tensor in weights))
        run_experts_grouped(x, experts_Nk, share, frozen, "silu", True).sum().backward()
        assert x.grad is not None
        assert frozen.fc1_EID.grad is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize("form", ["rows", "columns"])
def test_torchs_kernel_is_the_definition(form: str, dtype: torch.dtype, tolerance: float) -> None:
    offs = torch.tensor([8, 16, 40], dtype=torch.int32)
    a, rows = torch.randn(40, 16, dtype=dtype), torch.randn(40, 24, dtype=dtype)
    pair = (a, torch.randn(3, 24, 16, dtype=dtype).transpose(1, 2)) if form == "rows" else (a.T, rows)
    found, expected = (
        grouped_experts.grouped_mm(*pair, offs=offs),
        grouped_mm_naive(*(x.float() for x in pair), offs=offs),
    )
    assert found.dtype == dtype
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("routing", ["two of seven", "some never chosen"])
def test_torchs_kernel_under_autocast(routing: str, gated: bool) -> None:
    num_experts, make = ROUTINGS[routing]
    experts_Nk = make()
    x, share, weights = draw(experts_Nk, num_experts, gated, dtype=torch.float32, sizes=(24, 16))
    expected = with_gradients(run_experts_naive, x, experts_Nk, share, weights, "silu", gated)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(run_experts_grouped, x, experts_Nk, share, weights, "silu", gated)
    assert all(tensor.dtype == torch.float32 for tensor in found)
    assert not found[0].equal(expected[0])
    assert_close(found, expected, 0.05)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
def test_few_tokens_equal_the_naive_loop(routing: str, gated: bool, biased: bool) -> None:
    """Both ways: chosen experts' weights gathered, and all experts on all tokens."""
    num_experts, make = ROUTINGS[routing]
    experts_Nk = make()
    x, share, weights = draw(experts_Nk, num_experts, gated, biased)
    found, expected = (
        run(x, experts_Nk, share, weights, "gelu", gated) for run in (run_experts_few, run_experts_naive)
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_few_tokens_in_bfloat16_give_float32() -> None:
    experts_Nk = ROUTINGS["two of seven"][1]()
    x, share, weights = draw(experts_Nk, E, dtype=torch.bfloat16)
    found = run_experts_few(x, experts_Nk, share, weights, "silu", True)
    expected = run_experts(x, experts_Nk, share, weights, "silu", True)
    assert found.dtype == expected.dtype == torch.float32
    assert (found - expected).abs().max() < 0.03 * expected.abs().max()


class TestWhichWay:
    """Devices that are not here, by their description."""

    def tokens(self, device: str = "cuda", rows: int = 3) -> SimpleNamespace:
        class Rows(SimpleNamespace):
            def __len__(self) -> int:
                return rows

        return Rows(device=torch.device(device))

    def weights(self, experts: int = E, width: int = 16, hidden: int = 24) -> ExpertWeights:
        shapes = (experts, 2 * hidden, width), (experts, width, hidden)
        fc1, fc2 = (torch.empty(shape, device="meta") for shape in shapes)
        return ExpertWeights(fc1, None, fc2, None)

    @pytest.mark.parametrize(
        ("capability", "supported"), [((9, 0), True), ((10, 0), True), ((8, 9), False), ((12, 0), False)], ids=str
    )
    def test_compute_capability(self, capability: tuple[int, int], supported: bool, monkeypatch) -> None:
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        properties = SimpleNamespace(major=capability[0], minor=capability[1])
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
        assert supports_grouped(self.tokens(), self.weights(), torch.bfloat16) == supported

    @pytest.mark.parametrize(
        ("tokens", "weights", "compute"),
        [
            ({"device": "cpu"}, {}, torch.bfloat16),
            ({"rows": 0}, {}, torch.bfloat16),
            ({}, {}, torch.float32),
            ({}, {}, torch.float16),
            ({}, {"width": 12}, torch.bfloat16),
            ({}, {"hidden": 20}, torch.bfloat16),
            ({}, {"experts": 1024}, torch.bfloat16),
        ],
        ids=str,
    )
    def test_what_the_kernel_does_not_take(self, tokens, weights, compute, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(grouped_experts, "_has_kernel", lambda device: True)
        assert supports_grouped(self.tokens(), self.weights(), torch.bfloat16)
        assert not supports_grouped(self.tokens(**tokens), self.weights(**weights), compute)

    def test_few_tokens_are_for_decoding_on_gpus(self) -> None:
        assert not takes_few(self.tokens())
        with torch.no_grad():
            assert takes_few(self.tokens())
            assert not takes_few(self.tokens("cpu"))
            assert not takes_few(self.tokens(rows=1000))
