"""For which models a lean step can stand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sqat.model import Decoder
from sqat.model.attention import Attention
from sqat.model.decoder import Block
from sqat.model.feedforward import FeedForward
from sqat.model.moe import MoE
from sqat.model.norm import make_norm

_KNOWN = {Decoder, Block, Attention, FeedForward, MoE, nn.Embedding, nn.Linear, nn.ModuleList}
_KNOWN |= {type(make_norm(kind, 1, None)) for kind in ("rmsnorm", "layernorm", None)}


def why_not_lean(model: nn.Module) -> str | None:
    """Why a :class:`sqat.cpu.lean.LeanStep` cannot stand for this model; `None` if it can.

    It reads weights past the modules, so there must be none that compute something else: adapters, quantised layers,
    parametrisations, hooks.
    """
    for name, module in model.named_modules():
        if type(module) not in _KNOWN:
            return f"{name or 'the model'} is a {type(module).__name__}"
    for name, parameter in model.named_parameters():
        if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
            return f"{name} is {parameter.dtype} on {parameter.device}"
        if type(parameter.data) is not Tensor:  # quantised or distributed
            return f"{name} is a {type(parameter.data).__name__}"
    return find_hook(model) or ("autocast is on" if torch.is_autocast_enabled("cpu") else None)


def find_hook(model: nn.Module) -> str | None:
    """The first module that does more than its class says; `None` if there is none."""
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"{name or 'the model'} has hooks"
        if "forward" in vars(module):  # accelerate's way
            return f"{name or 'the model'} has a forward of its own"
    return None
