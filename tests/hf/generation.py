"""What the tests of generation share: options, and checks of what comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import StaticCache

from sqat.hf import SQATForCausalLM, from_decoder
from sqat.model import Decoder

from .conftest import KINDS, PROMPTS

Model = Callable[..., Decoder]
NEW = 3  # tokens, where their number does not matter
LENGTH = max(map(len, PROMPTS))
CONTROLS: dict[str, Any] = {
    "bad_words_ids": [[1, 0]],
    "repetition_penalty": 1.2,
    "remove_invalid_values": True,
    "eos_token_id": -1,  # never: lengths are as asked for
}
EVERYTHING: dict[str, Any] = {
    "return_dict_in_generate": True,
    **{f"output_{name}": True for name in ("scores", "logits", "hidden_states", "attentions")},
}
SAMPLING = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
GREEDY = {"do_sample": False}
EMBEDDINGS = {
    "max_new_tokens": 5,
    "eos_token_id": None,
    "return_dict_in_generate": True,
    "output_logits": True,
    **GREEDY,
}
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def eager(core: Decoder) -> SQATForCausalLM:
    """With attention weights to be had."""
    model = from_decoder(core)
    model.set_attn_implementation("eager")
    return model


def check_everything(output: Any, model: SQATForCausalLM, *, prompt: int, rows: int, cached: bool) -> None:
    """Every output, a step each, has the shape that its documentation gives."""
    config = model.config
    steps = output.sequences.shape[1] - prompt
    for name in ("scores", "logits"):
        assert [tuple(values.shape) for values in getattr(output, name)] == [(rows, config.vocab_size)] * steps
    heads = max(config.num_query_heads, config.num_kv_heads)
    for step in range(steps):
        seen = prompt + step
        read = 1 if cached and step else seen
        assert [tuple(state.shape) for state in output.hidden_states[step]] == [(rows, read, config.hidden_size)] * 3
        keys = [attention.shape[3] for attention in output.attentions[step]]
        rolls = cached and config.layer_types[0] == "sliding_attention" and step
        assert keys == [min(seen, config.window) if rolls else seen] * 2
        assert [tuple(a.shape[:3]) for a in output.attentions[step]] == [(rows, heads, read)] * 2
    assert (output.past_key_values is not None) == cached
    if cached:
        check_cache(output.past_key_values, config, rows, output.sequences.shape[1] - 1)


def check_cache(cache: Any, config: Any, rows: int, length: int) -> None:
    """A layer each, (B, K, S, C); a window's keep one position less than it sees, for the token to come."""
    assert len(cache) == config.num_layers
    if config.layer_types[0] == "sliding_attention":
        length = min(length, config.window if isinstance(cache, StaticCache) else config.window - 1)
    for layer in cache.layers:
        assert tuple(layer.keys.shape) == (rows, config.num_kv_heads, length, config.head_dim)
        assert layer.values.shape == layer.keys.shape


def check_alike(one: Any, other: Any) -> None:
    """The same tokens from the same logits; or others, where the logits before them are so close that they tie."""
    steps = len(one.logits)
    for row, (first, second) in enumerate(zip(one.sequences, other.sequences, strict=True)):
        differ = (first != second)[-steps:].nonzero()
        last = int(differ[0]) + 1 if len(differ) else steps
        for step in range(last):
            torch.testing.assert_close(one.logits[step][row], other.logits[step][row], rtol=1e-4, atol=1e-4)
