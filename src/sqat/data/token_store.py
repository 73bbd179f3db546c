"""A corpus' token ids where batches are made of them: in the memory map on disk, or in a GPU's memory.

Shape letters: L documents, P places.
"""

import logging
import warnings

import numpy as np
import torch
from torch import Tensor

MEMORY_SHARE = 0.25  # of a GPU's free memory, that the tokens may take there

logger = logging.getLogger(__name__)


class TokenStore:
    """Token ids on `device`, to be read by tensors that are there too, without waiting for it.

    A GPU keeps them in its own memory where they take at most `MEMORY_SHARE` of what is free; else, and for every other
    device, they stay in the memory map, and `device` is the CPU.

    Args:
        tokens: uint16 or uint32 (num_tokens,).
        device: where batches are wanted.
    """

    def __init__(self, tokens: np.ndarray, device: torch.device) -> None:
        bits = 8 * tokens.itemsize
        self._bits = 2**bits - 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
            # Signed, since more of torch's kernels take these; `read` undoes it.
            self._ids = torch.from_numpy(np.asarray(tokens).view(f"int{bits}"))
        if device.type == "cuda" and self._fits(device):
            self._ids = self._ids.to(device)

    @property
    def device(self) -> torch.device:
        return self._ids.device

    def read(self, places: Tensor) -> Tensor:
        """The ids at some places, int64 of the shape of `places`."""
        return self._ids[places].long() & self._bits

    def upload(self, *columns: np.ndarray) -> Tensor:
        """Integers or truth values (L,) as one int64 tensor (columns, L) on `device`."""
        table = torch.from_numpy(np.stack(columns).astype(np.int64, copy=False))
        return to_device(table, self.device)

    def _fits(self, device: torch.device) -> bool:
        size, free = self._ids.nbytes, torch.cuda.mem_get_info(device)[0]
        if size > MEMORY_SHARE * free:
            template = "the tokens (%.1f GB) stay on the host: more than %.0f %% of the free GPU memory (%.1f GB)"
            logger.info(template, size / 1e9, 100 * MEMORY_SHARE, free / 1e9)
            return False
        return True


def to_device(part: Tensor, device: torch.device | str) -> Tensor:
    """`part` on a device. A copy to a GPU goes through pinned memory, since only such a copy is not waited for."""
    if part.device.type == "cpu" and torch.device(device).type == "cuda":
        part = part.pin_memory()
    return part.to(device, non_blocking=True)
