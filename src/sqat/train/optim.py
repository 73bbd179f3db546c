"""Parameter groups, AdamW, and learning-rate schedules as pure functions of the step."""

import math

import torch
from torch import nn

from sqat.run_config import TrainConfig


def cosine_with_warmup(step: int, *, peak: float, total_steps: int, warmup_steps: int = 0, floor: float = 0.0) -> float:
    """Learning rate of step 0, 1, …: linear warm-up from peak / warmup_steps, then a half cosine (arXiv 1608.03983)
    from `peak` to `floor`.

    The rate reaches `floor` at `total_steps`, as torch's CosineAnnealingLR does with T_max = total_steps.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return floor + 0.5 * (peak - floor) * (1.0 + math.cos(math.pi * progress))


def learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    """The configured schedule's rate of a step."""
    return cosine_with_warmup(
        step,
        peak=config.learning_rate,
        total_steps=total_steps,
        warmup_steps=config.warmup_steps,
        floor=config.min_learning_rate,
    )


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_all: bool = False) -> list[dict[str, object]]:
    """Two groups: matrices and embeddings decay, biases and norms do not (unless `decay_all`, RxNN's way)."""
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [p for name, p in trained if decay_all or _is_matrix(name, p)]
    others = [p for name, p in trained if not (decay_all or _is_matrix(name, p))]
    groups: list[dict[str, object]] = [{"params": decayed, "weight_decay": weight_decay}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    return groups


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() >= 2 and not name.endswith("bias")  # stacked expert biases have two axes


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101), fused, over the model's parameter groups."""
    groups = parameter_groups(model, config.weight_decay, decay_all=config.decay_all)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)
