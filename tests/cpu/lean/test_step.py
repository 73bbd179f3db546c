"""A lean step gives the logits of a plain cached one, and of reading everything again."""

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from sqat import cpu as kernels
from sqat.config import ACTIVATIONS
from sqat.cpu.lean import LeanStep
from sqat.generate.choose_step import PlainStep
from sqat.model import Decoder, KVCache

PROMPT, NEW = 7, 5
BIASES = {"qkv_bias": True, "attention_out_bias": True, "feedforward_bias": True, "head_bias": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layernorm": {"norm": "layernorm", "final_norm": "layernorm"},
    "biases": BIASES,
    "biases after layernorm": {**BIASES, "norm": "layernorm"},
    "no final norm": {"final_norm": None},
    "torch's epsilon": {"norm_eps": None},
    "torch's epsilon, layernorm": {"norm_eps": None, "norm": "layernorm"},
    "untied": {"tie_embeddings": False},
    "one kv head": {"num_kv_heads": 1},
    "full attention": {"num_kv_heads": 6},
    "one head": {"num_query_heads": 1, "num_kv_heads": 1},
    "reverse": {"num_query_heads": 2, "num_kv_heads": 6},
    "reverse with biases": {**BIASES, "num_query_heads": 1, "num_kv_heads": 3},
    "window as long as the cache": {"window": 97},
    "smallest heads": {"head_dim": 2},
    "ungated": {"gated": False},
    "ungated with biases": {"gated": False, **BIASES},
    "other rotation": {"rope_theta": 97.0},
    **{name: {"activation": name} for name in ACTIVATIONS},
}
EXPERTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "experts": {"num_experts": 7, "experts_per_token": 2},
    "one of them": {"num_experts": 7, "experts_per_token": 1},
    "all of them": {"num_experts": 3, "experts_per_token": 3},
}


def steps(model: Decoder, step_type: Any, tokens_BT: Tensor, padding_B: Tensor | None = None) -> Tensor:
    """Logits (B, NEW, V) of the last tokens, read one by one."""
    cache = KVCache(model.config, len(tokens_BT), PROMPT + NEW, padding_B=padding_B)
    with torch.inference_mode():
        model.hidden_states(tokens_BT[:, :PROMPT], cache=cache)
        step = step_type(model, cache)
        return torch.stack([step(tokens_B).clone() for tokens_B in tokens_BT[:, PROMPT:].T.contiguous()], dim=1)


def uncached(model: Decoder, tokens_BT: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens_BT).logits[:, -NEW:]


def draw_tokens(model: Decoder, rows: int) -> Tensor:
    return torch.randint(model.config.vocab_size, (rows, PROMPT + NEW))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 19])
@pytest.mark.parametrize("experts", EXPERTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_model(tiny_model, monkeypatch, name, experts, rows, compiled):
    if not compiled:
        monkeypatch.setattr(kernels, "available", lambda: False)
    model = tiny_model(**{**CONFIGS[name], **EXPERTS[experts]})
    tokens_BT = draw_tokens(model, rows)
    lean = steps(model, LeanStep, tokens_BT)
    torch.testing.assert_close(lean, steps(model, PlainStep, tokens_BT), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lean, uncached(model, tokens_BT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("experts", EXPERTS)
def test_left_padding(tiny_model, experts):
    model = tiny_model(**BIASES, **EXPERTS[experts])
    padding_B = torch.tensor([0, 3, 6])
    tokens_BT = draw_tokens(model, len(padding_B))
    lean = steps(model, LeanStep, tokens_BT, padding_B)
    torch.testing.assert_close(lean, steps(model, PlainStep, tokens_BT, padding_B), atol=1e-5, rtol=1e-5)
    for row, padding in enumerate(padding_B.tolist()):
        alone = uncached(model, tokens_BT[row : row + 1, padding:])
        torch.testing.assert_close(lean[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 37])
@pytest.mark.parametrize("experts", EXPERTS)
def test_matrices_large_enough_to_be_computed_in_columns(tiny_model, monkeypatch, experts, rows):
    monkeypatch.setattr("sqat.cpu.lean.linear.LARGE", 1)
    model = tiny_model(**BIASES, **EXPERTS[experts])
    tokens_BT = draw_tokens(model, rows)
    expected = steps(model, PlainStep, tokens_BT)
    torch.testing.assert_close(steps(model, LeanStep, tokens_BT), expected, atol=1e-5, rtol=1e-5)


def test_positions_far_from_the_start(tiny_model):
    """Angles are those of the model's tables, to the last bit or nearly, where an error would have grown."""
    model = tiny_model(moe=True)
    tokens_B = torch.tensor([3])
    found = []
    for step_type in (PlainStep, LeanStep):
        cache = KVCache(model.config, 1, 70_001)
        for layer in cache.layers:
            torch.manual_seed(1)
            layer.keys.normal_()
            layer.values.normal_()
            layer.length = 70_000
        with torch.inference_mode():
            found.append(step_type(model, cache)(tokens_B).clone())
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-5)


def test_scores_of_any_size(tiny_model):
    """The largest is taken off before the exponential, as in any softmax."""
    model = tiny_model()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.q_proj.weight *= 1e3
    tokens_BT = draw_tokens(model, 2)
    lean, plain = (steps(model, step_type, tokens_BT) for step_type in (LeanStep, PlainStep))
    assert lean.isfinite().all()
    torch.testing.assert_close(lean, plain, atol=1e-3, rtol=1e-3)  # such a softmax is all or nothing


def test_the_model_is_left_as_it_is(tiny_model):
    model = tiny_model(moe=True, **BIASES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps(model, LeanStep, draw_tokens(model, 3))
    for name, tensor in model.state_dict().items():
        assert tensor.equal(before[name])
        assert not tensor.is_inference()


def test_a_full_cache(tiny_model):
    model = tiny_model()
    step = LeanStep(model, KVCache(model.config, 1, 2))
    for _ in range(2):
        step(torch.tensor([5]))
    with pytest.raises(ValueError, match="cache holds 2 positions, but 3 are needed"):
        step(torch.tensor([5]))


@pytest.mark.parametrize(
    ("config", "rows", "alone"),
    [
        ({}, 1, True),  # 23 · 2 · 13 = 598, and 23 · 12 · 10 = 2,760 for the projections
        ({}, 3, True),
        ({}, 4, False),
        ({"intermediate_size": 211}, 1, True),  # 9,706
        ({"intermediate_size": 223}, 1, False),
        ({"intermediate_size": 223, "gated": False}, 1, True),
        ({"intermediate_size": 211, **EXPERTS["experts"], "num_kv_heads": 1}, 3, True),  # each expert has one row
        ({"intermediate_size": 211, **EXPERTS["all of them"], "num_kv_heads": 1}, 3, False),
    ],
)
def test_small_products_are_computed_in_one_thread(tiny_model, monkeypatch, config, rows, alone):
    entered = []

    @contextmanager
    def one_thread():
        entered.append(True)
        yield

    monkeypatch.setattr("sqat.cpu.lean.step.one_thread", one_thread)
    monkeypatch.setattr("sqat.cpu.lean.step.ONE_THREAD_PRODUCT", 10_000)
    model = tiny_model(**config)
    for threads, expected in ((2, alone), (1, True)):  # and all, where that is how many torch has
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        entered.clear()
        steps(model, LeanStep, draw_tokens(model, rows))
        assert bool(entered) == expected
