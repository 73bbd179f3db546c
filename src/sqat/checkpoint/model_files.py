"""A model as `config.json` and `model.safetensors`, in this package's layout or RxNN's; which one, config.json says.
Nothing is ever unpickled.
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

from sqat.checkpoint import rxnn, rxnn_config
from sqat.checkpoint.headers import read_headers, require_plausible, weight_files
from sqat.checkpoint.store import recover, write_folder
from sqat.checksums import check_files
from sqat.config import ModelConfig
from sqat.errors import CheckpointError, ConfigError
from sqat.model import Decoder
from sqat.untrusted import read_json, shown

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CONFIG_BYTES = 1 << 20
MODEL_TYPE = "sqat"
LAYOUTS = ("sqat", "rxnn")

TRANSFORMERS_PREFIX = "model."  # which transformers puts before the names of all tensors but the head's

# What transformers writes into a config.json beside the model's own fields.
_NOT_OF_THE_MODEL = {
    *("model_type", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "problem_type"),
    *("id2label", "label2id", "chunk_size_feed_forward", "is_encoder_decoder", "return_dict"),
    *("output_hidden_states", "output_attentions", "initializer_range", "use_cache"),
    *("output_router_logits", "router_aux_loss_coef", "pad_token_id", "bos_token_id", "eos_token_id"),
}


def save_model(model: Decoder, folder: str | Path, *, layout: str = "sqat") -> Path:
    """Write `config.json` and `model.safetensors`, atomically, replacing `folder` whole if it exists.

    Args:
        layout: "sqat", or "rxnn" for the original's names (architectures that the original could express only).

    Raises:
        ConfigError: unknown layout, or a model that RxNN's layout cannot hold.
        CheckpointError: `folder` holds something else than a checkpoint, which is left alone.
    """
    existing = Path(folder)
    if existing.is_file() or (existing.is_dir() and any(existing.iterdir()) and not (existing / CONFIG_FILE).is_file()):
        raise CheckpointError(
            f"{folder} exists and is not a checkpoint (it has no {CONFIG_FILE}): choose a new or an empty folder"
        )
    with write_folder(folder) as temporary:
        write_model(model, temporary, layout=layout)
    return Path(folder)


def write_model(model: Decoder, folder: Path, *, layout: str = "sqat") -> None:
    """Write the two files into an existing folder; :func:`save_model` is the atomic form."""
    if layout not in LAYOUTS:
        raise ConfigError(f"layout is {layout!r}, but must be one of {', '.join(LAYOUTS)}")
    tensors = native_tensors(model)
    if layout == "rxnn":
        config = rxnn_config.config_to_rxnn(model.config)
        tensors = rxnn.tensors_to_rxnn(tensors, model.config)
    else:
        config = {"model_type": MODEL_TYPE, **model.config.to_dict()}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=layout == "rxnn"), encoding="utf-8")
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def native_tensors(model: Decoder) -> dict[str, Tensor]:
    """The model's tensors by name, on the CPU; a tied head appears once, as the embedding."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_embeddings:
        del tensors["head.weight"]
    return tensors


def load_model(
    folder: str | Path, *, dtype: torch.dtype | None = torch.float32, device: torch.device | str = "cpu"
) -> Decoder:
    """Read a checkpoint of either layout; the model comes in evaluation mode.

    Args:
        folder: the checkpoint.
        dtype: type the weights are converted to; `None` keeps the file's.
        device: where to put it.

    Raises:
        CheckpointError: missing or damaged files (by the folder's checksums, if it has any), missing, extra or
            mis-shaped tensors, unknown architecture; the message names them.
    """
    folder = Path(folder)
    config, is_rxnn = read_config(folder)
    files = weight_files(folder, WEIGHTS_FILE)
    headers = read_headers(files)
    require_plausible(config, headers, folder / CONFIG_FILE, experts_apart=is_rxnn)
    expected = expected_shapes(config)
    names = rxnn.shapes_to_rxnn(expected, config) if is_rxnn else expected
    check_tensors(_own_names(headers, is_rxnn), names, folder / WEIGHTS_FILE)  # before there is any memory for them
    tensors = _own_names(_read_tensors(files), is_rxnn)
    if is_rxnn:
        tensors = rxnn.tensors_from_rxnn(tensors, config, expected)
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    return build(config, tensors).to(device).eval()


def _own_names(tensors: Mapping[str, Tensor], is_rxnn: bool) -> dict[str, Tensor]:
    if is_rxnn:
        return rxnn.drop_buffers(tensors)
    own = {name.removeprefix(TRANSFORMERS_PREFIX): tensor for name, tensor in tensors.items()}
    if len(own) != len(tensors):
        twice = next(name for name in own if name in tensors and TRANSFORMERS_PREFIX + name in tensors)
        raise CheckpointError(f"{twice} is there twice: with and without {TRANSFORMERS_PREFIX!r} before it")
    return own


def build(config: ModelConfig, tensors: Mapping[str, Tensor]) -> Decoder:
    """A model with these tensors, which are taken over, not copied; the random generator is left alone."""
    with torch.device("meta"):
        model = Decoder(config)
    tied = {"head.weight": tensors["embedding.weight"]} if config.tie_embeddings else {}
    model.load_state_dict({**tensors, **tied}, assign=True)
    if config.tie_embeddings:
        model.head.weight = model.embedding.weight
    return model


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor in a checkpoint of this configuration."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in Decoder(config).state_dict().items()}
    if config.tie_embeddings:
        del shapes["head.weight"]
    return shapes


def read_config(folder: str | Path) -> tuple[ModelConfig, bool]:
    """The configuration in a checkpoint folder, and whether the layout is RxNN's.

    Raises:
        CheckpointError: no folder, no `config.json`, not JSON, or a field this package does not know.
    """
    folder = Path(folder)
    recover(folder)
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} is not a checkpoint: it has no {CONFIG_FILE}"
            if folder.is_dir()
            else f"no checkpoint at {folder}"
        )
    check_files(folder, [CONFIG_FILE])
    try:
        values: Any = read_json(path, MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    try:
        if rxnn_config.is_rxnn_config(values):
            return rxnn_config.config_from_rxnn(values), True
        if not isinstance(values, dict) or values.get("model_type") != MODEL_TYPE:
            found = values.get("model_type") if isinstance(values, dict) else values
            raise CheckpointError(
                f"{path}: model_type is {shown(found)}, but must be {MODEL_TYPE!r}; or, in RxNN's layout, "
                "att_type and embed_dim must be there"
            )
        fields = {name: value for name, value in values.items() if name not in _NOT_OF_THE_MODEL}
        return ModelConfig.from_dict(fields), False
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from error


def check_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, torch.Size], path: Path) -> None:
    """Raise a CheckpointError that names every missing, extra, mis-shaped or non-floating tensor (the first few of
    each).
    """
    problems = []
    if missing := [name for name in expected if name not in tensors]:
        problems.append(f"missing {_some(missing)}")
    if extra := [name for name in tensors if name not in expected]:
        problems.append(f"unexpected {_some(extra)}")
    shared = [name for name in expected if name in tensors]
    if wrong := [name for name in shared if tensors[name].shape != expected[name]]:
        problems.append(
            _some([f"{name} is {tuple(tensors[name].shape)}, but must be {tuple(expected[name])}" for name in wrong])
        )
    if integers := [name for name in shared if not tensors[name].is_floating_point()]:
        problems.append(
            _some([f"{name} holds {tensors[name].dtype}, but must hold floating-point numbers" for name in integers])
        )
    if problems:
        raise CheckpointError(f"{path} does not fit its {CONFIG_FILE}: {'; '.join(problems)}")


def _read_tensors(paths: list[Path]) -> dict[str, Tensor]:
    """All tensors of a checkpoint, from one file or, as transformers writes large ones, from several."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        check_files(path.parent, [path.name])
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged or truncated: {error}") from error
    return tensors


def _some(names: list[str], most: int = 4) -> str:
    first = ", ".join(names[:most])
    return first if len(names) <= most else f"{first} and {len(names) - most} more"
