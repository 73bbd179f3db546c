"""One optimisation step: micro-batches count as one batch, and the fast paths train as the naive ones."""

import pytest
import torch
from torch import nn

from sqat.data.batches import IGNORE, Batch
from sqat.data.tokenizer import PAD
from sqat.model import Decoder
from sqat.model.moe import run_experts_naive
from sqat.train.loss import cross_entropy_naive, router_loss
from sqat.train.step import TrainingLoss, router_stats, train_step, use_bf16

T, V = 11, 41


def draw(rows):
    """Rows padded to different lengths at the end, as batches of mode "rows"."""
    inputs = torch.randint(4, V, (rows, T))
    lengths = torch.randint(3, T + 1, (rows, 1))
    inputs[torch.arange(T) >= lengths] = PAD
    targets = inputs.roll(-1, dims=1).masked_fill(torch.arange(1, T + 1) >= lengths, IGNORE)
    return Batch(inputs, targets, None, None)


def split(batch, sizes):
    parts = zip(batch.inputs.split(sizes), batch.targets.split(sizes), strict=True)
    return [Batch(*part, None, None) for part in parts]


def summed(logits, targets):
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")


class Engine:
    """Runs steps of a model, without clipping, and keeps the gradients of the last one."""

    def __init__(self, model, make=torch.optim.SGD, lr=0.1, **options):
        self.task = TrainingLoss(model.train(), **options)
        self.optimizer = make(model.parameters(), lr=lr)
        self.gradients = []
        self.optimizer.register_step_pre_hook(self._keep_gradients)

    def _keep_gradients(self, *_):
        self.gradients = [parameter.grad.clone() for parameter in self.task.parameters()]

    def run(self, *micro_batches):
        total = sum(batch.num_targets for batch in micro_batches)
        return train_step(self.task, micro_batches, self.optimizer, total_targets=total)


@pytest.mark.parametrize("sizes", [[1] * 7, [2, 5], [4, 2, 1]], ids=str)
@pytest.mark.parametrize("moe", [False, True])
def test_micro_batches_are_one_batch(tiny_config, moe, sizes):
    batch = draw(7)
    engines = []
    for micro_batches in ([batch], split(batch, sizes)):
        torch.manual_seed(3)
        engine = Engine(Decoder(tiny_config(moe)), router_loss="none")
        engines.append((engine, engine.run(*micro_batches)))
    (whole, whole_sums), (parts, parts_sums) = engines
    torch.testing.assert_close(parts.gradients, whole.gradients, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(parts_sums, whole_sums, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(list(parts.task.parameters()), list(whole.task.parameters()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["balanced", "rxnn", "none"])
def test_a_batch_given_twice_is_the_batch_and_router_losses_are_averaged(tiny_config, kind):
    batch, model = draw(7), Decoder(tiny_config(moe=True))
    engine, micro_batches = Engine(model, lr=0.0, router_loss=kind), split(draw(7), [2, 5])
    each = [engine.task(batch, 1, 1.0)[1]["router_loss"] for batch in micro_batches]
    torch.testing.assert_close(engine.run(*micro_batches)["router_loss"], torch.stack(each).mean())
    once, twice = (Engine(model, lr=0.0, router_loss=kind, router_loss_weight=5.0) for _ in range(2))
    once.run(batch)
    twice.run(batch, batch)
    torch.testing.assert_close(twice.gradients, once.gradients, rtol=1e-5, atol=1e-6)


def test_sums_of_a_dense_model_and_no_gradients_after_the_step(tiny_config):
    batch, engine = draw(7), Engine(Decoder(tiny_config()))
    sums = engine.run(batch)
    assert sums["targets"] == batch.num_targets == (batch.targets != IGNORE).sum()
    assert 0 <= sums["correct"] <= sums["targets"]
    assert (router_stats(sums), sums["router_loss"], sums["loss"].requires_grad) == ([], 0, False)
    norm = torch.cat([gradient.flatten() for gradient in engine.gradients]).norm()
    torch.testing.assert_close(sums["grad_norm"], norm)  # that before clipping
    assert all(parameter.grad is None for parameter in engine.task.parameters())


@pytest.mark.parametrize(("kind", "counts_padding"), [("balanced", False), ("none", False), ("rxnn", True)])
def test_padding_counts_for_the_card_router_loss_only(tiny_config, kind, counts_padding):
    batch = draw(7)
    sums = Engine(Decoder(tiny_config(moe=True)), router_loss=kind).run(batch)
    expected = batch.inputs.numel() if counts_padding else int((batch.inputs != PAD).sum())
    assert [int(layer.tokens) for layer in router_stats(sums)] == [expected] * 2
    assert [int(layer.load_E.sum()) for layer in router_stats(sums)] == [expected * 2] * 2


@pytest.mark.parametrize("kind", ["balanced", "rxnn", "none"])
def test_the_loss_is_cross_entropy_and_weighted_router_loss(tiny_config, kind):
    batch, model = draw(7), Decoder(tiny_config(moe=True)).train()
    loss, sums = TrainingLoss(model, kind, router_loss_weight=0.3)(batch, 13, 0.5)
    cross_entropy = summed(model(batch.inputs).logits, batch.targets)
    torch.testing.assert_close(sums["loss"], cross_entropy)
    expected = 0.0 if kind == "none" else router_loss(router_stats(sums), kind)
    torch.testing.assert_close(sums["router_loss"], 0.5 * torch.as_tensor(expected))
    torch.testing.assert_close(loss, cross_entropy / 13 + 0.3 * 0.5 * expected)


def test_packed_batches_keep_documents_apart(tiny_config):
    """Two documents in a row, their positions three apart, give the loss of each alone."""
    model = Decoder(tiny_config()).train()
    documents = [torch.randint(4, V, (length,)) for length in (7, 4)]
    positions = [3 * torch.arange(len(document)) for document in documents]
    targets = [torch.cat((document[1:], torch.tensor([IGNORE]))) for document in documents]
    numbers = [torch.full((len(document),), i) for i, document in enumerate(documents)]
    packed = Batch(*(torch.cat(parts).unsqueeze(0) for parts in (documents, targets, positions, numbers)))
    together = zip(documents, positions, targets, strict=True)
    alone = [summed(model(d.unsqueeze(0), positions=p).logits, t) for d, p, t in together]
    torch.testing.assert_close(TrainingLoss(model)(packed, 1, 1.0)[0], alone[0] + alone[1])


def test_twenty_steps_are_those_of_the_naive_model(tiny_config, monkeypatch):
    batches = [draw(5) for _ in range(20)]
    config = tiny_config(moe=True, feedforward_bias=True, init="torch")  # Adam magnifies the rounding of tiny gradients

    def losses():
        torch.manual_seed(5)
        engine = Engine(Decoder(config), torch.optim.AdamW, lr=2e-3)
        return torch.stack([engine.run(batch)["loss"] / batch.num_targets for batch in batches])

    found = losses()
    without_dropout = lambda *rest: run_experts_naive(*rest[:-1], rest[-1]._replace(dropout=0.0))  # noqa: E731
    monkeypatch.setattr("sqat.model.moe.run_experts", without_dropout)
    monkeypatch.setattr("sqat.train.step.linear_cross_entropy", cross_entropy_naive)
    torch.testing.assert_close(found, losses(), rtol=0, atol=1e-5)
    assert found[-1] < found[0]


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_that_the_processor_emulates_is_not_used(native, monkeypatch):
    """oneDNN says yes to both; without instructions of its own, a product takes four times as long as in float32."""
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: native)
    assert use_bf16("auto", "cpu") == native
    assert use_bf16("bf16", "cpu")
