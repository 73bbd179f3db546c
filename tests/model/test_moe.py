"""The router, and its statistics."""

import pytest
import torch
from torch.nn import functional

from sqat.model.moe import Experts, MoE, RouterStats, router_stats, run_experts_naive

B, T, D, E, K = 5, 11, 23, 7, 2


@pytest.fixture
def moe(tiny_config):
    return make_moe(tiny_config(moe=True, feedforward_bias=True))


def make_moe(config):
    layer = MoE(config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer


def routed(probs_NE, k=K, real_N=None):
    selected_Nk, experts_Nk = probs_NE.topk(k)
    return router_stats(probs_NE, selected_Nk, experts_Nk, real_N)


def test_equals_the_definition(moe):
    x = torch.randn(B, T, D)
    experts = Experts(moe.fc1_weight, moe.fc1_bias, moe.fc2_weight, moe.fc2_bias)
    likeliest = functional.linear(x, moe.router.weight).flatten(0, 1).topk(K)
    share = likeliest.values.softmax(dim=-1)
    expected = run_experts_naive(x.flatten(0, 1), likeliest.indices, share, experts)
    out, _ = moe(x)
    torch.testing.assert_close(out, expected.view(B, T, D), rtol=1e-4, atol=1e-5)


def test_routing_is_decided_in_full_precision(moe):
    x = torch.randn(B, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        _, lower = moe(x)
    torch.testing.assert_close(lower, moe(x)[1], rtol=0, atol=0)


class TestStatistics:
    def test_sums(self, moe):
        probs_NE = functional.linear(torch.randn(T, D), moe.router.weight).softmax(dim=-1)
        stats = routed(probs_NE)
        chosen_NE = torch.zeros_like(probs_NE).scatter(1, probs_NE.topk(K).indices, 1.0)
        torch.testing.assert_close(stats.load_E, chosen_NE.sum(dim=0))
        torch.testing.assert_close(stats.probability_E, probs_NE.sum(dim=0))
        torch.testing.assert_close(stats.selected_E, (probs_NE * chosen_NE).sum(dim=0))
        torch.testing.assert_close(stats.entropy, torch.distributions.Categorical(probs_NE).entropy().sum())
        assert stats.tokens == T

    def test_batches_add_up_and_padding_does_not_count(self, moe):
        x, real = torch.randn(B, T, D), torch.rand(B, T) < 0.6
        whole, first, second = (moe(part)[1] for part in (x, x[:2], x[2:]))
        torch.testing.assert_close(RouterStats(*(a + b for a, b in zip(first, second, strict=True))), whole)
        torch.testing.assert_close(moe(x, real)[1], moe(x[real].unsqueeze(0))[1])
        assert moe(x, real)[0].equal(moe(x)[0])  # it is routed all the same

    def test_gradients_flow_through_probabilities_alone(self, moe):
        out, stats = moe(torch.randn(B, T, D))
        out.square().sum().backward(retain_graph=True)
        assert moe.router.weight.grad.abs().max() > 0  # the router learns from the output, too
        differentiable = {field for field, value in stats._asdict().items() if value.requires_grad}
        assert differentiable == {"probability_E", "selected_E"}
        for field in differentiable:
            (gradient,) = torch.autograd.grad(getattr(stats, field)[0], moe.router.weight, retain_graph=True)
            assert gradient.abs().max() > 0
