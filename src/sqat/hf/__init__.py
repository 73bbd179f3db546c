"""SQAT models in `transformers`: importing this registers them with its Auto classes.

`SQATForCausalLM.from_pretrained` reads this package's checkpoints, those that transformers writes, and the original's,
in folders and on the Hub.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from sqat.hf.beside import complete
from sqat.hf.configuration_sqat import SQATConfig
from sqat.hf.core import from_decoder, to_decoder
from sqat.hf.modeling_sqat import SQATForCausalLM, SQATModel, SQATPreTrainedModel
from sqat.hf.original import read_original

AutoConfig.register("sqat", SQATConfig, exist_ok=True)
AutoModel.register(SQATConfig, SQATModel, exist_ok=True)
AutoModelForCausalLM.register(SQATConfig, SQATForCausalLM, exist_ok=True)
SQATPreTrainedModel._read_original = staticmethod(read_original)
SQATPreTrainedModel._complete = staticmethod(complete)

__all__ = ["SQATConfig", "SQATForCausalLM", "SQATModel", "from_decoder", "to_decoder"]
