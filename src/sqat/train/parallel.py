"""A model whose parameters are cut among processes (FSDP2, `train.parallel: fsdp`): cutting it, and putting it together
for checkpoints, which are the same whatever the number of processes.

Modules that only cut models need are imported in the functions: they take a second.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sqat.checkpoint.model_files import build
from sqat.model import Decoder
from sqat.train import distributed


def cut_model(model: Decoder) -> None:
    """Leave each process its part of every parameter (ZeRO's third stage, arXiv 1910.02054). A layer's are put together
    while it computes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    # Of what a layer or the model gives, which nothing here changes in place.
    warnings.filterwarnings("ignore", message=r"FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(model.embedding.weight.device.type, (distributed.count(),))
    for layer in model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden_states")  # what training and evaluation call
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)  # gloo cannot take means


def is_cut(tensor: Tensor) -> bool:
    """Whether this process may have but a part of it."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A tensor of which this process may have a part; where it has, all processes have to ask for it."""
    return tensor.full_tensor() if is_cut(tensor) else tensor


def cut_as(tensor: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, where `like` is cut."""
    if not is_cut(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_model(model: Decoder) -> Decoder | None:
    """The model itself where nothing is cut; else one put together on the CPU in the first process, and `None` in the
    others. All have to ask for it.
    """
    state = model.state_dict()
    if not any(is_cut(tensor) for tensor in state.values()):
        return model
    tensors = {}
    for name, tensor in state.items():
        together = whole(tensor.detach())
        if distributed.is_first():
            tensors[name] = together.cpu().contiguous()
    return build(model.config, tensors) if tensors else None


def load_whole(model: torch.nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors, by name, into a model that may be cut."""
    own = model.state_dict()
    model.load_state_dict({name: cut_as(tensor, own[name]) for name, tensor in tensors.items()})
