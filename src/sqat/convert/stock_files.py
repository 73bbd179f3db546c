"""Stock checkpoints of unknown origin, held to plain data before `transformers` reads them.

`transformers` does what a checkpoint's files say: it fetches attention kernels (code) that `config.json` names, runs
modelling code by `auto_map`, loads an adapter's base model from wherever it is, builds quantisers, and makes lists as
long as a number in the file. Nothing of that belongs to the models converted here, so it is refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from sqat.checkpoint.model_files import WEIGHTS_FILE, read_headers, require_inside, weight_files
from sqat.convert.architectures import heads_of, require_known
from sqat.convert.modeling_mixed_heads import PREFIX
from sqat.data.tokenizer import TOKENIZER_FILE
from sqat.data.tokenizer_check import read_tokenizer_file
from sqat.errors import CheckpointError, ConfigError
from sqat.untrusted import MAX_JSON_BYTES, read_json, shown

MAX_STOCK_CONFIG_BYTES = 1 << 20
MAX_NUMBER = 1 << 24  # of any count in a configuration
MAX_LAYERS = 1 << 10
MAX_ITEMS = 1 << 13  # of a list in a configuration, such as the kinds of layers

_REFUSED = {
    "auto_map": "code that comes with a checkpoint is not run",
    "quantization_config": "weights must be plain floating-point numbers",
    "attn_implementation": "it may name code on the Hub",
    "_attn_implementation": "it may name code on the Hub",
    "_attn_implementation_internal": "it may name code on the Hub",
    "experts_implementation": "it may name code on the Hub",
    "_experts_implementation": "it may name code on the Hub",
    "_experts_implementation_internal": "it may name code on the Hub",
}
_FILES_REFUSED = {"adapter_config.json": "an adapter's base model may be anywhere"}
_DTYPES = ("float32", "float16", "bfloat16", "float64", None)


def read_plain_json(path: Path, most_bytes: int = MAX_STOCK_CONFIG_BYTES) -> dict[str, Any]:
    """The object in a JSON file. Raises a CheckpointError where there is none, or it is a link out of its folder."""
    if path.is_symlink():
        require_inside(path)
    try:
        values = read_json(path, most_bytes)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} cannot be read: it holds {shown(values)}, but must hold fields by name")
    return values


def require_plain_config(values: dict[str, Any]) -> None:
    """Raise a ConfigError unless a stock model's configuration is of a known architecture, plain, and of sane size."""
    model_type = str(values.get("model_type"))[:100]
    require_known(model_type, mixed=True)
    for name, reason in _REFUSED.items():
        if name == "auto_map" and model_type.startswith(PREFIX):
            continue  # of our own classes, which are registered: those run, and not what it names
        if values.get(name) is not None:
            raise ConfigError(f"{name} is {shown(values[name])}, but must not be there: {reason}")
    for name in ("dtype", "torch_dtype"):
        if values.get(name) not in _DTYPES:
            raise ConfigError(
                f"{name} is {shown(values[name])}, but must be one of float32, float16, bfloat16, float64"
            )
    if (layers := values.get("num_hidden_layers")) is not None and not (
        type(layers) is int and 1 <= layers <= MAX_LAYERS
    ):
        raise ConfigError(f"num_hidden_layers is {shown(layers)}, but must be a whole number from 1 to {MAX_LAYERS:,}")
    for name, value in values.items():
        _require_sane(name, value)


def _require_sane(name: str, value: Any) -> None:
    if type(value) is int and abs(value) > MAX_NUMBER and name != "rope_theta":
        raise ConfigError(f"{shown(name)} is {shown(value)}, but must be at most {MAX_NUMBER:,}")
    parts: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        parts = list(value.items())
    elif isinstance(value, list):
        parts = [(name, part) for part in value]
    if len(parts) > MAX_ITEMS:
        raise ConfigError(f"{shown(name)} holds {len(parts):,} values, but must hold at most {MAX_ITEMS:,}")
    for part_name, part in parts:
        _require_sane(part_name, part)


def require_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Raise a CheckpointError unless a folder's weights are safetensors of its own, as many as the configuration asks
    for at least: what is missing would be allocated.
    """
    for name, reason in _FILES_REFUSED.items():
        if (folder / name).exists():
            raise CheckpointError(f"{folder} holds {name}, but must not: {reason}")
    if (folder / "generation_config.json").exists():
        read_plain_json(folder / "generation_config.json")
    found = sum(tensor.numel() for tensor in read_headers(weight_files(folder, WEIGHTS_FILE)).values())
    wanted = _least_elements(config)
    if wanted > found:
        raise CheckpointError(
            f"{folder / 'config.json'} asks for a model of at least {wanted:,} numbers "
            f"(vocab_size {config.vocab_size:,}, hidden_size {config.hidden_size:,}, "
            f"num_hidden_layers {config.num_hidden_layers:,}), but the weights beside it are {found:,}"
        )


def require_sizes(config: PreTrainedConfig) -> None:
    """Raise a ConfigError unless the sizes of a stock model are whole numbers of at least 1."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    optional = ("num_key_value_heads", "head_dim", "num_local_experts", "num_experts", "moe_intermediate_size")
    for name in (*names, *(name for name in optional if getattr(config, name, None) is not None)):
        size = getattr(config, name, None)
        if type(size) is not int or not 1 <= size <= MAX_NUMBER:
            raise ConfigError(f"{name} is {shown(size)}, but must be a whole number from 1 to {MAX_NUMBER:,}")


def _least_elements(config: PreTrainedConfig) -> int:
    """How many numbers the embedding, the attention and the feed-forward of a model are, at least."""
    heads, width = heads_of(config), config.hidden_size
    query = min(getattr(config, "query_heads_per_layer", None) or [heads.query])
    kv = min(getattr(config, "kv_heads_per_layer", None) or [heads.kv])
    attention = 2 * width * heads.head_dim * (query + kv)
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    inner = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    dense = min(inner, config.intermediate_size)  # layers without experts may be among the others
    return config.vocab_size * width + config.num_hidden_layers * (attention + 3 * width * min(experts * inner, dense))


def require_plain_tokenizer(folder: Path) -> None:
    """Raise a CheckpointError unless a folder's tokenizer is a tokenizer.json, checked, and settings without code."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}, the only form of a tokenizer that is read")
    require_inside(path)
    try:
        read_tokenizer_file(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or not a tokenizer: {error}") from error
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            values = read_plain_json(folder / name, MAX_JSON_BYTES)
            if values.get("auto_map") is not None:
                raise CheckpointError(f"{folder / name}: auto_map is there, but must not: {_REFUSED['auto_map']}")


def shorten(error: BaseException) -> str:
    """What an error says, at most 500 characters of it."""
    text = str(error)
    return text if len(text) <= 500 else f"{text[:500]} …"
