"""The losses: cross-entropy without all logits at once, and the routers' two forms.

Shape letters: N rows, D width, V vocabulary, E experts.
"""

import pytest
import torch
from torch.nn import functional

from sqat.data.batches import IGNORE
from sqat.errors import ConfigError
from sqat.model.moe import router_stats
from sqat.train.loss import CHUNK_ROWS, cross_entropy_naive, linear_cross_entropy, router_loss, token_losses

N, D, V, E = 23, 11, 41, 7


@pytest.fixture(params=[(1024, 128), (23, 7), (5, 5), (3, 1)], ids=lambda rows: f"chunks of {rows[0]}, {rows[1]}")
def _chunks(request, monkeypatch):
    monkeypatch.setitem(CHUNK_ROWS, "cpu", request.param)


def draw(biased):
    shapes = [(N, D), (V, D), (V,)]
    hidden, weight, bias = (torch.randn(shape, requires_grad=True) for shape in shapes)
    return hidden, weight, bias if biased else None


def draw_targets(ignored):
    share = {"none": 0, "some": 0.4, "all": 1}[ignored]
    return torch.randint(V, (N,)).masked_fill(torch.rand(N) < share, IGNORE)


def with_gradients(function, inputs, targets, scale=1.0):
    sums = function(*inputs, targets)
    leaves = [leaf for leaf in inputs if leaf is not None]
    return sums, torch.autograd.grad(sums.loss * scale, leaves)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("ignored", ["none", "some", "all"])
@pytest.mark.parametrize("all_rows", [False, True], ids=["rows with targets", "all rows, as on GPUs"])
def test_equals_the_naive_form(monkeypatch, biased, ignored, all_rows):
    monkeypatch.setattr("sqat.train.loss._counting_waits", lambda device: all_rows)
    inputs, targets = draw(biased), draw_targets(ignored)
    found, expected = (with_gradients(f, inputs, targets, 0.37) for f in (linear_cross_entropy, cross_entropy_naive))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_confident_logits_do_not_overflow():
    """exp(-20,000) is zero in float32; its logarithm is not needed."""
    hidden, weight = torch.tensor([[1e4]], requires_grad=True), torch.tensor([[1.0], [-1.0]], requires_grad=True)
    right, wrong = (linear_cross_entropy(hidden, weight, None, torch.tensor([target])) for target in (0, 1))
    assert (right.loss.item(), right.correct.item()) == (0, 1)
    assert (wrong.loss.item(), wrong.correct.item()) == (2e4, 0)


def test_autocast_is_close_and_keeps_types():
    inputs, targets = draw(biased=True), draw_targets("some")
    expected, expected_gradients = with_gradients(linear_cross_entropy, inputs, targets)
    with torch.autocast("cpu", torch.bfloat16):
        found, gradients = with_gradients(linear_cross_entropy, inputs, targets)
    assert 0 < abs(found.loss - expected.loss) < 0.01 * expected.loss
    for a, b in zip(gradients, expected_gradients, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() < 0.02 * b.abs().max()


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no bias"])
def test_token_losses_are_the_terms_of_the_sum(biased):
    inputs, targets = draw(biased), draw_targets("none")
    losses_N, hits_N = token_losses(*inputs, targets)
    logits_NV = functional.linear(*inputs)
    torch.testing.assert_close(losses_N, functional.cross_entropy(logits_NV, targets, reduction="none"))
    assert hits_N.equal(logits_NV.argmax(dim=-1) == targets)
    assert not losses_N.requires_grad


class TestRouterLoss:
    """Routing is described by each token's probabilities; the first k experts by probability are chosen."""

    @staticmethod
    def stats(probs_NE, k=1):
        return router_stats(probs_NE, *probs_NE.topk(k))

    @staticmethod
    def routing(experts_N, share):
        """Tokens that give `share` to one expert each, and the rest to the others evenly."""
        rest = (1 - share) / (E - 1)
        return rest + (share - rest) * functional.one_hot(experts_N, E)

    @pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
    def test_balanced_tells_collapse_from_balance_and_card_does_not(self, share):
        """The original's form is E · mean(selected probability): the same, however the load is spread."""
        spread, collapsed = torch.arange(5 * E) % E, torch.full((5 * E,), 3)
        stats = [self.stats(self.routing(experts, share)) for experts in (spread, collapsed)]
        assert [router_loss([each], "balanced").item() for each in stats] == pytest.approx([1, E * share])
        assert [router_loss([each], "rxnn").item() for each in stats] == pytest.approx([E * share] * 2)

    @pytest.mark.parametrize("k", [1, 2, E])
    def test_formulas(self, k):
        probs_NE = torch.randn(N, E).softmax(dim=-1)
        chosen_NE = torch.zeros(N, E).scatter(1, probs_NE.topk(k).indices, 1.0)
        share_E = chosen_NE.sum(dim=0) / (N * k)
        stats = self.stats(probs_NE, k)
        torch.testing.assert_close(router_loss([stats], "balanced"), E * (share_E * probs_NE.mean(dim=0)).sum())
        torch.testing.assert_close(router_loss([stats], "rxnn"), E * (probs_NE * chosen_NE).sum() / (N * k))

    @pytest.mark.parametrize("kind", ["balanced", "rxnn"])
    def test_mean_over_layers_and_no_tokens_are_no_loss(self, kind):
        layers = [self.stats(torch.randn(N, E).softmax(dim=-1), 2) for _ in range(3)]
        each = torch.stack([router_loss([layer], kind) for layer in layers])
        torch.testing.assert_close(router_loss(layers, kind), each.mean())
        probs_NE = torch.randn(N, E).softmax(dim=-1)
        stats = router_stats(probs_NE, *probs_NE.topk(2), torch.zeros(N, dtype=torch.bool))
        assert router_loss([stats], kind).item() == 0

    def test_descending_the_balanced_form_balances(self):
        logits_NE = (torch.randn(200, E) * 0.1 + torch.tensor([2.0] + [0.0] * (E - 1))).requires_grad_()
        optimizer = torch.optim.SGD([logits_NE], lr=20.0)
        for _ in range(100):
            optimizer.zero_grad()
            router_loss([self.stats(logits_NE.softmax(dim=-1))], "balanced").backward()
            optimizer.step()
        load_E = self.stats(logits_NE.softmax(dim=-1)).load_E
        assert load_E.max() < 0.5 * 200  # all 200 tokens chose expert 0 at first
        with pytest.raises(ConfigError, match="router_loss is 'switch', but must be balanced or rxnn"):
            router_loss([self.stats(torch.full((N, E), 1 / E))], "switch")
