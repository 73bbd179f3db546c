"""RxNN's sampler: a model's tokens one by one, and as text. A key/value cache makes each token one short step."""

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from rxnn.experimental.models import ExperimentalAttentionTransformer
from rxnn.training.tokenizer import to_sqat
from sqat.data.tokenizer import Tokenizer
from sqat.errors import ConfigError
from sqat.generate import SamplingConfig, decode_tokens, stream


class Sampler:
    """Draws tokens from a model, without dropout whatever the model's mode.

    Args:
        model: moved to `device`.
        device: where to run.
        end_token_id: the token that ends an answer, such as [EOS] 3.
    """

    def __init__(self, model: ExperimentalAttentionTransformer, device: torch.device | str, end_token_id: int) -> None:
        self.model = model.to(device)
        self.device = torch.device(device)
        self.end_token_id = end_token_id

    def __call__(
        self,
        initial_tokens: Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        max_seq_len: int = 50,
    ) -> Iterator[int]:
        """Yield at most `max_seq_len` new token ids, up to and including `end_token_id`.

        The random seed comes from torch's generator, so `torch.manual_seed` makes the result reproducible.

        Args:
            initial_tokens: token ids, (1, T).
            temperature: 0 is greedy.
            top_k, top_p: see :class:`sqat.generate.SamplingConfig`; None means no limit.

        Raises:
            ConfigError: another shape, no tokens, ids outside the vocabulary, or a sampling argument out of range.
        """
        if initial_tokens.dim() != 2 or len(initial_tokens) != 1:
            raise ConfigError(f"initial_tokens has the shape {tuple(initial_tokens.shape)}, but must have (1, T)")
        config = _sampling(temperature, top_k, top_p, max_seq_len)
        for token_1 in decode_tokens(self.model.model, initial_tokens.tolist(), config):
            yield int(token_1)
            if token_1 == self.end_token_id:
                return


def _sampling(temperature: float, top_k: int | None, top_p: float | None, max_tokens: int) -> SamplingConfig:
    """RxNN's arguments as ours, with a seed from torch's generator."""
    top_p, seed = 1.0 if top_p is None else top_p, int(torch.randint(2**62, ()))
    return SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=max_tokens, seed=seed)


class SampleDecoder:
    """Text in, text out.

    Args:
        sampler: the model's.
        tokenizer: the model's, from `transformers` or from this package.
    """

    def __init__(self, sampler: Sampler, tokenizer: PreTrainedTokenizerFast | Tokenizer) -> None:
        self.sampler = sampler
        self.tokenizer = to_sqat(tokenizer)

    def __call__(
        self,
        text: str,
        print_stream: bool = False,
        temperature: float = 0.1,
        top_p: float = 0.9,
        max_seq_len: int = 256,
    ) -> str:
        """The prompt and its continuation, without special tokens.

        Args:
            text: the prompt; [BOS] goes before it, and it is truncated to `max_seq_len` tokens.
            print_stream: print the text as it is generated.
            temperature, top_p: see :class:`Sampler`.
            max_seq_len: at most this many new tokens.
        """
        prompt = [self.tokenizer.bos_id, *self.tokenizer.encode(text)]
        if len(prompt) > max_seq_len:
            text = self.tokenizer.decode(prompt[:max_seq_len])
        config = _sampling(temperature, None, top_p, max_seq_len)
        pieces = []
        for piece in chain([text], stream(self.sampler.model.model, self.tokenizer, text, config)):
            pieces.append(piece)
            if print_stream:
                print(piece, end="", flush=True)
        return "".join(pieces)
