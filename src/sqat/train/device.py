"""Where a run computes, and in which precision."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from sqat.errors import ConfigError


def use_bf16(precision: str, device: str) -> bool:
    """Whether "auto" means bf16 here: on GPUs and CPUs that multiply it natively."""
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def make_accelerator(device: str) -> Accelerator:
    """Accelerate for a configured device.

    Raises:
        ConfigError: the device is not there, or several processes were launched.
    """
    kind = device.split(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but no GPU is available: use auto or cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device is {device!r}, but this is not available here: use auto or cpu")
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    accelerator = Accelerator(cpu=kind == "cpu")
    if accelerator.num_processes > 1:
        raise ConfigError(
            f"launched in {accelerator.num_processes} processes, but training runs in one: start it without a launcher"
        )
    return accelerator
