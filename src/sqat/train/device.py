"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator, DistributedType
from accelerate.utils import DistributedDataParallelKwargs

from sqat.errors import ConfigError
from sqat.train import distributed


def use_bf16(precision: str, device: str) -> bool:
    """Whether "auto" means bf16 here: on GPUs and CPUs that multiply it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_accelerator(device: str) -> Accelerator:
    """Accelerate for a configured device; where :func:`sqat.train.distributed.join` has made a group, in it.

    Raises:
        ConfigError: the device is not there, or `accelerate launch` was told to wrap models in its own way.
    """
    kind = device.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but no GPU is available: use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device is {device!r}, but this is not available here: use auto or cpu")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    on_cpu = kind == "cpu" or (distributed.count() > 1 and not torch.cuda.is_available())
    ddp = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=[ddp])  # precision: see Engine.autocast
    known = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if accelerator.distributed_type not in known:
        raise ConfigError(
            f"accelerate was told to use {accelerator.distributed_type.value}, but how processes share a model is said "
            "by train.parallel: launch without it"
        )
    return accelerator
