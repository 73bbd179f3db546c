"""Models as `config.json` and safetensors files, in this package's layout or RxNN's. Nothing is ever unpickled.

A checkpoint may come from anywhere, and its `config.json` may ask for any size. So the headers of its weights are read
first, at a few hundred bytes per tensor, and memory is allocated only once they hold what `config.json` asks for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sqat.checkpoint import rxnn
from sqat.checksums import check_files
from sqat.config import ModelConfig
from sqat.errors import CheckpointError, ConfigError
from sqat.model import Decoder
from sqat.model.decoder import without_values
from sqat.store import write_folder
from sqat.untrusted import read_json, shown

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_TYPE = "sqat"
LAYOUTS = ("sqat", "rxnn")
TRANSFORMERS_PREFIX = "model."  # transformers puts it before every tensor's name but the head's

# Fields that transformers adds to config.json.
_NOT_OF_THE_MODEL = {
    *("model_type", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "problem_type"),
    *("id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder", "return_dict"),
    *("output_hidden_states", "output_attentions", "initializer_range", "use_cache"),
    *("output_router_logits", "router_aux_loss_coef", "pad_token_id", "bos_token_id", "eos_token_id"),
}


def save_model(model: Decoder, folder: str | Path, *, layout: str = "sqat") -> Path:
    """Write `config.json` and `model.safetensors` into a folder, which appears whole or not at all.

    Args:
        model: the model to save.
        folder: new, empty, or a checkpoint, which is replaced.
        layout: "sqat", or "rxnn" for the names of the original system, if it can express the architecture.

    Returns:
        The folder.

    Raises:
        ConfigError: an unknown layout, or a model that RxNN's layout cannot hold.
        CheckpointError: `folder` holds something other than a checkpoint; it is left alone.
        StorageError: the system refuses, for example because the disk is full.
    """
    folder = Path(folder).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file()):
        raise CheckpointError(
            f"{folder} exists and is not a checkpoint (it has no {CONFIG_FILE}): choose a new or an empty folder"
        )
    with write_folder(folder) as temporary:
        write_model(model, temporary, layout=layout)
    return folder


def write_model(model: Decoder, folder: Path, *, layout: str = "sqat") -> None:
    """Write the two files into an existing folder, without :func:`save_model`'s guarantee of all or nothing."""
    model = unwrapped(model)
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}, but must be one of {', '.join(LAYOUTS)}")
    tensors = native_tensors(model)
    if layout == "rxnn":
        config = rxnn.config_to_rxnn(model.config)
        tensors = rxnn.tensors_to_rxnn(tensors, model.config)
    else:
        config = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=layout == "rxnn"), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def load_model(
    folder: str | Path, *, dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """As :func:`sqat.load_model`, of a checkpoint's folder alone."""
    folder = Path(folder)
    config, is_rxnn = read_config(folder)
    files = weight_files(folder, WEIGHTS_FILE)
    tensors = read_tensors(files)
    expected = expected_shapes(config)
    if is_rxnn:
        tensors = rxnn.drop_buffers(tensors)
        check_tensors(tensors, rxnn.shapes_to_rxnn(expected, config), folder / WEIGHTS_FILE)
    else:
        tensors = {name.removeprefix(TRANSFORMERS_PREFIX): tensor for name, tensor in tensors.items()}
        check_tensors(tensors, expected, folder / WEIGHTS_FILE)
    check_files(folder, [path.name for path in files])
    if is_rxnn:
        tensors = rxnn.tensors_from_rxnn(tensors, config, expected)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return build(config, tensors).to(device).eval()


def read_config(folder: str | Path) -> tuple[ModelConfig, bool]:
    """The configuration in a checkpoint folder, and whether its layout is RxNN's.

    Raises:
        CheckpointError: no folder, no `config.json`, not JSON, or a field this package does not know.
    """
    check_files(Path(folder), [CONFIG_FILE])
    values, path = read_config_file(Path(folder)), Path(folder, CONFIG_FILE)
    try:
        if rxnn.is_rxnn_config(values):
            return rxnn.config_from_rxnn(values), True
        if values.get("model_type") != MODEL_TYPE:
            raise CheckpointError(
                f"{path}: model_type is {shown(values.get('model_type'))}, but must be {MODEL_TYPE!r}"
            )
        return ModelConfig.from_dict({k: v for k, v in values.items() if k not in _NOT_OF_THE_MODEL}), False
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def read_config_file(folder: Path) -> dict[str, Any]:
    """The fields in the `config.json` of a checkpoint of any kind; raises as :func:`read_config`."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        reason = f"{folder} is not a checkpoint: it has no {CONFIG_FILE}"
        raise CheckpointError(reason if folder.is_dir() else f"no checkpoint at {folder}")
    try:
        values: dict[str, Any] = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    return values


def unwrapped(model: Any) -> Any:
    """The model within what `torch.compile` and the data-parallel wrappers make of it."""
    while (inner := getattr(model, "_orig_mod", None) or getattr(model, "module", None)) is not None:
        model = inner
    return model


def native_tensors(model: Decoder) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU; a tied head appears once, as the embedding."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["head.weight"]
    return tensors


def build(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Decoder:
    """A model that takes over these tensors without a copy. The random generator is left alone."""
    with without_values():
        model = Decoder(config)
    tied = {"head.weight": tensors["embedding.weight"]} if config.tie_embeddings else {}
    model.load_state_dict({**tensors, **tied}, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor in a checkpoint of this configuration."""
    with without_values():
        shapes = {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    return shapes


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], path: Path) -> None:
    """Raise a CheckpointError that names the first few missing, extra, misshapen or non-floating tensors."""
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing {_some(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        problems.append(f"unexpected {_some(extra)}")
    shapes, types = [], []
    for name in expected.keys() & tensors.keys():
        tensor = tensors[name]
        if tensor.shape != expected[name]:
            shapes.append(f"{name} is {tuple(tensor.shape)}, but must be {tuple(expected[name])}")
        if not tensor.is_floating_point():
            types.append(f"{name} holds {tensor.dtype}, but must hold floating-point numbers")
    problems += [_some(sorted(wrong)) for wrong in (shapes, types) if wrong]
    if problems:
        raise CheckpointError(f"{path} does not fit its {CONFIG_FILE}: {'; '.join(problems)}")


def weight_files(folder: Path, single: str) -> list[Path]:
    """The files with a checkpoint's weights: `single`, or those that its index names, all in the folder itself.

    Raises:
        CheckpointError: a damaged index, or a name that leads out of the folder.
    """
    index = folder / f"{single}.index.json"
    if (folder / single).is_file() or not index.is_file():
        return [folder / single]
    check_files(folder, [index.name])
    try:
        names = sorted({str(name) for name in read_json(index)["weight_map"].values()})
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged: {error!r}") from error
    if not names:
        raise CheckpointError(f"{index} is damaged: its weight_map names no file")
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise CheckpointError(
                f"{index}: weight_map names {shown(name)}, but must name .safetensors files of its own folder"
            )
        require_inside(folder / name)
    return [folder / name for name in names]


def require_inside(path: Path) -> None:
    """Raise a CheckpointError if a file is a link that leads out of its folder. The `blobs` folder where the Hub's
    client keeps its files is allowed.
    """
    target, folder = path.resolve(), path.parent.resolve()
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else None
    if target.parent not in (folder, blobs):
        raise CheckpointError(f"{path} is a link to {target}, but a checkpoint's files must lie in its folder")


def read_tensors(paths: list[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files, which are mapped into memory, so that values are read when they are used.

    Raises:
        CheckpointError: a file is missing, damaged or truncated.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        if not path.is_file():
            raise CheckpointError(f"{path.parent} has no {path.name}")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
            raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    return tensors


def _some(names: list[str], most: int = 4) -> str:
    first = ", ".join(names[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
