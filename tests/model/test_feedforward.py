"""The dense feed-forward: its formula, and where dropout sits."""

import math

import pytest
import torch

from sqat.config import ACTIVATIONS
from sqat.model.feedforward import ACTIVATIONS as BY_NAME
from sqat.model.feedforward import FeedForward

FORMULAS = {
    "silu": lambda x: x / (1 + (-x).exp()),
    "swish": lambda x: x / (1 + (-x).exp()),
    "gelu": lambda x: x * (1 + (x / math.sqrt(2)).erf()) / 2,
    "relu": lambda x: (x + x.abs()) / 2,
    "sigmoid": lambda x: 1 / (1 + (-x).exp()),
    "linear": lambda x: x,
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_formula(tiny_config, activation, gated, biased):
    layer = FeedForward(tiny_config(activation=activation, gated=gated, feedforward_bias=biased))
    x = torch.randn(5, 11, 23)
    hidden = layer.fc1(x)
    assert hidden.shape[-1] == (26 if gated else 13)
    assert (layer.fc1.bias is not None) == (layer.fc2.bias is not None) == biased
    assert set(ACTIVATIONS) == set(BY_NAME) == set(FORMULAS)
    act = FORMULAS[activation]
    expected = layer.fc2(hidden[..., :13] * act(hidden[..., 13:]) if gated else act(hidden))
    torch.testing.assert_close(layer(x), expected)


def test_dropout_sits_between_the_layers_and_acts_in_training_only(tiny_config):
    layer = FeedForward(tiny_config(feedforward_dropout=0.375))  # a multiple of 2^-16, exact in the mask
    with torch.no_grad():
        layer.fc2.weight.copy_(torch.eye(23, 13))  # shows the hidden activations
    x = torch.randn(5, 11, 23)
    dropped = layer(x)[..., :13]
    kept = layer.eval()(x)[..., :13]
    zero = dropped == 0
    torch.testing.assert_close(dropped[~zero], kept[~zero] / 0.625)
    assert 0.3 < zero.float().mean() < 0.5
