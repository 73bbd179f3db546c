"""For one seed, variants begin equal where they can, see the same batches, and drop the same elements."""

import pytest
import torch

from sqat.train.prepare import prepare_data
from sqat.train.run import make_trainer


@pytest.fixture
def trainers(tiny_plan, tmp_path, monkeypatch):
    """`trainers(seed)`: one for each of three variants, and the state of the random numbers each would start with."""
    monkeypatch.setenv("SQAT_CACHE", str(tmp_path))

    def make(seed):
        plan = tiny_plan(variants=["gqa", "sqa", "xsqa"], model={**tiny_plan().model, "feedforward_dropout": 0.5})
        data, made = prepare_data(plan.data, 307), []
        for variant in plan.models():
            trainer = make_trainer(plan.run_config(variant._replace(steps=3), seed), data, tmp_path / variant.name)
            made.append((trainer, torch.get_rng_state()))
        return made

    return make


def test_common_tensors_begin_equal(trainers):
    first, *others = (trainer.model.state_dict() for trainer, _ in trainers(3))
    for other in others:
        common = [name for name in first if first[name].shape == other[name].shape]
        assert {name for name in first if name not in common} <= {n for n in first if "attention" in n}
        assert all(torch.equal(first[name], other[name]) for name in common)
    again = trainers(4)[0][0].model.state_dict()
    assert not torch.equal(again["embedding.weight"], first["embedding.weight"])


def test_batches_are_the_same(trainers):
    rows = [[b.inputs for _, (b, _) in zip(range(3), t.batches.forever())] for t, _ in trainers(3)]  # noqa: B905
    for other in rows[1:]:
        assert all(torch.equal(a, b) for a, b in zip(rows[0], other, strict=True))


def test_dropout_starts_alike_in_every_variant(trainers):
    (_, first), *others = trainers(5)
    assert all(torch.equal(state, first) for _, state in others)
