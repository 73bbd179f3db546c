"""Generation: logits to tokens (`sampling`), tokens to tokens (`decode`), text to text (`text`).

The package can be called, as `sqat.generate(model, tokenizer, "Once upon a time")`: see :func:`generate`.
"""

import sys
from types import ModuleType
from typing import Any

from sqat.generate.decode import decode_tokens
from sqat.generate.sampling import SamplingConfig
from sqat.generate.text import Generation, generate, generate_each, stream

__all__ = ["Generation", "SamplingConfig", "decode_tokens", "generate", "generate_each", "stream"]


class _Callable(ModuleType):
    """`sqat.generate` was a package before it was a function, and is both."""

    __doc__ = generate.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Generation | list[Generation]:
        return generate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
