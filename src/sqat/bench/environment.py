"""Where a measurement was made: versions, machine, threads, revision."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

from sqat.bench.peers import package_version
from sqat.version import revision

PACKAGES = ("sqat", "torch", "transformers", "rxlm", "accelerate", "tokenizers", "datasets", "numpy", "triton")
VARIABLES = ("MALLOC_", "OMP_", "MKL_", "KMP_", "LD_PRELOAD", "CUDA_VISIBLE_DEVICES", "PYTORCH_", "TOKENIZERS_")


def environment() -> dict[str, Any]:
    """What a reader needs to judge or repeat a measurement; `None` for what this machine does not tell."""
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in PACKAGES},
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "gpu": None if gpu is None else gpu.name,
        "gpu_memory_bytes": None if gpu is None else gpu.total_memory,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "revision": revision(),
        "variables": {name: value for name, value in sorted(os.environ.items()) if name.startswith(VARIABLES)},
    }


def available_bytes() -> int | None:
    """Memory that can be taken without swapping; `None` where the system does not say."""
    return _meminfo("MemAvailable")


def _memory_bytes() -> int | None:
    return _meminfo("MemTotal")


def _meminfo(key: str) -> int | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    lines = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
    return int(lines[key].split()[0]) * 1024 if key in lines else None


def _cpu_model() -> str | None:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or None
