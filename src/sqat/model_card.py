"""Model cards: the README.md of a model on the Hub.

A card says what is known and nothing else: no number is invented, and what nobody recorded or named is left out. This
module gathers the facts; `model_card.md.jinja` is the text.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml
from huggingface_hub import ModelCard, ModelCardData

from sqat.config import ModelConfig
from sqat.cost import flops_per_token, kv_bytes_per_token, parameters
from sqat.errors import ConfigError
from sqat.run_config import RunConfig, read_yaml
from sqat.train.checkpoints import FOLDER
from sqat.train.run import CONFIG_FILE, WITHOUT_EFFECT
from sqat.train.state import STATE_FILE, TrainState, read_state
from sqat.untrusted import read_json
from sqat.uptrain_config import UptrainConfig
from sqat.variants import attention_name
from sqat.version import __version__, revision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CARD_FILE = "README.md"
RECORD_FILE = "conversion.json"  # `sqat convert` writes it
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
FORMS = ("sqat", "rxnn", "transformers", "stock", "mixed", "gguf", "onnx")  # mixed: heads differ by layer
LIBRARIES = {**dict.fromkeys(("transformers", "stock", "mixed"), "transformers"), "gguf": "gguf", "onnx": "onnx"}
BLANK = "[More Information Needed]"  # in the cards that transformers writes

_SEAL = re.compile(r"\n\n<!-- written by sqat, ([0-9a-f]{16}) -->\s*\Z")
_RENEWED = ("metrics", "model-index", "tags", "library_name", "pipeline_tag")  # they describe the weights


class StockModel(NamedTuple):
    """What a card tells of a stock model, or of one whose layers differ in their heads."""

    config: PreTrainedConfig
    heads: Sequence[tuple[int, int, int]]  # per layer: query heads, key/value heads, head_dim
    costs: dict[str, Any]  # the fields of sqat.convert.Costs
    context_length: int  # of the sequence that the costs are averaged over


@dataclass(frozen=True)
class Known:
    """What only the user can know of a model; what is not given is left out of its card. The Hub says which names it
    does not take.
    """

    license: str | None = None  # the Hub's identifier, such as "apache-2.0"
    datasets: tuple[str, ...] = ()  # Hub ids of the training data
    base_model: str | None = None  # Hub id of the model that this one was made of

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields that are given, under their names in a card's metadata."""
        fields = {"license": self.license, "datasets": list(self.datasets), "base_model": self.base_model}
        return {name: value for name, value in fields.items() if value}


@dataclass(frozen=True)
class Origin:
    """What the files in and around a checkpoint tell about how it was made; `None` where they tell nothing."""

    run: RunConfig | UptrainConfig | None = None  # the run that it belongs to
    state: TrainState | None = None  # of training, at this very checkpoint
    conversion: dict[str, Any] | None = None  # conversion.json

    @property
    def evaluation(self) -> dict[str, Any] | None:
        """The evaluation of these very weights."""
        return None if self.state is None else self.state.own_evaluation


def read_origin(folder: str | Path) -> Origin:
    """What is on record of a checkpoint: its training progress, its run's configuration, its conversion.

    Raises:
        CheckpointError, ConfigError: a file is damaged.
    """
    folder = Path(folder).resolve()
    path, record = folder.parent.parent / CONFIG_FILE, folder / RECORD_FILE
    run: RunConfig | UptrainConfig | None = None
    if folder.parent.name == FOLDER and path.is_file():
        values = read_yaml(path)
        model = values.get("model")
        run = (UptrainConfig if isinstance(model, dict) and "path" in model else RunConfig).from_dict(values)
    state = read_state(folder) if (folder / STATE_FILE).is_file() else None
    return Origin(run, state, read_json(record) if record.is_file() else None)


def model_card(
    model: ModelConfig | StockModel,
    form: str,
    *,
    origin: Origin | None = None,
    known: Known | None = None,
    repo_id: str | None = None,
    tokenizer: bool = True,
) -> str:
    """README.md of a model.

    Args:
        model: its configuration, or what is known of a stock model or of one whose layers differ in their heads.
        form: how its files are laid out, one of `FORMS`.
        origin: what is on record of the checkpoint; see :func:`read_origin`.
        known: what the user says of it.
        repo_id: the Hub repository that it will be in, if that is known.
        tokenizer: whether there is one beside the model.
    """
    origin, known = origin or Origin(), known or Known()
    evaluation, run, conversion = origin.evaluation or {}, origin.run, origin.conversion or {}
    facts = _facts(model) if isinstance(model, ModelConfig) else _stock_facts(model, conversion)
    kind, *tags = _kind(facts)
    settings = None if run is None else _shown(run)
    data = ModelCardData(
        library_name=LIBRARIES.get(form, "sqat"),
        pipeline_tag="text-generation",
        metrics=[name for name in ("perplexity", "accuracy") if evaluation.get(name) is not None] or None,
        tags=tags,
        **{"base_model": conversion.get("base_model"), **known.metadata},
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **facts,
        title=repo_id.rpartition("/")[2] if repo_id else f"{kind} transformer",
        kind=kind,
        form=form,
        repo_id=repo_id,
        tokenizer=tokenizer,
        evaluation=evaluation,
        conversion=conversion,
        data=settings and settings["data"],
        settings=settings and yaml.safe_dump(settings, sort_keys=False).rstrip(),
        state=origin.state,
        uptrained=isinstance(run, UptrainConfig),
        version=__version__,
        revision=revision(),
    )
    text = re.sub(r"[ \t]*\n(?:[ \t]*\n)+", "\n\n", card.text).strip()
    card.text = f"\n{text}\n\n<!-- written by sqat, {_digest(text)} -->\n"
    return str(card)


def _facts(config: ModelConfig) -> dict[str, Any]:
    """What the template shows of a model of this package, beside full attention in a model of the same shape."""
    costs = {"this model": _costs_of(config)}
    if (config.num_query_heads, config.num_kv_heads) != (config.num_heads, config.num_heads):
        full = config.replace(num_query_heads=config.num_heads, num_kv_heads=config.num_heads)
        costs["multi-head attention (MHA)"] = _costs_of(full)
    return {
        "config": config,
        "query_heads": config.num_query_heads,
        "kv_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "full_heads": config.num_heads,
        "attention": attention_name(config),
        "costs": costs,
        "context_length": config.context_length,
    }


def _stock_facts(model: StockModel, conversion: dict[str, Any]) -> dict[str, Any]:
    """What the template shows of a stock model, or of one whose layers differ in their heads."""
    costs, (query, kv, head_dim) = {"this model": model.costs}, min(model.heads)
    if before := conversion.get("before"):
        costs["the model it was made of"] = before
    full = before["query_heads"] if before else query
    numbers = {"query_heads": query, "kv_heads": kv, "head_dim": head_dim, "full_heads": full}
    mixed = len(set(model.heads)) > 1
    return {**model._asdict(), **numbers, "mixed": mixed, "costs": costs, "architecture": model.config.model_type}


def _kind(facts: dict[str, Any]) -> tuple[str, str, str]:
    """The kind of attention in words, and the Hub's two tags for it."""
    if facts["query_heads"] < facts["full_heads"]:
        return "Sparse Query Attention", "SparseQueryAttention", "SQA"
    if facts["kv_heads"] == 1:
        return "Multi-Query Attention", "MultiQueryAttention", "MQA"
    if facts["kv_heads"] < facts["query_heads"]:
        return "Grouped Query Attention", "GroupedQueryAttention", "GQA"
    return "Multi-Head Attention", "MultiHeadAttention", "MHA"


def _costs_of(config: ModelConfig) -> dict[str, int]:
    """As `sqat.convert.Costs` has them: per token, forward, averaged over a causal sequence; 16-bit caches."""
    count, flops = parameters(config), flops_per_token(config)
    return {
        "query_heads": config.num_query_heads,
        "kv_heads": config.num_kv_heads,
        "parameters": count.total,
        "active_parameters": count.active,
        "flops_per_token": flops.total,
        "attention_flops_per_token": flops.attention,
        "kv_bytes_per_token": kv_bytes_per_token(config),
    }


def public_name(name: str) -> str:
    """What a card shows of a path: nothing of the folders of the machine it was written on."""
    return f"PATH/{Path(name).name}" if name.startswith("~") or Path(name).is_absolute() else name


def _shown(run: RunConfig | UptrainConfig) -> dict[str, dict[str, Any]]:
    """The configuration of a run, without what does not change the result, such as where logs go."""
    return {
        section: {
            name: public_name(value) if isinstance(value, str) else value
            for name, value in fields.items()
            if name not in WITHOUT_EFFECT
        }
        for section, fields in run.to_dict().items()
    }


def with_metadata(card: str, values: dict[str, Any]) -> str:
    """An existing card with some metadata set; its text stays.

    Raises:
        ConfigError: the card's metadata are not valid YAML.
    """
    result = read_card(card)
    result.data.__dict__.update(values)
    return str(result) if values else card


def kept_or_new(cards: Sequence[str], known: Known, new: Callable[[], str]) -> str:
    """The card that follows `cards`: the first of them that somebody wrote or changed, with the metadata of `known`; or
    else a new one, with the metadata that only these have, such as a license set by hand.
    """
    for card in cards:
        if is_edited(card):
            return with_metadata(card, known.metadata)
    result = new()
    for card in cards:
        own, old = read_card(result).data.to_dict(), read_card(card).data.to_dict()
        result = with_metadata(result, {n: v for n, v in old.items() if n not in own and n not in _RENEWED})
    return result


def is_edited(card: str) -> bool:
    """Whether somebody wrote or changed the text of a card; otherwise a program did, which may renew it.

    The metadata do not count: the Hub's pages edit them.
    """
    text = read_card(card).text
    if match := _SEAL.search(text):
        return _digest(text[: match.start()]) != match[1]
    return BLANK not in text and bool(text.strip())  # the Hub makes cards of metadata alone


def read_card(card: str) -> ModelCard:
    """A card's metadata and text. Raises a ConfigError if its metadata are not valid YAML."""
    try:
        return ModelCard(card)
    except Exception as error:  # whatever its YAML library raises
        raise ConfigError(f"README.md has metadata that cannot be read: {error}") from error


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
