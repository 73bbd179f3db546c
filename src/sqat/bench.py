"""How fast models run on this machine: `sqat bench`, and the measurements that `sqat compare` shares with it.

Shape letters: B rows, T tokens, H query heads, K key/value heads, C head_dim.
"""

from __future__ import annotations

import datetime
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sqat.config import ModelConfig
from sqat.data.batches import Batch
from sqat.errors import ConfigError
from sqat.generate import SamplingConfig, decode_tokens
from sqat.model import Decoder
from sqat.model.attend import attend, kernel_dtype
from sqat.model.mask import AttentionMask
from sqat.run_config import TrainConfig
from sqat.train.distributed import choose_device
from sqat.train.optim import make_optimizer
from sqat.train.step import TrainingLoss, autocast, keep_freed_memory, suitable_shards, train_step, use_bf16
from sqat.variants import preset
from sqat.version import revision

PACKAGES = ("sqat", "torch", "transformers", "rxlm", "tokenizers", "datasets", "numpy", "numba", "triton")
VARIABLES = ("MALLOC_", "OMP_", "MKL_", "KMP_", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "PYTORCH_", "TOKENIZERS_")

ROWS = {"cpu": 32, "cuda": 256}  # of a training step, unless told otherwise
NEW_TOKENS = 128  # decoded in every round
MOST = 1 << 20  # rows, tokens of a prompt, rounds


def bench(
    models: Sequence[str],
    *,
    device: str = "auto",
    batch_size: int | None = None,
    context: int | None = None,
    prompt: int = 2048,
    rounds: int = 3,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure presets in turn, on random tokens and random weights.

    Args:
        models: names of presets.
        device: "auto", "cpu" or "cuda".
        batch_size: rows of a training step; by default 32 on a CPU and 256 on a GPU.
        context: tokens of a row; by default the model's context length.
        prompt: tokens of the prompt whose reading is timed.
        rounds: measurements of each model, after one that does not count. Models take turns.
        progress: called with what is done next, and from the second round on the time left.

    Returns:
        "models" maps each name to lists with a value per round: "training", "evaluation", "prompt" and "decoding" in
        tokens per second. "environment" describes the machine, "settings" repeats the arguments.

    Raises:
        ConfigError: an unknown preset, an unusable number, a device that is not available, or too little memory.
    """
    if device not in ("auto", *ROWS):
        raise ConfigError(f"device is {device!r}, but must be one of auto, cpu, cuda")
    device = "cpu" if device == "auto" and not torch.cuda.is_available() else choose_device(device).type
    batch_size = ROWS[device] if batch_size is None else batch_size
    numbers = {"batch_size": batch_size, "prompt": prompt, "rounds": rounds}
    for name, value in numbers.items():
        if not 1 <= value <= MOST:
            raise ConfigError(f"{name} is {value}, but must be between 1 and {MOST:,}")
    configs = {name: preset(name) for name in models}
    if context is not None:
        configs = {name: config.replace(context_length=context) for name, config in configs.items()}
    try:
        timers = {}
        for name, config in configs.items():
            progress(f"{name}: first steps")
            tokens_BT = torch.randint(4, config.vocab_size, (batch_size, config.context_length), device=device)
            batch = Batch(tokens_BT, tokens_BT.roll(-1, dims=1), None, None)
            timers[name] = ModelTimer(config, batch, device, prompt_tokens=prompt, new_tokens=NEW_TOKENS)
            _round(timers[name])
        found = _measure(timers, rounds, progress)
    except (MemoryError, RuntimeError) as error:  # how torch tells that memory is short
        reason = f"{type(error).__name__}: {str(error)[:300]}"
        raise ConfigError(f"{reason}: memory may be too small for this batch_size, context or prompt") from error
    settings = {"device": device, "context": context, **numbers}
    return {"models": found, "settings": settings, "environment": environment()}


def _measure(timers: Mapping[str, ModelTimer], rounds: int, progress: Callable[[str], None]) -> dict[str, Any]:
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in timers}
    started, left = time.monotonic(), ""
    for number in range(rounds):
        if number:
            left = f", about {(time.monotonic() - started) / number * (rounds - number):.0f} s left"
        for name, timer in timers.items():
            progress(f"{name}: round {number + 1} of {rounds}{left}")
            for what, rate in _round(timer).items():
                found[name][what].append(rate)
    return found


def _round(timer: ModelTimer) -> dict[str, float]:
    """Tokens per second of two training steps and of everything else once."""
    tokens = timer.batch.inputs.numel()
    prompt_seconds, token_seconds = timer.generate()
    return {
        "training": 2 * tokens / (timer.train() + timer.train()),
        "evaluation": tokens / timer.evaluate(),
        "prompt": len(timer.prompt) / prompt_seconds,
        "decoding": 1 / token_seconds,
    }


class ModelTimer:
    """Times what one model does: a training step, evaluation, reading a prompt, decoding.

    Args:
        config: the model, which is built twice: for training and for inference. Weights are random.
        batch: what a step trains on, on the device.
        device: "cpu" or "cuda".
        precision: as `TrainConfig.precision`.
        prompt_tokens, new_tokens: for `generate`.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: Batch,
        device: str,
        *,
        precision: str = "auto",
        prompt_tokens: int,
        new_tokens: int,
    ) -> None:
        self.batch, self.device, self.precision, self.new_tokens = batch, device, precision, new_tokens
        self.step = training_step(config, batch, device, precision=precision)
        length = max(config.context_length, prompt_tokens + new_tokens + 1)  # so that nobody is warned of longer text
        self.model = Decoder(config.replace(context_length=length)).to(device).eval()
        self.prompt: list[int] = torch.randint(4, config.vocab_size, (prompt_tokens,)).tolist()

    def train(self) -> float:
        """Seconds of one training step."""
        return seconds(self.step, self.device)

    def evaluate(self) -> float:
        """Seconds of the batch's forward pass up to the last hidden states."""
        batch = self.batch

        def forward() -> None:
            with torch.no_grad(), autocast(self.precision, self.device):
                self.model.hidden_states(batch.inputs, positions=batch.positions, documents=batch.documents)

        return seconds(forward, self.device)

    def generate(self) -> tuple[float, float]:
        """Seconds until the prompt's first new token, and seconds for each of the tokens after it."""
        config = SamplingConfig(temperature=0.0, max_tokens=self.new_tokens + 1)
        synchronize(self.device)
        start = time.perf_counter()
        tokens = decode_tokens(self.model, [self.prompt], config)
        next(tokens).cpu()
        first = time.perf_counter()
        for token in tokens:
            last = token
        last.cpu()
        return first - start, (time.perf_counter() - first) / self.new_tokens


def training_step(
    config: ModelConfig, batch: Batch, device: str, *, precision: str = "auto", compiled: bool = False
) -> Callable[[], Any]:
    """A function that runs one training step of a new model on a batch, as :class:`sqat.Trainer` does: forward,
    backward, clipping at norm 1, AdamW.
    """
    keep_freed_memory()
    torch.manual_seed(0)
    model = Decoder(config).to(device).train()
    task: nn.Module = TrainingLoss(model, shards=1 if compiled else suitable_shards(model))
    optimizer = make_optimizer(model, TrainConfig())
    if compiled:
        task = torch.compile(task)  # type: ignore[assignment]
    targets = batch.num_targets

    def step() -> None:
        with autocast(precision, device):
            train_step(task, [batch], optimizer, total_targets=targets, clip_norm=1.0)

    return step


def attention_call(config: ModelConfig, rows: int, length: int, device: str, *, backward: bool) -> Callable[[], Any]:
    """A function that runs attention once, scores and weighted sum alone, with a model's heads and its window.

    Args:
        config: of it the head counts, head_dim, window and global_tokens.
        rows, length: shape of the batch, (B, T).
        backward: compute the gradients of queries, keys and values too.
    """
    dtype = training_dtype(device)

    def heads(count: int) -> Tensor:  # laid out as the projections leave them
        x_BTHC = torch.randn(rows, length, count, config.head_dim, device=device, dtype=dtype)
        return x_BTHC.transpose(1, 2).requires_grad_(backward)

    inputs = heads(config.num_query_heads), heads(config.num_kv_heads), heads(config.num_kv_heads)
    mask = None  # made once, as it is for all layers of a model
    if config.window is not None and config.window < length:
        window, global_tokens = config.window, config.global_tokens
        mask = AttentionMask(length, length, torch.device(device), window=window, global_tokens=global_tokens)
    gradient_BHTC = heads(config.num_score_heads).detach()

    def run() -> None:
        with torch.set_grad_enabled(backward):
            out_BHTC = attend(*inputs, mask=mask)
            if backward:
                torch.autograd.grad(out_BHTC, inputs, gradient_BHTC)

    return run


def training_dtype(device: str) -> torch.dtype:
    """The type in which training computes attention on a device."""
    mixed = torch.bfloat16 if use_bf16("auto", device) else torch.float32
    return kernel_dtype(torch.empty(0, device=device, dtype=mixed))


def seconds(call: Callable[[], Any], device: str) -> float:
    """Wall-clock seconds of one call, until the device has finished its work."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait until the device has done all that was queued."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_bytes(device: str = "cpu") -> int:
    """Peak memory of this process so far: resident memory on a CPU, what torch allocated on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if peak := _after_colon("/proc/self/status", "VmHWM"):  # Linux: `ru_maxrss` would include the parent's before exec
        return int(peak.split()[0]) * 1024
    if sys.platform == "win32":
        return 0  # not available without another package
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def environment() -> dict[str, Any]:
    """What a reader needs to judge or repeat a measurement: versions, machine, threads, git revision. `None` stands for
    what this machine does not tell.
    """
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": _after_colon("/proc/cpuinfo", "model name") or platform.processor() or None,
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory_bytes("MemTotal"),
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory_bytes": None if gpu is None else gpu.total_memory,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "revision": revision(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }


def package_version(name: str) -> str | None:
    """The version of an installed package, or `None`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def memory_bytes(key: str) -> int | None:
    """A line of Linux's /proc/meminfo, such as "MemTotal" or "MemAvailable", in bytes; `None` on other systems."""
    value = _after_colon("/proc/meminfo", key)
    return int(value.split()[0]) * 1024 if value else None


def _after_colon(path: str, key: str) -> str | None:
    file = Path(path)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), None)
