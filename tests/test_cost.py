"""Costs computed from a configuration, held against built models and independent counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sqat import cost
from sqat.model import Decoder, KVCache
from sqat.model.attend import attend_naive
from sqat.variants import VARIANTS, of_family

BIASES = ("qkv_bias", "attention_out_bias", "feedforward_bias", "head_bias")


def count(model, wanted=lambda name: True):
    return sum(parameter.numel() for name, parameter in model.named_parameters() if wanted(name))


def check_parameters(config):
    with torch.device("meta"):
        model = Decoder(config)
    found = cost.parameters(config)
    experts = count(model, lambda name: ".feedforward.fc" in name) // max(config.num_experts, 1)
    unvisited = config.num_experts - config.experts_per_token if config.is_moe else 0
    assert found.total == count(model)
    assert found.active == found.total - unvisited * experts
    assert found.attention == count(model, lambda name: ".attention." in name)
    assert found.feedforward == count(model, lambda name: ".feedforward." in name)
    assert found.embedding == count(model, lambda name: name.startswith(("embedding.", "head.")))


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
@pytest.mark.parametrize("final_norm", [None, "rmsnorm", "layernorm"])
def test_parameters_are_the_built_model_s(tiny_config, moe, gated, tied, norm, final_norm):
    check_parameters(tiny_config(moe, gated=gated, tie_embeddings=tied, norm=norm, final_norm=final_norm))


HEADS = pytest.mark.parametrize("heads", [{}, {"num_query_heads": 2, "num_kv_heads": 6}], ids=["grouped", "reverse"])


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("biases", [*((name,) for name in BIASES), BIASES, ()])
@HEADS
def test_parameters_count_every_bias(tiny_config, moe, gated, biases, heads):
    check_parameters(tiny_config(moe, gated=gated, **heads, **dict.fromkeys(biases, True)))


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("gated", [False, True])
@HEADS
def test_flops_are_those_that_torch_counts(tiny_config, monkeypatch, moe, gated, heads):
    """With attention written out in full, a causal sequence does (T + 1) / 2T of it in vain."""

    def attend_all(q_BHTC, k_BKSC, v_BKSC, **_):
        return attend_naive(q_BHTC, k_BKSC, v_BKSC, torch.ones(q_BHTC.shape[2], k_BKSC.shape[2], dtype=torch.bool))

    monkeypatch.setattr("sqat.model.attention.attend", attend_all)
    config = tiny_config(moe, gated=gated, **heads)
    rows, length = 5, 11
    with FlopCounterMode(display=False) as counter:
        Decoder(config)(torch.randint(config.vocab_size, (rows, length)))
    assert cost.flops_per_token(config) == cost.flops_per_token(config, config.context_length)
    flops = cost.flops_per_token(config, length)
    written_out = flops.attention * 2 * length / (length + 1)
    assert counter.get_total_flops() == rows * length * (flops.total - flops.attention + written_out)


def test_attention_s_share_depends_on_query_heads_alone():
    flops = {variant: cost.flops_per_token(of_family("mini", variant)).attention for variant in VARIANTS}
    assert flops.pop("rsqa") == flops["ssqa"]
    shares = {flops[variant] * 16 // of_family("mini", variant).num_query_heads for variant in flops}
    assert shares == {flops["mha"]}


@pytest.mark.parametrize(("window", "global_tokens"), [(1, 0), (5, 0), (5, 2), (3, 7), (13, 2), (17, 0)])
@pytest.mark.parametrize("length", [1, 4, 13])
def test_a_window_s_keys_are_those_of_the_mask(tiny_config, window, global_tokens, length):
    config = tiny_config(window=window, global_tokens=global_tokens)
    seen = sum(i - j < window or j < global_tokens for i in range(length) for j in range(i + 1))
    assert cost.visible_keys(length, window, global_tokens) == seen
    full = cost.flops_per_token(tiny_config(), length).attention * length
    share = seen / (length * (length + 1) / 2)
    assert cost.flops_per_token(config, length).attention == pytest.approx(full * share / length, abs=0.5)


def taken(cache):
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@pytest.mark.parametrize("length", [3, 7, 8, 500])
def test_kv_bytes_are_bounded_by_the_window(tiny_config, length):
    config = tiny_config(window=5, global_tokens=2)
    assert cost.kv_bytes(config, length, 4) == min(length, 7) * cost.kv_bytes_per_token(config, 4)
    cache = KVCache(config, 3, 500)
    Decoder(config)(torch.randint(4, config.vocab_size, (3, length)), cache=cache)
    assert taken(cache) == 3 * cost.kv_bytes(config, length, 4)
    assert cost.kv_bytes(tiny_config(), length) == length * cost.kv_bytes_per_token(config)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_kv_bytes_are_what_a_cache_takes_per_token(tiny_config, dtype, size):
    config = tiny_config()
    assert taken(KVCache(config, 5, 11, dtype=dtype)) == 5 * 11 * cost.kv_bytes_per_token(config, size)
    assert cost.kv_bytes_per_token(config) == cost.kv_bytes_per_token(config, 2)


@pytest.mark.parametrize(
    ("variant", "speedup"), [("mha", 1), ("gqa", 1), ("sqa", 2), ("ssqa", 2), ("xsqa", 4), ("lsqa", 4 / 3), ("rsqa", 2)]
)
def test_speedup_over_full_attention(variant, speedup):
    assert cost.attention_speedup(of_family("mini", variant)) == speedup
