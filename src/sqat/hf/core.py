"""From this package's models to the classes for transformers and back: the same fields, the same tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sqat.checkpoint.model_files import TRANSFORMERS_PREFIX, build, native_tensors
from sqat.config import ModelConfig
from sqat.data.tokenizer import Tokenizer
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.modeling_sqat import SQATForCausalLM
from sqat.hf.tokenizer import write_tokenizer
from sqat.model import Decoder
from sqat.model.decoder import without_values


def to_transformers_config(config: ModelConfig) -> SQATConfig:
    """A configuration for transformers."""
    return SQATConfig(**config.to_dict())


def to_model_config(config: SQATConfig) -> ModelConfig:
    """A configuration from transformers'.

    Raises:
        ConfigError: a field has a value that `SQATConfig` accepts, but this package cannot use.
    """
    return ModelConfig.from_dict({field.name: getattr(config, field.name) for field in dataclasses.fields(ModelConfig)})


def from_decoder(model: Decoder) -> SQATForCausalLM:
    """A decoder as a transformers model, in evaluation mode. Weights on the CPU are shared, others copied."""
    with without_values():
        result = SQATForCausalLM(to_transformers_config(model.config))
    tensors = native_tensors(model)
    if model.config.tie_embeddings:
        tensors["head.weight"] = model.embedding.weight
    names = {name: name if name.startswith("head.") else TRANSFORMERS_PREFIX + name for name in tensors}
    result.load_state_dict({names[name]: tensor for name, tensor in tensors.items()}, assign=True)
    result.tie_weights()
    return result.to(model.embedding.weight.device).eval()


def to_decoder(model: SQATForCausalLM) -> Decoder:
    """A transformers model as a decoder of this package, in evaluation mode. The weights are shared."""
    config = to_model_config(model.config)
    tensors = {name.removeprefix(TRANSFORMERS_PREFIX): tensor for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del tensors["head.weight"]
    return build(config, tensors).eval()


def write_transformers(model: Decoder, tokenizer: Tokenizer | None, folder: Path) -> str:
    """Write weights, configuration, modelling code, generation settings and tokenizer into an existing folder, which
    transformers then loads without this package; returns the architecture's name.
    """
    converted = from_decoder(model)
    converted.config.auto_map = {"AutoModel": "modeling_sqat.SQATModel"}  # saving adds the other two
    converted.save_pretrained(folder)
    write_tokenizer(tokenizer, folder)
    return "SQAT, with its modelling code"
