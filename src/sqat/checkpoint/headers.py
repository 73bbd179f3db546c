"""What a weights file says it holds, compared with what a configuration asks for before anything is allocated.

A checkpoint may come from anywhere, and its `config.json` may ask for any size. Nothing of a configuration's size is
made until the files beside it have turned out to hold as much: a header costs a few hundred bytes a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sqat.checksums import check_files
from sqat.config import ModelConfig
from sqat.errors import CheckpointError
from sqat.untrusted import read_json, shown

MAX_INDEX_BYTES = 1 << 24
MAX_NAME_BYTES = 255  # of file systems
_SPARE_TENSORS = 64  # so that a checkpoint that lacks a few is refused by their names, not by its number of layers

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file without their values, on the device "meta".

    Raises:
        CheckpointError: missing, damaged or truncated, or of a type that is not read here.
    """
    if not path.is_file():
        raise CheckpointError(f"{path.parent} has no {path.name}")
    found: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                piece = file.get_slice(name)
                kind, shape = piece.get_dtype(), piece.get_shape()
                if kind not in _TYPES:
                    raise CheckpointError(f"{path}: {shown(name)} holds {kind}, but must hold floating-point numbers")
                found[name] = torch.empty(shape, dtype=_TYPES[kind], device="meta")
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    return found


def weight_files(folder: Path, single: str) -> list[Path]:
    """The files that hold a checkpoint's weights: `single`, or those that its index names.

    An index may name files of its own folder alone: no path, and no link that leads elsewhere, but into the folder
    where the Hub's client keeps what it fetched.

    Raises:
        CheckpointError: a damaged index, or a name that leads out of the folder.
    """
    index = folder / f"{single}.index.json"
    if (folder / single).is_file() or not index.is_file():
        return [folder / single]
    check_files(folder, [index.name])
    try:
        names = sorted({str(name) for name in read_json(index, MAX_INDEX_BYTES)["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged: {error!r}") from error
    if not names:
        raise CheckpointError(f"{index} is damaged: its weight_map names no file")
    for name in names:
        file_name = name == Path(name).name and "\\" not in name and name.isprintable()
        if not file_name or not name.endswith(".safetensors") or len(name.encode()) > MAX_NAME_BYTES:
            raise CheckpointError(
                f"{index}: weight_map names {shown(name)}, but must name .safetensors files of its own folder"
            )
        require_inside(folder / name)
    return [folder / name for name in names]


def require_inside(path: Path) -> None:
    """Raise a CheckpointError where a file is a link that leads out of its folder (and not to where the Hub's client
    keeps its files).
    """
    target, folder = path.resolve(), path.parent.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else None
    if target.parent not in (folder, blobs):
        raise CheckpointError(f"{path} is a link to {target}, but a checkpoint's files must lie in its folder")


def read_headers(paths: list[Path]) -> dict[str, Tensor]:
    """:func:`read_header` of several files. Raises a CheckpointError, too, where two of them hold the same tensor."""
    found: dict[str, Tensor] = {}
    for path in paths:
        part = read_header(path)
        if twice := found.keys() & part.keys():
            raise CheckpointError(f"{path} holds {shown(min(twice))}, which another file of the checkpoint holds, too")
        found |= part
    return found


def require_plausible(config: ModelConfig, found: Mapping[str, Tensor], where: Path, *, experts_apart: bool) -> None:
    """Raise a CheckpointError where a configuration asks for many more tensors than there are: naming all that are
    missing would take as much memory as they do.

    Args:
        experts_apart: whether each expert has tensors of its own.
    """
    most = len(found) + _SPARE_TENSORS
    if config.num_layers > most:
        raise CheckpointError(
            f"{where}: num_layers is {config.num_layers:,}, but the weights beside it are {len(found):,} tensors"
        )
    if experts_apart and config.num_layers * config.num_experts > 2 * most:
        raise CheckpointError(
            f"{where}: num_layers x num_experts is {config.num_layers:,} x {config.num_experts:,}, but the weights "
            f"beside it are {len(found):,} tensors"
        )
