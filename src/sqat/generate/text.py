"""Text to text: prompts, stop strings, streaming."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqat.data.tokenizer import TextStream, Tokenizer
from sqat.generate.decode import decode_tokens
from sqat.generate.sampling import SamplingConfig
from sqat.model import Decoder


class Generation(NamedTuple):
    """One answer: the text after the prompt."""

    prompt: str
    text: str
    tokens: tuple[int, ...]  # new tokens, without [EOS]
    finish_reason: str  # "eos", "stop" or "length"


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
    model: Decoder, tokenizer: Tokenizer, prompts: str | Sequence[str], config: SamplingConfig | None = None
) -> list[Generation]:
    """Answer one prompt, or several in one batch. An empty prompt starts a new document.

    Args:
        model: without dropout while it generates, whatever its mode.
        tokenizer: the model's.
        prompts: text; [BOS] is put before it.
        config: how to choose, and when to stop.

    Raises:
        ConfigError: see :func:`sqat.generate.decode.decode_tokens`.
    """
    config = config or SamplingConfig()
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [_Row(prompt, tokenizer, config.stop) for prompt in prompts]
    for tokens_B in decode_tokens(model, [_encode(tokenizer, prompt) for prompt in prompts], config):
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            if row.finish_reason is None:
                row.push(token)
        if all(row.finish_reason is not None for row in rows):
            break
    for row in rows:
        if row.finish_reason is None:
            row.finish("length")
    return [row.result() for row in rows]


def stream(model: Decoder, tokenizer: Tokenizer, prompt: str, config: SamplingConfig | None = None) -> Iterator[str]:
    """Answer one prompt, yielding text as soon as it is certain; joined, the pieces are what :func:`generate` gives."""
    config = config or SamplingConfig()
    row = _Row(prompt, tokenizer, config.stop)
    for tokens_B in decode_tokens(model, [_encode(tokenizer, prompt)], config):
        if piece := row.push(int(tokens_B[0])):
            yield piece
        if row.finish_reason is not None:
            return
    if piece := row.finish("length"):
        yield piece


def _encode(tokenizer: Tokenizer, prompt: str) -> list[int]:
    return [tokenizer.bos_id, *tokenizer.encode(prompt)]
