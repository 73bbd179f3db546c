"""From this package's models to the classes for transformers and back: the same fields, the same tensors."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from sqat.checkpoint.model_files import TRANSFORMERS_PREFIX, build, native_tensors
from sqat.config import ModelConfig
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.modeling_sqat import SQATForCausalLM
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


def prefixed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """This package's tensors under the names of `SQATForCausalLM`, where all but the head's are the base model's."""
    return {name if name.startswith("head.") else TRANSFORMERS_PREFIX + name: t for name, t in tensors.items()}


def from_decoder(model: Decoder) -> SQATForCausalLM:
    """A decoder as a transformers model, in evaluation mode. Weights on the CPU are shared, others copied."""
    with without_values():
        result = SQATForCausalLM(to_transformers_config(model.config))
    tied = {"head.weight": model.embedding.weight} if model.config.tie_embeddings else {}
    result.load_state_dict({**prefixed(native_tensors(model)), **tied}, assign=True)
    result.tie_weights()
    return result.to(model.embedding.weight.device).eval()


def to_decoder(model: SQATForCausalLM) -> Decoder:
    """A transformers model as a decoder of this package, in evaluation mode. The weights are shared."""
    config = to_model_config(model.config)
    tensors = {name.removeprefix(TRANSFORMERS_PREFIX): tensor for name, tensor in model.state_dict().items()}
    if config.tie_embeddings:
        del tensors["head.weight"]
    return build(config, tensors).eval()
