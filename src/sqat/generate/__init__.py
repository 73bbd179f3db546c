"""Generation: logits to tokens (`sampling`), tokens to tokens (`decode`), text to text (`text`)."""

from sqat.generate.decode import decode_tokens
from sqat.generate.sampling import SamplingConfig
from sqat.generate.text import Generation, generate, generate_each, stream

__all__ = ["Generation", "SamplingConfig", "decode_tokens", "generate", "generate_each", "stream"]
