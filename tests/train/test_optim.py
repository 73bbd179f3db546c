"""Parameter groups and learning-rate schedules."""

import pytest
import torch
from torch import nn

from sqat.run_config import TrainConfig
from sqat.train.optim import cosine_with_warmup, make_optimizer, parameter_groups

PEAK, STEPS = 3e-3, 97


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_without_warmup_equals_cosine_annealing_of_torch(floor):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=STEPS, eta_min=floor)
    assert cosine_with_warmup(STEPS + 50, peak=PEAK, total_steps=STEPS, floor=floor) == floor
    for step in range(STEPS + 1):
        rate = cosine_with_warmup(step, peak=PEAK, total_steps=STEPS, floor=floor)
        assert rate == pytest.approx(schedule.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        schedule.step()


def test_warmup_rises_to_the_peak_and_the_cosine_takes_it_from_there():
    rates = [cosine_with_warmup(step, peak=PEAK, total_steps=STEPS, warmup_steps=7) for step in range(STEPS + 1)]
    cosine = [cosine_with_warmup(n, peak=PEAK, total_steps=STEPS - 7) for n in range(STEPS - 6)]
    assert rates == pytest.approx([*(PEAK * n / 7 for n in range(1, 8)), *cosine])
    assert rates[6] == rates[7] == max(rates)
    for warmup in (7, 13):  # a run that is shorter only rises
        rates = [cosine_with_warmup(step, peak=PEAK, total_steps=7, warmup_steps=warmup) for step in range(7)]
        assert rates == pytest.approx([PEAK * n / warmup for n in range(1, 8)])


@pytest.mark.parametrize("moe", [False, True])
def test_matrices_decay_and_vectors_do_not(tiny_model, moe):
    biases = dict.fromkeys(("qkv_bias", "attention_out_bias", "feedforward_bias", "head_bias"), True)
    model = tiny_model(moe, norm="layernorm", tie_embeddings=False, **biases)
    decayed, others = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    undecayed = {names[id(parameter)] for parameter in others["params"]}
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert undecayed == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert {names[id(parameter)] for parameter in decayed["params"]} == set(names.values()) - undecayed


def test_decay_all_includes_vectors_and_frozen_parameters_are_left_out(tiny_model):
    model = tiny_model(feedforward_bias=True)
    (group,) = parameter_groups(model, 0.1, decay_all=True)
    assert {*group["params"]} == {*model.parameters()}
    model.embedding.requires_grad_(False)
    trained = [parameter for group in parameter_groups(model, 0.1) for parameter in group["params"]]
    assert {*trained} == {*model.parameters()} - {model.embedding.weight}


def test_make_optimizer_follows_the_configuration(tiny_model):
    config = TrainConfig(learning_rate=5e-4, weight_decay=0.3, beta1=0.8, beta2=0.95)
    optimizer = make_optimizer(tiny_model(), config)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert {(group["lr"], group["betas"]) for group in optimizer.param_groups} == {(5e-4, (0.8, 0.95))}
