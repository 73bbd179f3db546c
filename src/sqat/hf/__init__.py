"""SQAT models in `transformers`; importing this registers them with its Auto classes.

`from_pretrained` reads the checkpoints of this package; `save_pretrained` writes the modelling code beside the weights,
so that they load where sqat is not installed.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.core import from_decoder, to_decoder
from sqat.hf.modeling_sqat import SQATForCausalLM, SQATModel

AutoConfig.register("sqat", SQATConfig, exist_ok=True)
AutoModel.register(SQATConfig, SQATModel, exist_ok=True)
AutoModelForCausalLM.register(SQATConfig, SQATForCausalLM, exist_ok=True)
# What they save carries its code, by transformers' own means.
SQATConfig.register_for_auto_class("AutoConfig")
SQATModel.register_for_auto_class("AutoModel")
SQATForCausalLM.register_for_auto_class("AutoModelForCausalLM")

__all__ = ["SQATConfig", "SQATForCausalLM", "SQATModel", "from_decoder", "to_decoder"]
