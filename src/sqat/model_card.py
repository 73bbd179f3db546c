"""Model cards: the README.md of a model on the Hub.

A card says what is known and nothing else: no number is invented, and what nobody recorded or named is left out. This
module gathers the facts; `model_card.md.jinja` is the text.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sqat.config import ModelConfig
from sqat.cost import flops_per_token, kv_bytes_per_token, parameters
from sqat.errors import CheckpointError, ConfigError
from sqat.hub import require_repo_id
from sqat.run_config import RunConfig, read_yaml
from sqat.train.checkpoints import FOLDER
from sqat.train.run import CONFIG_FILE, FREE_ON_RESUME
from sqat.train.state import STATE_FILE, TrainState, read_state
from sqat.untrusted import read_json
from sqat.uptrain_config import UptrainConfig
from sqat.variants import VARIANTS, attention_name, head_counts
from sqat.version import __version__, revision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CARD_FILE = "README.md"
RECORD_FILE = "conversion.json"  # `sqat convert` writes it
TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
FORMS = ("sqat", "rxnn", "transformers", "stock", "mixed", "gguf", "onnx")  # mixed: heads differ by layer
LIBRARIES = {**dict.fromkeys(("transformers", "stock", "mixed"), "transformers"), "gguf": "gguf", "onnx": "onnx"}
RXNN_TAGS = ("RxNN", "pytorch_model_hub_mixin", "model_hub_mixin")
BLANK = "[More Information Needed]"  # in the cards that transformers writes

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_SEAL = re.compile(r"\n\n<!-- written by sqat, ([0-9a-f]{16}) -->\s*\Z")
_RENEWED = ("metrics", "model-index", "tags", "library_name", "pipeline_tag")  # they describe the weights
_RECORD = {"source", "method", "before", "after", "context_length"}  # what a card needs of conversion.json
_COSTS = (
    *("query_heads", "kv_heads", "parameters", "active_parameters"),
    *("flops_per_token", "attention_flops_per_token", "kv_bytes_per_token"),
)

# Field of an evaluation -> name, format, meaning
_RESULTS = {
    "loss": ("loss", "{:.4f}", "mean cross-entropy in nats per real target; padding does not count"),
    "perplexity": ("perplexity", "{:.2f}", "e to the loss"),
    "accuracy": ("accuracy", "{:.2%}", "share of real targets that the model finds most likely"),
    "bits_per_byte": ("bits per byte", "{:.3f}", "the loss in bits, per byte of text: comparable between tokenizers"),
}
_PADDED = "as RxNN counts: documents cut or padded to the context, padding included as a target"
_PADDED_RESULTS = {
    "padded_loss": ("loss, counting padding", "{:.4f}", f"{_PADDED}; not comparable with the loss above"),
    "padded_accuracy": ("accuracy, counting padding", "{:.2%}", f"{_PADDED}; not comparable with the accuracy above"),
}
_VERIFICATION = {
    "perplexity_before": ("perplexity before", "{:.2f}", "of the model it was made of"),
    "perplexity_after": ("perplexity after", "{:.2f}", "right after conversion, without training"),
    "kl": ("KL", "{:.4f}", "KL(before ‖ after) of the next token's distribution, nats, mean over positions"),
    "agreement": ("agreement", "{:.2%}", "share of positions where both find the same token most likely"),
}

_PATHS = ("data.source", "data.validation", "data.tokenizer", "model.path", "model.teacher")


class Metric(NamedTuple):
    """A result and its definition: what was measured, how, and on what."""

    name: str  # the Hub's, such as "perplexity"
    value: float
    meaning: str


class StockModel(NamedTuple):
    """What a card tells of a stock model, or of one whose layers differ in their heads."""

    config: PreTrainedConfig
    heads: Sequence[tuple[int, int, int]]  # per layer: query heads, key/value heads, head_dim
    costs: dict[str, Any]  # the fields of sqat.convert.Costs
    context_length: int  # of the sequence that the costs are averaged over


@dataclass(frozen=True)
class Known:
    """What only the user can know of a model; what is not given is left out of its card.

    Raises:
        ConfigError: a name that the Hub would not take, or a metric without a definition.
    """

    license: str | None = None  # the Hub's identifier, such as "apache-2.0"
    datasets: tuple[str, ...] = ()  # Hub ids of the training data
    base_model: str | None = None  # Hub id of the model that this one was made of
    metrics: tuple[Metric, ...] = ()  # results that are not on record here
    training: str | None = None  # the command that trained it, if none is on record here

    def __post_init__(self) -> None:
        if self.license is not None and not _LICENSE.fullmatch(self.license):
            raise ConfigError(
                f"license is {self.license!r}, but must be one of the Hub's identifiers, such as apache-2.0 or mit; "
                '"other" stands for what has none'
            )
        if self.base_model is not None:
            require_repo_id(self.base_model, "base_model")
        if isinstance(self.datasets, str):
            raise ConfigError(
                f"datasets is {self.datasets!r}, but must be a tuple of names, such as ({self.datasets!r},)"
            )
        for dataset in self.datasets:
            require_repo_id(dataset, "dataset")
        for metric in self.metrics:
            if not isinstance(metric, tuple) or len(metric) != 3:
                raise ConfigError(f"metrics holds {metric!r}, but must hold Metric(name, value, meaning)")
            for field, text in (("name", metric[0]), ("meaning", metric[2])):
                if not isinstance(text, str) or not text.strip() or "\n" in text:
                    raise ConfigError(f"a metric's {field} is {text!r}, but must be text of one line")
            if not isinstance(metric[1], int | float):
                raise ConfigError(f"the metric {metric[0]!r} is {metric[1]!r}, but must be a number")
        if self.training is not None and (not self.training.strip() or "```" in self.training):
            raise ConfigError(f"training is {self.training!r}, but must be a command, without ```")

    @property
    def metadata(self) -> dict[str, Any]:
        """The fields that are given, under their names in a card's metadata."""
        names = list(dict.fromkeys(name for name, *_ in self.metrics))
        fields = {"license": self.license, "datasets": list(self.datasets), "base_model": self.base_model}
        return {name: value for name, value in {**fields, "metrics": names}.items() if value}


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
    return Origin(run, state, _read_record(record) if record.is_file() else None)


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = dict(read_json(path))
        missing = _RECORD - set(record) or set(_COSTS) - (set(record["before"]) & set(record["after"]))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if missing:
        lacks = ", ".join(sorted(missing))
        raise CheckpointError(f"{path} is damaged, or of another version of sqat: it lacks {lacks}")
    return record


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
    facts = _facts(model) if isinstance(model, ModelConfig) else _stock_facts(*model, origin.conversion)
    kind, *tags = _kind(facts)
    title = repo_id.rpartition("/")[2] if repo_id else f"{kind} transformer"
    evaluation, run, conversion = origin.evaluation or {}, origin.run, origin.conversion or {}
    results = _eval_results(evaluation, run, known.datasets)
    verification = conversion.get("verification") or {}
    names = [name for name in ("perplexity", "accuracy") if evaluation.get(name) is not None]
    given = known.metadata
    data = ModelCardData(
        license=known.license,
        library_name=LIBRARIES.get(form, "sqat"),
        pipeline_tag="text-generation",
        datasets=given.get("datasets"),
        base_model=known.base_model or conversion.get("base_model"),
        metrics=list(dict.fromkeys([*names, *given.get("metrics", ())])) or None,
        model_name=title if results else None,
        eval_results=results or None,
        tags=[*tags, *(RXNN_TAGS if form == "rxnn" else ())],
    )
    card = ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        **facts,
        title=title,
        kind=kind,
        form=form,
        repo_id=repo_id,
        tokenizer=tokenizer,
        evaluation=evaluation,
        evaluation_rows=_rows(evaluation, {**_RESULTS, **_PADDED_RESULTS}),
        evaluated_on=run and _evaluated_on(run),
        # Beside the metadata's `metrics`, which are names alone.
        metrics=[(name, f"{value:.6g}", meaning) for name, value, meaning in known.metrics],
        conversion=conversion,
        conversion_source=public_name(str(conversion.get("source"))),
        verification_rows=_rows(verification, _VERIFICATION),
        verification_text=public_name(str(verification.get("text"))),
        trained=origin.state is not None,
        command=known.training and known.training.strip(),
        uptrained=isinstance(run, UptrainConfig),
        settings=run and settings(run).rstrip(),
        state=origin.state,
        version=__version__,
        revision=revision(),
    )
    text = _tidy(card.text)
    card.text = f"\n{text}\n\n<!-- written by sqat, {_digest(text)} -->\n"
    return str(card)


def _facts(config: ModelConfig) -> dict[str, Any]:
    """What the template shows of a model of this package."""
    query, kv = config.num_query_heads, config.num_kv_heads
    costs = [_cost_row("this model", _costs_of(config))]
    for variant in ("mha", "gqa"):  # for comparison, in a model of otherwise the same shape
        with contextlib.suppress(ConfigError):  # this number of heads may have no such variant
            counts = head_counts(variant, config.num_heads)
            if counts != (query, kv):
                other = config.replace(num_query_heads=counts[0], num_kv_heads=counts[1])
                costs.append(_cost_row(f"{VARIANTS[variant].meaning} ({variant.upper()})", _costs_of(other)))
    every = f"{query} query heads, {kv} key/value heads (full attention would have {config.num_heads})"
    experts = f"{config.num_experts} experts, {config.experts_per_token} per token, " if config.is_moe else ""
    inner = f"{config.activation}{', gated' if config.gated else ''}, hidden width {config.intermediate_size}"
    shape = {
        "attention": f"{attention_name(config)}: {every}",
        "layers": config.num_layers,
        "width": f"{config.hidden_size}, head_dim {config.head_dim}",
        "feed-forward": experts + inner,
        "vocabulary": config.vocab_size,
        "context length in training": config.context_length,
    }
    heads = {"query_heads": query, "kv_heads": kv, "head_dim": config.head_dim, "full_heads": config.num_heads}
    return {**heads, "shape": shape.items(), "costs": costs, "context_length": config.context_length}


def _stock_facts(
    config: PreTrainedConfig,
    heads: Sequence[tuple[int, int, int]],
    costs: dict[str, Any],
    length: int,
    conversion: dict[str, Any] | None,
) -> dict[str, Any]:
    """What the template shows of a stock model, or of one whose layers differ in their heads."""
    before = conversion and conversion["before"]
    query, kv, head_dim = min(heads)
    rows = [_cost_row("this model", costs)]
    counts = f"{query} query heads, {kv} key/value heads"
    if mixed := len(set(heads)) > 1:
        every = [", ".join(map(str, column)) for column in zip(*heads, strict=True)]
        counts = f"by layer, {every[0]} query heads and {every[1]} key/value heads"
    if before:
        counts += f" ({before['query_heads']} and {before['kv_heads']} before conversion)"
        rows.append(_cost_row("the model it was made of", before))
    shape = {
        "architecture": config.model_type,
        "attention": counts,
        "layers": config.num_hidden_layers,
        "width": f"{config.hidden_size}, head_dim {head_dim}",
        "vocabulary": config.vocab_size,
    }
    full = before["query_heads"] if before else query
    numbers = {"query_heads": query, "kv_heads": kv, "head_dim": head_dim, "full_heads": full, "mixed": mixed}
    return {**numbers, "shape": shape.items(), "costs": rows, "context_length": length}


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
    values = (count.total, count.active, flops.total, flops.attention, kv_bytes_per_token(config))
    return dict(zip(_COSTS, (config.num_query_heads, config.num_kv_heads, *values), strict=True))


def _cost_row(name: str, costs: dict[str, Any]) -> tuple[object, ...]:
    query, kv, total, active, flops, attention, cache = (costs[field] for field in _COSTS)
    flops, attention = f"{flops / 1e6:,.2f} M", f"{attention / 1e6:,.2f} M"
    return name, query, kv, f"{total:,}", f"{active:,}", flops, attention, f"{cache:,}"


def _rows(values: dict[str, Any], meanings: dict[str, tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [
        (name, form.format(values[field]), meaning)
        for field, (name, form, meaning) in meanings.items()
        if values.get(field) is not None
    ]


def _evaluated_on(run: RunConfig | UptrainConfig) -> str:
    """The validation set of a run, in words."""
    data = run.data
    if data.validation is not None:
        return f"`{public_name(data.validation)}`"
    if _is_stories(data.source):
        return f"the validation split of `{data.source}`, the stories that sqat generates"
    return f"the validation split of `{public_name(data.source)}`, or, without one, every hundredth document, held out"


def _eval_results(
    evaluation: dict[str, Any], run: RunConfig | UptrainConfig | None, datasets: tuple[str, ...]
) -> list[EvalResult]:
    """The results as the Hub's metadata, if it is certain which data set they are of: one that the user named, and that
    the run was validated on too. Those that count padding stay out, since nothing there would tell them apart.
    """
    if run is None or run.data.validation is not None or len(datasets) != 1 or _is_stories(run.data.source):
        return []
    return [
        EvalResult(
            task_type="text-generation",
            task_name="Text generation",
            dataset_type=datasets[0],
            dataset_name=datasets[0],
            metric_type=field,
            metric_name=f"Validation {name} ({meaning})",
            metric_value=round(value, 4) if math.isfinite(value := evaluation[field]) else str(value),
        )
        for field, (name, _, meaning) in _RESULTS.items()
        if evaluation.get(field) is not None
    ]


def _is_stories(source: str) -> bool:
    return source == "stories" or source.startswith("stories:")


def public_name(name: str) -> str:
    """What a card shows of a path: nothing of the folders of the machine it was written on."""
    return f"PATH/{Path(name).name}" if name.startswith(("/", "~")) or Path(name).is_absolute() else name


def settings(run: RunConfig | UptrainConfig) -> str:
    """The configuration of a run as YAML, without what does not change the result, such as where logs go."""
    shown = {
        section: {
            name: public_name(value) if f"{section}.{name}" in _PATHS and isinstance(value, str) else value
            for name, value in fields.items()
            if name not in FREE_ON_RESUME
        }
        for section, fields in run.to_dict().items()
    }
    return yaml.safe_dump(shown, sort_keys=False)


def with_known(card: str, known: Known) -> str:
    """An existing card with the metadata that `known` gives. Its text stays: results and commands are not added.

    Raises:
        ConfigError: the card's metadata are not valid YAML.
    """
    return _with_metadata(card, known.metadata)


def kept_or_new(cards: Sequence[str], known: Known, new: Callable[[], str]) -> str:
    """The card that follows `cards`: the first of them that somebody wrote or changed, with the metadata of `known`; or
    else a new one, with the metadata that only these have, such as a license set by hand.
    """
    for card in cards:
        if is_edited(card):
            return with_known(card, known)
    result = new()
    for card in cards:
        own, old = read_card(result).data.to_dict(), read_card(card).data.to_dict()
        result = _with_metadata(result, {n: v for n, v in old.items() if n not in own and n not in _RENEWED})
    return result


def _with_metadata(card: str, values: dict[str, Any]) -> str:
    result = read_card(card)
    for name, value in values.items():
        result.data[name] = value
    return str(result) if values else card


def is_edited(card: str) -> bool:
    """Whether somebody wrote or changed the text of a card; otherwise a program did, which may renew it.

    The metadata do not count: the Hub's pages edit them.
    """
    text = read_card(card).text
    if match := _SEAL.search(text):
        return _digest(text[: match.start()]) != match[1]
    return BLANK not in text and bool(text.strip())  # the Hub makes cards of metadata alone


def for_form(card: str, form: str, repo_id: str | None, *, tokenizer: bool) -> str:
    """A card with the loading code for `form`, if it has the code that is written for another one; all else stays."""
    template = jinja2.Template(TEMPLATE.read_text(encoding="utf-8"))

    def loading(form: str, repo_id: str | None, tokenizer: bool) -> str:
        context = template.new_context({"form": form, "repo_id": repo_id, "tokenizer": tokenizer})
        return _tidy("".join(template.blocks["loading"](context)))

    for other, place, there in product(FORMS, {repo_id, None}, (True, False)):
        wrong = loading(other, place, there)
        if other != form and wrong in card:
            changed = card.replace(wrong, loading(form, repo_id, tokenizer))
            return _with_metadata(changed, {"library_name": LIBRARIES.get(form, "sqat")})
    return card


def read_card(card: str) -> ModelCard:
    """A card's metadata and text. Raises a ConfigError if its metadata are not valid YAML."""
    try:
        return ModelCard(card)
    except Exception as error:  # whatever its YAML library raises
        raise ConfigError(f"README.md has metadata that cannot be read: {error}") from error


def _tidy(text: str) -> str:
    return re.sub(r"[ \t]*\n(?:[ \t]*\n)+", "\n\n", text).strip()


def _digest(text: str) -> str:
    return hashlib.sha256(" ".join(text.split()).encode()).hexdigest()[:16]
