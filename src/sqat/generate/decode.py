"""Token ids to token ids: the prompt is read once, then every new token costs one cached step.

Shape letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from sqat.errors import ConfigError
from sqat.generate.sampling import RowSampler, SamplingConfig
from sqat.model import Decoder, KVCache
from sqat.model.decoder import evaluating

# By device, the module and class of a faster step; the module's `fits(model, cache)` says whether it serves a model.
FAST_STEPS = {"cpu": ("sqat.cpu.lean", "LeanStep"), "cuda": ("sqat.cuda.static", "StaticStep")}
MAX_POSITIONS = 2**20  # prompt and answer together; rotary tables have no limit of their own


@torch.inference_mode()
def decode_tokens(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    config: SamplingConfig,
    *,
    pad_id: int = 0,
    choose: RowSampler | None = None,
) -> Iterator[Tensor]:
    """Yield the next token of every row, (B,), `config.max_tokens` times; stop iterating to stop earlier.

    Rows of different lengths are padded on the left; padding is never attended to.

    Args:
        model: runs in evaluation mode until the end, whatever its mode before. Its weights must not change meanwhile.
        prompts: token ids of each row, at least one each.
        config: how to choose tokens; `stop` is ignored here.
        pad_id: any token id.
        choose: the sampler of these rows; by default a new one.

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
    choose = choose or RowSampler(config, prompts, model.config.vocab_size, weight.device)
    with evaluating(model):
        hidden_BTD, _ = model.hidden_states(tokens_BT, cache=cache)
        tokens_B = choose(model.head(hidden_BTD[:, -1]))
        del hidden_BTD, tokens_BT  # large, after a long prompt
        yield tokens_B
        step: Step | None = None
        for length in range(longest + 1, capacity):
            step = step or make_step(model, cache)  # only now: a single token needs none
            model.check_length(length)
            tokens_B = choose(step(tokens_B))
            yield tokens_B


# Reads one more token of every row, (B,), and gives the logits of the next, (B, V), which the next call may overwrite.
Step = Callable[[Tensor], Tensor]


class PlainStep:
    """The model itself, on its cache: runs for every model on every device, and defines the faster steps."""

    def __init__(self, model: Decoder, cache: KVCache) -> None:
        self.model = model
        self.cache = cache

    @torch.inference_mode()
    def __call__(self, tokens_B: Tensor) -> Tensor:
        hidden_B1D, _ = self.model.hidden_states(tokens_B.unsqueeze(1), cache=self.cache)
        return self.model.head(hidden_B1D[:, 0])


def make_step(model: Decoder, cache: KVCache) -> Step:
    """The fastest way to go on from a cache that holds the prompts; this is the only place that chooses.

    Where the device's package is there and its step fits the model, that is one compiled call on a CPU and a recorded
    graph on a GPU; otherwise the model itself, which alone runs hooks.
    """
    module, name = FAST_STEPS.get(model.embedding.weight.device.type, ("", ""))
    if module and not is_hooked(model):
        with suppress(ImportError):
            fast = importlib.import_module(module)
            if fast.fits(model, cache):
                step: Step = getattr(fast, name)(model, cache)
                return step
    return PlainStep(model, cache)


def is_hooked(model: nn.Module) -> bool:
    """Whether a module does more than its class says: by forward hooks, or by a `forward` set on the instance."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in model.modules()
    )


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
