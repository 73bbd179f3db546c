"""Initial weights: how far they spread, and that a seed fixes them."""

import pytest
import torch

from sqat.model import Decoder

WIDE = {"hidden_size": 67, "vocab_size": 101, "intermediate_size": 31, "num_layers": 3}  # for a standard deviation
BIASES = dict.fromkeys(("qkv_bias", "attention_out_bias", "feedforward_bias", "head_bias"), True)


def is_norm(name):
    return "norm" in name


def is_bias(name):
    return name.endswith("bias")


def weights_of(model):
    return {name: p.detach() for name, p in model.named_parameters() if not is_norm(name) and not is_bias(name)}


@pytest.fixture(params=[False, True], ids=["dense", "experts"])
def build(request, tiny_config):
    return lambda **changes: Decoder(tiny_config(request.param, **WIDE, **BIASES, **changes))


@pytest.mark.parametrize("tied", [True, False])
def test_normal(build, tied):
    """Standard deviation 0.02, or 0.02 / sqrt(2 · layers) where a matrix writes to the residual stream; biases zero."""
    model = build(tie_embeddings=tied)
    for name, weight in weights_of(model).items():
        std = 0.02 / 6**0.5 if "out_proj" in name or "fc2" in name else 0.02
        assert weight.std().item() == pytest.approx(std, rel=0.1), name
        assert abs(weight.mean().item()) < 0.2 * std, name
    assert not any(p.any() for name, p in model.named_parameters() if is_bias(name))
    assert 0 < model(torch.randint(101, (5, 11))).logits.std() < 0.3  # untrained, it is unsure


def test_torch(build):
    """Uniform within 1 / sqrt(fan in), biases of feed-forward, projections and head too; embedding N(0, 1)."""
    model = build(init="torch", tie_embeddings=False)
    fan_in = {name: weight.shape[-1] for name, weight in weights_of(model).items()}
    for name, parameter in model.named_parameters():
        if is_norm(name):
            continue
        if name == "embedding.weight":
            assert parameter.std().item() == pytest.approx(1.0, rel=0.05)
            continue
        bound = fan_in[name.removesuffix("bias") + "weight" if is_bias(name) else name] ** -0.5
        assert 0.8 * bound < parameter.abs().max() <= bound, name
        assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.3), name


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_norms_start_as_norms_alone(build, norm):
    model = build(norm=norm, final_norm=norm)
    norms = {name: p for name, p in model.named_parameters() if is_norm(name)}
    assert len(norms) == (2 * 3 + 1) * (1 if norm == "rmsnorm" else 2)
    assert all((p == (0 if is_bias(name) else 1)).all() for name, p in norms.items())


@pytest.mark.parametrize("init", ["normal", "torch"])
def test_a_seed_fixes_all_weights_and_meta_models_draw_nothing(build, init):
    def state(seed):
        torch.manual_seed(seed)
        with torch.device("meta"):
            build()
        return build(init=init).state_dict()

    torch.manual_seed(3)
    first = build(init=init).state_dict()
    torch.testing.assert_close(state(3), first, rtol=0, atol=0)
    assert not state(4)["embedding.weight"].equal(first["embedding.weight"])
