"""Which step is taken for which model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from sqat.cpu.lean import LeanStep, why_not_lean
from sqat.cuda.experts import FEW_TOKENS
from sqat.generate.choose_step import PlainStep, _can_be_recorded, make_step
from sqat.model import Decoder, KVCache


class Doubled(nn.Linear):
    """An adapter, as far as a step is concerned: a linear layer that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Halved(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / 2


def adapter(model: Decoder) -> None:
    model.layers[1].attention.v_proj = Doubled(23, 30, bias=False)


def parametrised(model: Decoder) -> None:
    parametrize.register_parametrization(model.layers[1].feedforward.router, "weight", Halved())


def hooked(model: Decoder) -> None:
    model.layers[1].norm2.register_forward_hook(lambda module, inputs, output: 2 * output)


def wrapped(model: Decoder) -> None:
    model.layers[1].norm2.forward = lambda x: 2 * x


class Quantised(torch.Tensor):
    pass


def quantised(model: Decoder) -> None:
    weight = model.head.weight.detach().as_subclass(Quantised)
    model.head.weight = nn.Parameter(weight)


def narrow(model: Decoder) -> None:
    model.head.to(torch.bfloat16)


def made(model: Decoder) -> object:
    return make_step(model, KVCache(model.config, 2, 5))


@pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
def test_lean_for_a_model_as_it_is_built(tiny_model, moe):
    model = tiny_model(moe)
    assert isinstance(made(model), LeanStep)
    assert isinstance(made(model.train().requires_grad_(False)), LeanStep)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (adapter, "layers.1.attention.v_proj is a Doubled"),
        (parametrised, "layers.1.feedforward.router is a ParametrizedLinear"),
        (hooked, "layers.1.norm2 has hooks"),
        (wrapped, "layers.1.norm2 has a forward of its own"),
        (quantised, "head.weight is a Quantised"),
        (narrow, "head.weight is torch.bfloat16 on cpu"),
    ],
)
def test_the_model_itself_where_its_weights_are_not_all_there_is(tiny_model, change, reason):
    model = tiny_model(moe=True, tie_embeddings=False)
    change(model)
    assert why_not_lean(model) == reason
    assert isinstance(made(model), PlainStep)


def test_the_model_itself_for_a_subclass(tiny_model):
    class Other(Decoder):
        pass

    assert why_not_lean(Other(tiny_model().config)) == "the model is a Other"


def test_the_model_itself_under_autocast(tiny_model):
    with torch.autocast("cpu", torch.bfloat16):
        assert isinstance(made(tiny_model()), PlainStep)


def test_a_graph_is_recorded_where_nothing_waits_and_nothing_is_left_out(tiny_model):
    dense, experts = tiny_model(), tiny_model(moe=True)
    assert _can_be_recorded(experts, FEW_TOKENS)
    assert not _can_be_recorded(experts, FEW_TOKENS + 1)
    assert _can_be_recorded(dense, FEW_TOKENS + 1)
    wrapped(dense)
    assert not _can_be_recorded(dense, 1)
