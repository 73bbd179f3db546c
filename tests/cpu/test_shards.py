"""Shards compute what the whole batch does, and the same every time."""

import pytest
import torch

from sqat.cpu import shards as sharding
from sqat.cpu.shards import Shards, suitable_shards
from sqat.data.batches import Batch
from sqat.model import Decoder
from sqat.train.step import TrainingLoss

ROWS, T, V = 7, 11, 41


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(sharding, "SHARD_TOKENS", 1)


def draw(packed=False):
    inputs, targets = torch.randint(1, V, (ROWS, T)), torch.randint(1, V, (ROWS, T))
    documents = (torch.arange(T) >= torch.randint(1, T, (ROWS, 1))).long() if packed else None
    positions = torch.arange(T).expand(ROWS, T).contiguous() if packed else None
    return Batch(inputs, targets, positions, documents)


def outcome(model, batch, shards, kind="balanced", bf16=False):
    """What a step sees and the gradients it leaves."""
    task = TrainingLoss(model.train(), kind, 0.3, shards=shards)
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        loss, sums = task(batch, 13, 0.5)
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    return [loss.detach(), *sums.values()], gradients


def logits_of_shards(model, batch):
    """What each of two shards computes."""
    parts = []
    run = lambda shard: parts.append(model.train()(shard.inputs).logits) or {"sum": parts[-1].sum()}  # noqa: E731
    Shards(run, [*model.parameters()], 2)(batch)
    return parts


@pytest.mark.parametrize("kind", ["balanced", "rxnn", "none"])
@pytest.mark.parametrize("shards", [2, 3, 20])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("moe", [False, True])
def test_shards_are_the_batch(tiny_config, moe, packed, shards, kind):
    model, batch = Decoder(tiny_config(moe)), draw(packed)
    whole, parts = outcome(model, batch, 1, kind), outcome(model, batch, shards, kind)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    assert torch.get_num_threads() == 1  # as before


def test_shards_run_under_autocast(tiny_config):
    model, batch = Decoder(tiny_config(moe=True)), draw()
    whole, parts = outcome(model, batch, 1, bf16=True), outcome(model, batch, 2, bf16=True)
    torch.testing.assert_close(parts, whole, rtol=5e-2, atol=5e-2)
    exact = outcome(model, batch, 2)
    assert not torch.equal(parts[0][0], exact[0][0])


@pytest.mark.parametrize("moe", [False, True])
def test_dropout_is_the_same_every_time(tiny_config, moe):
    model, batch = Decoder(tiny_config(moe, feedforward_dropout=0.3)), draw()
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(outcome(model, batch, 3))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert not torch.equal(results[2][0][0], results[0][0][0])
    # And shards drop different elements.
    rows = torch.randint(1, V, (1, T)).expand(2, T)
    first, second = logits_of_shards(Decoder(tiny_config(feedforward_dropout=0.5)), Batch(rows, rows, None, None))
    assert not torch.equal(first, second)


def test_gradients_accumulate_over_micro_batches(tiny_config):
    model, batch = Decoder(tiny_config(moe=True)), draw()
    once = outcome(model, batch, 2, "balanced")[1]
    model.zero_grad()
    task = TrainingLoss(model.train(), "balanced", 0.3, shards=2)
    for _ in range(2):
        task(batch, 13, 0.5)[0].backward()
    torch.testing.assert_close([p.grad for p in model.parameters()], [2 * g for g in once], rtol=1e-5, atol=1e-6)


def test_an_error_in_a_shard_is_raised():
    weight = torch.ones(3, requires_grad=True)

    def fail(batch):
        raise ValueError(f"rows {len(batch.inputs)}")

    with pytest.raises(ValueError, match=r"rows [34]"):
        Shards(fail, [weight], 2)(draw())


def test_one_shard_where_torch_draws_random_numbers(tiny_config, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert suitable_shards(Decoder(tiny_config())) == 3
    assert suitable_shards(Decoder(tiny_config(attention_dropout=0.1))) == 1
    checkpointed = Decoder(tiny_config())
    checkpointed.gradient_checkpointing = True
    assert suitable_shards(checkpointed) == 1
