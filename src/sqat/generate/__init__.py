"""Generation: logits to tokens, tokens to text, one stream or many."""

from sqat.generate.decode import decode_tokens
from sqat.generate.sample import SamplingConfig
from sqat.generate.text import Generation, generate, stream

__all__ = ["Generation", "SamplingConfig", "decode_tokens", "generate", "stream"]
