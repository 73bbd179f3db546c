"""SQAT models in `transformers`; importing this registers them with its Auto classes.

`SQATForCausalLM.from_pretrained` reads the checkpoints of this package, of transformers and of RxNN, from folders and
from the Hub.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sqat.hf import pretrained
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.core import from_decoder, to_decoder
from sqat.hf.modeling_sqat import SQATForCausalLM, SQATModel, SQATPreTrainedModel

AutoConfig.register("sqat", SQATConfig, exist_ok=True)
AutoModel.register(SQATConfig, SQATModel, exist_ok=True)
AutoModelForCausalLM.register(SQATConfig, SQATForCausalLM, exist_ok=True)
SQATPreTrainedModel.companion = pretrained

__all__ = ["SQATConfig", "SQATForCausalLM", "SQATModel", "from_decoder", "to_decoder"]
