"""The compiled step gives the logits of the model on its cache, and of reading everything again."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sqat.cpu import lean
from sqat.cpu.lean import LeanStep, fits
from sqat.generate.decode import PlainStep
from sqat.model import Decoder, KVCache

PROMPT, NEW = 7, 5
BIASES = {"qkv_bias": True, "attention_out_bias": True, "feedforward_bias": True, "head_bias": True}
CONFIGS = {
    "plain": {},
    "biases": BIASES,
    "no final norm": {"final_norm": None},
    "torch's epsilon": {"norm_eps": None},
    "untied": {"tie_embeddings": False},
    "one kv head": {"num_kv_heads": 1},
    "full attention": {"num_kv_heads": 6},
    "one head": {"num_query_heads": 1, "num_kv_heads": 1},
    "reverse": {"num_query_heads": 2, "num_kv_heads": 6},
    "reverse with biases": {**BIASES, "num_query_heads": 1, "num_kv_heads": 3},
    "window longer than the text": {"window": PROMPT + NEW},
    "smallest heads": {"head_dim": 2},
    "other rotation": {"rope_theta": 97.0},
    "swish": {"activation": "swish"},
}
EXPERTS = {
    "dense": {},
    "experts": {"num_experts": 7, "experts_per_token": 2},
    "one of them": {"num_experts": 7, "experts_per_token": 1},
    "all of them": {"num_experts": 3, "experts_per_token": 3},
}


@pytest.fixture
def threads(monkeypatch):
    """`threads(3, 0)`: steps made from now on share among so many threads whatever is larger than that."""

    def set_threads(count, one_thread_product=0):
        monkeypatch.setattr(lean, "ONE_THREAD_PRODUCT", one_thread_product)
        monkeypatch.setattr(torch, "get_num_threads", lambda: count)

    return set_threads


def steps(model, step_type, tokens_BT, padding_B=None):
    """Logits (B, NEW, V) of the last tokens, read one by one."""
    cache = KVCache(model.config, len(tokens_BT), PROMPT + NEW, padding_B=padding_B)
    with torch.inference_mode():
        model.hidden_states(tokens_BT[:, :PROMPT], cache=cache)
        step = step_type(model, cache)
        return torch.stack([step(tokens_B).clone() for tokens_B in tokens_BT[:, PROMPT:].T.contiguous()], dim=1)


def uncached(model, tokens_BT):
    with torch.no_grad():
        return model(tokens_BT).logits[:, -NEW:]


def draw_tokens(model, rows):
    return torch.randint(model.config.vocab_size, (rows, PROMPT + NEW))


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    ("name", "experts"), [*itertools.product(CONFIGS, ("dense", "experts")), *itertools.product(["biases"], EXPERTS)]
)
def test_equals_the_model(tiny_model, threads, name, experts, rows):
    model = tiny_model(**{**CONFIGS[name], **EXPERTS[experts]})
    tokens_BT = draw_tokens(model, rows)
    found = steps(model, LeanStep, tokens_BT)
    torch.testing.assert_close(found, steps(model, PlainStep, tokens_BT), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, uncached(model, tokens_BT), atol=1e-5, rtol=1e-5)
    threads(3)
    assert steps(model, LeanStep, tokens_BT).equal(found)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("experts", EXPERTS)
def test_left_padding(tiny_model, threads, experts, num_threads):
    threads(num_threads)
    model = tiny_model(**BIASES, **EXPERTS[experts])
    padding_B = torch.tensor([0, 3, 6])
    tokens_BT = draw_tokens(model, len(padding_B))
    found = steps(model, LeanStep, tokens_BT, padding_B)
    torch.testing.assert_close(found, steps(model, PlainStep, tokens_BT, padding_B), atol=1e-5, rtol=1e-5)
    for row, padding in enumerate(padding_B.tolist()):
        alone = uncached(model, tokens_BT[row : row + 1, padding:])
        torch.testing.assert_close(found[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_positions_far_from_the_start(tiny_model):
    model = tiny_model(moe=True)
    found = []
    for step_type in (PlainStep, LeanStep):
        cache = KVCache(model.config, 1, 70_001)
        for layer in cache.layers:
            torch.manual_seed(1)
            layer.keys.normal_()
            layer.values.normal_()
            layer.length = 70_000
        with torch.inference_mode():
            found.append(step_type(model, cache)(torch.tensor([3])).clone())
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_scores_of_any_size(tiny_model):
    """The largest is subtracted before the exponential, as in any softmax."""
    model = tiny_model()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.q_proj.weight *= 1e3
    tokens_BT = draw_tokens(model, 2)
    found, plain = (steps(model, step_type, tokens_BT) for step_type in (LeanStep, PlainStep))
    assert found.isfinite().all()
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=1e-3)  # such a softmax is all or nothing


@pytest.mark.parametrize("experts", EXPERTS)
def test_nan_weights_give_nan_logits(tiny_model, experts):
    model = tiny_model(**EXPERTS[experts])
    with torch.no_grad():
        model.layers[1].norm2.weight[5] = torch.nan
    tokens_BT = torch.randint(1, model.config.vocab_size, (2, PROMPT + NEW))
    assert steps(model, LeanStep, tokens_BT).isnan().all()


def test_the_model_is_left_as_it_is_and_a_full_cache_is_an_error(tiny_model):
    model = tiny_model(moe=True, **BIASES)
    before = copy.deepcopy(model.state_dict())
    steps(model, LeanStep, draw_tokens(model, 3))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert not any(tensor.is_inference() for tensor in model.parameters())
    step = LeanStep(model, KVCache(model.config, 1, 2))
    for _ in range(2):
        step(torch.tensor([5]))
    with pytest.raises(ValueError, match="cache holds 2 positions, but 3 are needed"):
        step(torch.tensor([5]))


class Doubled(nn.Linear):
    """An adapter, as far as a step is concerned: a linear layer that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


class Quantised(Tensor):
    pass


CHANGES = {
    "adapter": lambda model: setattr(model.layers[1].attention, "v_proj", Doubled(23, 30, bias=False)),
    "parametrised": lambda m: parametrize.register_parametrization(m.layers[1].feedforward.router, "weight", Halved()),
    "quantised": lambda m: setattr(m.head, "weight", nn.Parameter(m.head.weight.detach().as_subclass(Quantised))),
    "bfloat16": lambda model: model.head.to(torch.bfloat16),
}


class TestFits:
    @pytest.mark.parametrize("moe", [False, True], ids=["dense", "experts"])
    def test_models_as_they_are_built(self, tiny_model, moe):
        model = tiny_model(moe)
        assert fits(model, KVCache(model.config, 2, 5))
        assert fits(model.train().requires_grad_(False), KVCache(model.config, 2, 5))
        for rare in ({"norm": "layernorm"}, {"final_norm": "layernorm"}, {"gated": False}, {"activation": "gelu"}):
            other = tiny_model(moe, **rare)
            assert not fits(other, KVCache(other.config, 2, 5))

    @pytest.mark.parametrize("change", CHANGES)
    def test_not_models_whose_weights_are_not_all_there_is(self, tiny_model, change):
        model = tiny_model(moe=True, tie_embeddings=False)
        CHANGES[change](model)
        assert not fits(model, KVCache(model.config, 2, 5))

    def test_not_subclasses_autocast_or_caches_that_roll(self, tiny_model):
        model = tiny_model(window=3)
        assert fits(model, KVCache(model.config, 2, 3))
        assert not fits(model, KVCache(model.config, 2, 5))
        with torch.autocast("cpu", torch.bfloat16):
            assert not fits(model, KVCache(model.config, 2, 3))
        model.__class__ = type("Other", (Decoder,), {})
        assert not fits(model, KVCache(model.config, 2, 3))
