"""Export to ONNX: logits from token ids, for any batch and length.

Shape letters: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim

from sqat.data.tokenizer import Tokenizer
from sqat.errors import ConfigError
from sqat.hf.core import from_decoder
from sqat.hf.modeling_sqat import SQATForCausalLM
from sqat.hf.tokenizer import write_tokenizer
from sqat.model import Decoder

FILE = "model.onnx"
_PACKAGES = ("onnx", "onnxscript")  # which torch's exporter needs


class _Logits(nn.Module):
    """Logits of the whole text in every call: there is no cache."""

    def __init__(self, model: SQATForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def write_onnx(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write the graph from `input_ids` and `attention_mask` (B, T) to `logits` (B, T, V), in the type of the weights,
    and the tokenizer into an existing folder; returns what it is, in words. Works for every model of this package.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
    """
    if missing := [name for name in _PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(f"ONNX files need the package {missing[0]}: pip install onnx onnxscript")
    converted = from_decoder(model)
    if model.config.is_moe:
        converted.set_experts_implementation("batched_mm")  # the one without loops or kernels of its own
    tokens = torch.zeros(2, 7, dtype=torch.long)
    sizes = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own code
        program = torch.onnx.export(
            _Logits(converted),
            (tokens, torch.ones_like(tokens)),
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(folder / FILE))
    write_tokenizer(tokenizer, folder)
    return f"ONNX ({FILE})"
