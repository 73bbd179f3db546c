"""Text to text: prompts, stop strings, streaming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from sqat.config import ModelConfig
from sqat.cost import kv_bytes
from sqat.data.tokenizer import TextStream, Tokenizer, require_room
from sqat.errors import ConfigError
from sqat.generate.decode import decode_tokens
from sqat.generate.sampling import RowSampler, SamplingConfig
from sqat.model import Decoder

BATCH_BYTES = 1 << 29  # of a batch's keys, values and activations
SHORT_PROMPT = 64  # tokens up to which prompts count as equally long
LEAVE_FROM = 8  # rows of a batch that is worth reading again without those that have finished


class Generation(NamedTuple):
    """One answer: the text after the prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]  # new tokens, without [EOS]
    finish_reason: str  # "eos", "stop" or "length"

    def __str__(self) -> str:
        return self.prompt + self.text


class _Row:
    """The answer to one prompt as it grows: text that may turn out to begin a stop string is held back."""

    def __init__(self, prompt: str, tokenizer: Tokenizer, stop: tuple[str, ...]) -> None:
        self.prompt = prompt
        self.stop = stop
        self.eos_id = tokenizer.eos_id
        self.stream = TextStream(tokenizer, continuation=bool(prompt))
        self.tokens: list[int] = []
        self.text = ""  # decoded so far
        self.given = 0  # characters handed out
        self.finish_reason: str | None = None

    def push(self, token: int) -> str:
        """Take a token; returns text that is certain."""
        if token == self.eos_id:
            return self.finish("eos")
        self.tokens.append(token)
        self.text += self.stream.push(token)
        return self._hand_out(certain_only=True)

    def finish(self, reason: str) -> str:
        """End the answer; returns what was held back."""
        self.text += self.stream.flush()
        rest = self._hand_out(certain_only=False)
        self.finish_reason = self.finish_reason or reason
        return rest

    def _hand_out(self, *, certain_only: bool) -> str:
        ends = [at for stop in self.stop if (at := self.text.find(stop, self.given)) >= 0]  # none begins earlier
        if ends:
            self.text = self.text[: min(ends)]
            self.finish_reason = "stop"
        held = 0
        if certain_only and not ends:
            held = max((_overlap(self.text, stop) for stop in self.stop), default=0)
        piece = self.text[self.given : len(self.text) - held]
        self.given += len(piece)
        return piece

    def result(self) -> Generation:
        return Generation(self.prompt, self.text, tuple(self.tokens), self.finish_reason or "length")


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: str | Sequence[str],
    config: SamplingConfig | None = None,
    *,
    batch_size: int | None = None,
    **settings: Any,
) -> Generation | list[Generation]:
    """Continue one text, or several; this is what `sqat.generate(…)` calls.

    Args:
        model: see :func:`sqat.load_model`; it generates without dropout, whatever its mode.
        tokenizer: the model's, see :class:`sqat.Tokenizer`.
        prompts: a text, or a list of them; [BOS] is put before each. An empty one starts a new document.
        config: how to choose tokens, and when to stop.
        batch_size: prompts at a time, at most; by default as many as fit into half a gigabyte.
        settings: fields of :class:`sqat.SamplingConfig`, such as `temperature=0.7`, instead of `config`.

    Returns:
        a :class:`Generation` for a text, a list for a list. `print` shows prompt and answer.

    Raises:
        ConfigError: an unusable setting, or prompts that the model cannot read.
    """
    config = SamplingConfig.from_dict({**(config.to_dict() if config else {}), **settings})
    texts = [prompts] if isinstance(prompts, str) else prompts
    answers = list(generate_each(model, tokenizer, texts, config, batch_size=batch_size))
    return answers[0] if isinstance(prompts, str) else answers


def generate_each(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    config: SamplingConfig | None = None,
    *,
    batch_size: int | None = None,
) -> Iterator[Generation]:
    """Yield the answers in the prompts' order, each once it and those before it are there; arguments and errors are
    those of :func:`generate`.

    Prompts of like length are read together, so that one long prompt does not pad all others.
    """
    config = config or SamplingConfig()
    if not prompts:
        raise ConfigError("prompts is empty, but must hold at least one")
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise ConfigError(f"batch_size is {batch_size!r}, but must be a whole number of at least 1")
    require_room(tokenizer, model.config.vocab_size)
    if config.seed is None:
        config = replace(config, seed=torch.Generator().seed() % 2**62)  # one for all batches
    encoded = [_encode(tokenizer, prompt) for prompt in prompts]
    answers: dict[int, Generation] = {}
    turn = 0
    for numbers in batches_of([len(ids) for ids in encoded], model.config, config.max_tokens, batch_size):
        rows = [_Row(prompts[i], tokenizer, config.stop) for i in numbers]
        ids = [encoded[i] for i in numbers]
        _answer(model, ids, rows, _sampler(model, tokenizer, ids, config, numbers))
        answers |= {i: row.result() for i, row in zip(numbers, rows, strict=True)}
        while turn in answers:
            yield answers.pop(turn)
            turn += 1


def batches_of(lengths: Sequence[int], model: ModelConfig, max_tokens: int, batch_size: int | None) -> list[list[int]]:
    """The numbers of the prompts that are read together, the batch of the first prompt first.

    In a batch the longest prompt has at most twice as many tokens as the shortest (or `SHORT_PROMPT`), and keys, values
    and the activations of reading the prompts take at most `BATCH_BYTES`.
    """
    width = model.hidden_size * 8 + model.intermediate_size * 3 * (model.experts_per_token if model.is_moe else 1)
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        row_bytes = 4 * (lengths[i] * width + model.vocab_size) + kv_bytes(model, lengths[i] + max_tokens, 4)
        most = max(1, BATCH_BYTES // row_bytes)
        last = batches[-1] if batches else []
        alike = last and lengths[i] <= max(2 * lengths[last[0]], SHORT_PROMPT)
        if alike and len(last) < min(most, batch_size or most):
            last.append(i)
        else:
            batches.append([i])
    return sorted((sorted(batch) for batch in batches), key=lambda batch: batch[0])


def _sampler(
    model: Decoder, tokenizer: Tokenizer, ids: list[list[int]], config: SamplingConfig, numbers: Sequence[int] | None
) -> RowSampler:
    size, device = model.config.vocab_size, model.embedding.weight.device
    return RowSampler(config, ids, size, device, num_ids=tokenizer.vocab_size, numbers=numbers)


def _answer(model: Decoder, prompts: list[list[int]], rows: list[_Row], choose: RowSampler) -> None:
    """Finish the rows of one batch. Once most have finished, the others are read again without them."""
    config, going, count = choose.config, list(range(len(rows))), 0
    while going:
        now = [prompts[i] + rows[i].tokens for i in going]
        for tokens_B in decode_tokens(model, now, replace(config, max_tokens=config.max_tokens - count), choose=choose):
            count += 1
            for i, token in zip(going, tokens_B.tolist(), strict=True):
                if rows[i].finish_reason is None:
                    rows[i].push(token)
                    if count == config.max_tokens and rows[i].finish_reason is None:
                        rows[i].finish("length")
            left = sum(rows[i].finish_reason is None for i in going)
            if left == 0 or (len(going) >= LEAVE_FROM and left < len(going) / 2):
                break
        kept = [place for place, i in enumerate(going) if rows[i].finish_reason is None]
        choose.keep(kept)
        going = [going[place] for place in kept]


def stream(model: Decoder, tokenizer: Tokenizer, prompt: str, config: SamplingConfig | None = None) -> Iterator[str]:
    """Answer one prompt, yielding text as soon as it is certain; joined, the pieces are what :func:`generate` gives."""
    config = config or SamplingConfig()
    require_room(tokenizer, model.config.vocab_size)
    row, ids = _Row(prompt, tokenizer, config.stop), _encode(tokenizer, prompt)
    for tokens_B in decode_tokens(model, [ids], config, choose=_sampler(model, tokenizer, [ids], config, None)):
        if piece := row.push(int(tokens_B[0])):
            yield piece
        if row.finish_reason is not None:
            return
    if piece := row.finish("length"):
        yield piece


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]
