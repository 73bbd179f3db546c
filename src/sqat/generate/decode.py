"""Token ids to token ids: the prompt is read once, then every new token costs one cached step.

Shape letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sqat.errors import ConfigError
from sqat.generate.choose_step import Step, make_step
from sqat.generate.sample import RowSampler, SamplingConfig
from sqat.model import Decoder, KVCache

MAX_POSITIONS = 2**20  # prompt and answer together; rotary tables have no limit of their own


@torch.inference_mode()
def decode_tokens(
    model: Decoder, prompts: Sequence[Sequence[int]], config: SamplingConfig, *, pad_id: int = 0
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,), `config.max_tokens` times; stop iterating to stop earlier.

    Rows of different length are padded on the left, inside; padding is never attended to.

    Args:
        model: without dropout while it generates, whatever its mode. Its weights must not change before the end.
        prompts: token ids of each row, at least one each.
        config: how to choose; `stop` is not looked at here.
        pad_id: any token id.

    Raises:
        ConfigError: no prompts, an empty one, ids outside the vocabulary, or more than `MAX_POSITIONS` in all.
    """
    _check(model, prompts, config)
    longest = max(map(len, prompts))
    weight = model.embedding.weight
    padding = [longest - len(prompt) for prompt in prompts]
    tokens_BT = torch.tensor(
        [[pad_id] * n + list(p) for n, p in zip(padding, prompts, strict=True)], device=weight.device
    )
    padding_B = torch.tensor(padding, device=weight.device) if any(padding) else None
    capacity = longest + config.max_tokens
    cache = KVCache(model.config, len(prompts), capacity, padding_B=padding_B, device=weight.device, dtype=weight.dtype)
    choose = RowSampler(config, prompts, model.config.vocab_size, weight.device)
    was_training = model.training
    model.eval()
    try:
        hidden_BTD, _ = model.hidden_states(tokens_BT, cache=cache)
        tokens_B = choose(model.head(hidden_BTD[:, -1]))
        del hidden_BTD, tokens_BT  # of a long prompt, much memory
        yield tokens_B
        step: Step | None = None
        for _ in range(config.max_tokens - 1):
            step = step or make_step(model, cache)  # only now: who wants one token needs none
            tokens_B = choose(step(tokens_B))
            yield tokens_B
    finally:
        model.train(was_training)


def decode_naive(model: Decoder, prompt: Sequence[int], config: SamplingConfig) -> list[int]:
    """The definition, for tests: one row, and everything read again for every token."""
    choose = RowSampler(config, [prompt], model.config.vocab_size)
    tokens = list(prompt)
    for _ in range(config.max_tokens):
        with torch.no_grad():
            logits_1TV = model(torch.tensor([tokens])).logits
        tokens.append(int(choose(logits_1TV[:, -1])))
    return tokens[len(prompt) :]


def _check(model: Decoder, prompts: Sequence[Sequence[int]], config: SamplingConfig) -> None:
    if not prompts:
        raise ConfigError("prompts is empty, but must hold at least one")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise ConfigError(f"prompt {i} has no tokens, but must have at least one, such as [BOS]")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            raise ConfigError(
                f"prompt {i} has token ids outside 0 … {model.config.vocab_size - 1}: is this the model's tokenizer?"
            )
        if len(prompt) + config.max_tokens > MAX_POSITIONS:
            raise ConfigError(
                f"prompt {i} has {len(prompt):,} tokens; with max_tokens {config.max_tokens:,} that must be "
                f"at most {MAX_POSITIONS:,}"
            )
