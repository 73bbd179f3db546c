"""Stock checkpoints: found in a folder or on the Hub, held to plain data, read, and written whole or not at all.

`transformers` does what a checkpoint's files say: it fetches attention kernels (code) that `config.json` names, runs
modelling code by `auto_map`, loads an adapter's base model from wherever it is, builds quantisers, and makes lists as
long as a number in the file. The models converted here need none of that, so it is refused by name before
`transformers` reads anything.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from sqat.checkpoint.model_files import CONFIG_FILE, WEIGHTS_FILE, read_tensors, require_inside, weight_files
from sqat.checksums import check_files
from sqat.convert.architectures import require_known, skeleton
from sqat.convert.heads import LayerHeads
from sqat.convert.modeling_mixed_heads import PREFIX
from sqat.convert.plan import ConversionPlan, described
from sqat.convert.verify import Verification
from sqat.data.tokenizer import TOKENIZER_FILE
from sqat.errors import CheckpointError, ConfigError
from sqat.hub import download
from sqat.model_card import CARD_FILE, RECORD_FILE, model_card, public_name, read_origin
from sqat.train.checkpoints import best_checkpoint
from sqat.untrusted import read_json, shown

# The tokenizer's files under all their names, and what belongs to them.
TOKENIZER_FILES = ("*token*.json", "vocab.*", "merges.txt", "*.model", "chat_template*", "tekken.json")
MAX_NUMBER = 1 << 24  # of any size in a configuration
MAX_LAYERS = 1 << 10

_NO_CODE = "code that comes with a checkpoint is not run"
_REFUSED = {
    "auto_map": _NO_CODE,
    "quantization_config": "weights must be plain floating-point numbers",
    **{
        f"{before}{kind}_implementation{after}": "it may name code on the Hub"
        for kind in ("attn", "experts")
        for before, after in (("", ""), ("_", ""), ("_", "_internal"))
    },
}


def locate(model: str | Path) -> Path:
    """The folder of a checkpoint: `model` itself, the best one of the run `model`, or what the Hub has under that id,
    fetched into the client's cache.

    Raises:
        CheckpointError: neither is there.
    """
    try:
        folder = Path(model).expanduser()
        there = folder.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{shown(str(model))} names no folder: {error}") from error
    if (folder / CONFIG_FILE).is_file():
        return folder
    if there and (best := best_checkpoint(folder)) is not None:  # an uptraining run's
        return best
    if there:
        raise CheckpointError(f"{folder} is not a checkpoint: it has no {CONFIG_FILE}")
    return download(str(model), [*TOKENIZER_FILES, "*.json", "*.safetensors"])


def read_config(folder: Path) -> PreTrainedConfig:
    """Read the configuration of a checkpoint of a known architecture, stock or with head counts for each layer.

    Raises:
        CheckpointError: it is missing or damaged.
        ConfigError: another architecture, or something that a stock model does not need.
    """
    path = folder / CONFIG_FILE
    check_files(folder, [CONFIG_FILE])
    try:
        _require_plain_config(_read_plain_json(path))
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _require_sizes(config)
        return config
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except CheckpointError:
        raise
    except Exception as error:  # its classes raise whatever a value of the wrong type leads to
        raise CheckpointError(f"{path} cannot be read: {str(error)[:500]}") from error


def read_model(folder: Path, *, dtype: Any = "auto") -> PreTrainedModel:
    """Read the causal language model in a checkpoint, in evaluation mode.

    Args:
        folder: the checkpoint.
        dtype: of the weights in memory; "auto" is the checkpoint's own, `None` is float32.

    Raises:
        CheckpointError: weights are missing or damaged.
        ConfigError: an architecture that is not known here.
    """
    config = read_config(folder)
    check_files(folder, [path.name for path in folder.glob("model*.safetensors*")])
    require_weights(folder, config)
    with quiet():
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                use_safetensors=True,  # and nothing that would have to be unpickled
                local_files_only=True,
            )
        except Exception as error:
            raise CheckpointError(f"{folder} cannot be read: {str(error)[:500]}") from error
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder} lacks {len(missing)} tensors, such as {missing[0]}")
    return model.eval()


def write_conversion(
    model: PreTrainedModel,
    plan: ConversionPlan,
    heads: Sequence[LayerHeads],
    source: Path,
    name: str,
    out: Path,
    *,
    verification: Verification | None = None,
    text: str | None = None,
) -> None:
    """Write a model, converted by `plan` and `heads`, into an existing folder, with the tokenizer of the folder
    `source` that it was made of (`name`: as the user called it), a record of what was done (conversion.json) and a
    model card. `verification` and `text`: how close the result is, on what text, if that was measured.
    """
    with quiet():
        model.save_pretrained(out)  # with its modelling code, where that is ours
    tokenizer = [path for pattern in TOKENIZER_FILES for path in source.glob(pattern)]
    for path in tokenizer:
        require_inside(path)  # a link could bring any file of the user's into what may be published
        shutil.copyfile(path, out / path.name)
    record = {
        "source": public_name(name),
        "base_model": name if source != Path(name).expanduser() else None,  # the Hub's, or only a folder here
        "method": plan.method,
        "score": plan.score if plan.method in ("select", "cluster") else None,
        "layers": plan.layers,
        "before": asdict(plan.before),
        "after": asdict(plan.after),
        "context_length": plan.context_length,
        "verification": verification and {"text": public_name(str(text)), **verification.scalars()},
        "merged_heads": [layer.groups for layer in heads],  # per layer, for each query head
    }
    (out / RECORD_FILE).write_text(json.dumps(record), encoding="utf-8")
    form = "stock" if plan.to == "stock" else "mixed"
    facts = described(plan.new_config, plan.context_length)
    card = model_card(facts, form, origin=read_origin(out), tokenizer=bool(tokenizer))
    (out / CARD_FILE).write_text(card, encoding="utf-8")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the progress bars of transformers."""
    visible = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if visible:
            logging.enable_progress_bar()


def require_weights(folder: Path, config: PreTrainedConfig) -> None:
    """Raise a CheckpointError unless a folder's weights are safetensors of its own, and as many numbers as the
    configuration asks for: what is missing would be allocated.
    """
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds adapter_config.json, but must not: an adapter's base model may be anywhere"
        )
    if (folder / "generation_config.json").exists():
        _read_plain_json(folder / "generation_config.json")
    found = sum(tensor.numel() for tensor in read_tensors(weight_files(folder, WEIGHTS_FILE)).values())
    wanted = sum(parameter.numel() for parameter in skeleton(config).parameters())
    if wanted > found:
        raise CheckpointError(
            f"{folder / 'config.json'} asks for a model of {wanted:,} numbers "
            f"(vocab_size {config.vocab_size:,}, hidden_size {config.hidden_size:,}, "
            f"num_hidden_layers {config.num_hidden_layers:,}), but the weights beside it are {found:,}"
        )


def require_plain_tokenizer(folder: Path) -> None:
    """Raise a CheckpointError unless a folder's tokenizer is a tokenizer.json, checked, and settings without code."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no {TOKENIZER_FILE}, the only form of a tokenizer that is read")
    for name in (TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).exists():
            values = _read_plain_json(folder / name)
            if values.get("auto_map") is not None:
                raise CheckpointError(f"{folder / name}: auto_map is there, but must not: {_NO_CODE}")


def _read_plain_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file. Raises a CheckpointError if there is none, or the file is a link out of its
    folder.
    """
    if path.is_symlink():
        require_inside(path)
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} cannot be read: it holds {shown(values)}, but must hold fields by name")
    return values


def _require_plain_config(values: dict[str, Any]) -> None:
    """Raise a ConfigError unless a stock model's configuration is of a known architecture, plain, and of sane size."""
    model_type = str(values.get("model_type"))[:100]
    require_known(model_type, mixed=True)
    for name, reason in _REFUSED.items():
        if name == "auto_map" and model_type.startswith(PREFIX):
            continue  # of our own classes, which are registered: those run, and not what it names
        if values.get(name) is not None:
            raise ConfigError(f"{name} is {shown(values[name])}, but must not be there: {reason}")
    for name in ("dtype", "torch_dtype"):
        if values.get(name) not in ("float32", "float16", "bfloat16", "float64", None):
            raise ConfigError(
                f"{name} is {shown(values[name])}, but must be one of float32, float16, bfloat16, float64"
            )
    layers = values.get("num_hidden_layers")
    if layers is not None and not (type(layers) is int and 1 <= layers <= MAX_LAYERS):
        raise ConfigError(f"num_hidden_layers is {shown(layers)}, but must be a whole number from 1 to {MAX_LAYERS:,}")


def _require_sizes(config: PreTrainedConfig) -> None:
    """Raise a ConfigError unless the sizes of a stock model are whole numbers of at least 1."""
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    optional = (
        "intermediate_size",
        "num_key_value_heads",
        "head_dim",
        "num_local_experts",
        "num_experts",
        "moe_intermediate_size",
    )
    for name in (*names, *(name for name in optional if getattr(config, name, None) is not None)):
        size = getattr(config, name, None)
        if type(size) is not int or not 1 <= size <= MAX_NUMBER:
            raise ConfigError(f"{name} is {shown(size)}, but must be a whole number from 1 to {MAX_NUMBER:,}")
