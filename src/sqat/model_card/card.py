"""The card itself: metadata, then what the model is, costs and does, how it was made and how to load it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import ModelCardData

from sqat.config import ModelConfig
from sqat.model_card.costs import Cost, cost_section, model_costs, recorded_cost
from sqat.model_card.known import Known
from sqat.model_card.loading import LIBRARIES, loading_section
from sqat.model_card.origin import Origin
from sqat.model_card.results import conversion_results, eval_results, metric_names, results_section, stated_results
from sqat.model_card.text import public_name, table
from sqat.model_card.training import training_section
from sqat.model_card.upkeep import sealed
from sqat.variants import attention_name
from sqat.version import __version__, revision

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

CARD_FILE = "README.md"
PAPER = "[Sparse Query Attention](https://arxiv.org/abs/2510.01817)"
MIXIN_TAGS = ("RxNN", "pytorch_model_hub_mixin", "model_hub_mixin")  # of the original's layout


class Subject(NamedTuple):
    """What a card is of, whatever its configuration's class."""

    query_heads: int
    kv_heads: int
    head_dim: int
    full_heads: int  # of full attention: of the same width, or before conversion
    rows: Sequence[tuple[str, object]]  # of the table of shapes
    costs: Sequence[Cost]
    context_length: int  # of the costs
    mixed: bool = False  # whether layers differ in their heads; those above are then the fewest


def model_card(
    config: ModelConfig,
    form: str,
    *,
    origin: Origin | None = None,
    known: Known | None = None,
    repo_id: str | None = None,
    tokenizer: bool = True,
) -> str:
    """README.md of a model of this package, in whatever form it was written.

    Args:
        form: one of :data:`sqat.model_card.loading.FORMS`.
        origin: what is on record of the checkpoint; see :func:`read_origin`.
        known: what the user says of it.
        repo_id: where it will be, if that is known.
        tokenizer: whether there is one beside the model.
    """
    return _compose(_of_model(config), form, origin or Origin(), known or Known(), repo_id, tokenizer)


def stock_card(
    config: PreTrainedConfig,
    *,
    origin: Origin | None = None,
    known: Known | None = None,
    repo_id: str | None = None,
    tokenizer: bool = True,
) -> str:
    """README.md of a stock checkpoint, or of one whose layers differ in their heads; converted, uptrained or neither.
    Arguments as :func:`model_card`."""
    from sqat.convert.modeling_mixed_heads import PREFIX

    origin = origin or Origin()
    form = "mixed" if config.model_type.startswith(PREFIX) else "stock"
    return _compose(_of_stock(config, origin), form, origin, known or Known(), repo_id, tokenizer)


def _of_model(config: ModelConfig) -> Subject:
    experts = f"{config.num_experts} experts, {config.experts_per_token} per token, " if config.is_moe else ""
    gated = ", gated" if config.gated else ""
    query_heads, kv_heads = config.num_query_heads, config.num_kv_heads
    rows = [
        (
            "attention",
            f"{attention_name(config)}: {query_heads} query heads, {kv_heads} key/value heads "
            f"(full attention would have {config.num_heads})",
        ),
        ("layers", config.num_layers),
        ("width", f"{config.hidden_size}, head_dim {config.head_dim}"),
        ("feed-forward", f"{experts}{config.activation}{gated}, hidden width {config.intermediate_size}"),
        ("vocabulary", config.vocab_size),
        ("context length in training", config.context_length),
    ]
    return Subject(
        query_heads, kv_heads, config.head_dim, config.num_heads, rows, model_costs(config), config.context_length
    )


def _of_stock(config: PreTrainedConfig, origin: Origin) -> Subject:
    from sqat.convert.architectures import heads_by_layer
    from sqat.convert.plan import context_of, costs_of

    by_layer, record = heads_by_layer(config), origin.conversion
    heads, mixed = min(by_layer), len(set(by_layer)) > 1
    counts = f"{heads.query} query heads, {heads.kv} key/value heads"
    if mixed:
        query, kv = ([str(count) for count in column] for column in list(zip(*by_layer, strict=True))[:2])
        counts = f"by layer, {', '.join(query)} query heads and {', '.join(kv)} key/value heads"
    length = context_of(config) if record is None else record["context_length"]
    own = recorded_cost("this model", asdict(costs_of(config, length)))
    before = None if record is None else recorded_cost("the model it was made of", record["before"])
    full = heads.query if before is None else before.query_heads
    was = "" if before is None else f" ({before.query_heads} and {before.kv_heads} before conversion)"
    rows = [
        ("architecture", config.model_type),
        ("attention", f"{counts}{was}"),
        ("layers", config.num_hidden_layers),
        ("width", f"{config.hidden_size}, head_dim {heads.head_dim}"),
        ("vocabulary", config.vocab_size),
    ]
    return Subject(*heads, full, rows, [own] if before is None else [own, before], length, mixed)


def _compose(subject: Subject, form: str, origin: Origin, known: Known, repo_id: str | None, tokenizer: bool) -> str:
    kind, tags = _kind(subject)
    title = repo_id.rpartition("/")[2] if repo_id else f"{kind} transformer"
    sections = [
        f"# {title}",
        _introduction(subject, kind),
        table(("", ""), subject.rows),
        f"## Cost\n\n{cost_section(subject.costs, subject.context_length)}",
    ]
    results = [] if origin.evaluation is None else [results_section(origin.evaluation, origin.run)]
    if known.metrics:
        results.append(stated_results(known.metrics))
    if results:
        sections.append("\n\n".join(["## Results", *results]))
    if origin.conversion is not None:
        sections.append(f"## Conversion\n\n{_conversion(origin)}")
    if origin.run is not None:
        sections.append(f"## Training\n\n{training_section(origin.run, origin.state)}")
    elif known.training is not None:
        sections.append(f"## Training\n\n```sh\n{known.training.strip()}\n```")
    sections.append(f"## Loading\n\n{loading_section(form, repo_id, tokenizer=tokenizer)}")
    sections.append(_footer())
    tags = (*tags, *(MIXIN_TAGS if form == "rxnn" else ()))
    text = sealed("\n\n".join(sections))
    return f"---\n{_metadata(title, form, tags, origin, known).to_yaml()}\n---\n\n{text}\n"


def _kind(subject: Subject) -> tuple[str, tuple[str, ...]]:
    """The attention's kind in words, and the Hub's tags for it."""
    if subject.query_heads < subject.full_heads:
        return "Sparse Query Attention", ("SparseQueryAttention", "SQA")
    if subject.kv_heads == 1:
        return "Multi-Query Attention", ("MultiQueryAttention", "MQA")
    if subject.kv_heads < subject.query_heads:
        return "Grouped Query Attention", ("GroupedQueryAttention", "GQA")
    return "Multi-Head Attention", ("MultiHeadAttention", "MHA")


def _introduction(subject: Subject, kind: str) -> str:
    text = (
        f"A causal language model with {kind}: {subject.query_heads} query heads and {subject.kv_heads} key/value "
        f"heads of width {subject.head_dim} in {'some layers' if subject.mixed else 'every layer'}"
    )
    if kind != "Sparse Query Attention":
        return f"{text}."
    if subject.mixed:
        return f"{text}, where the others have up to {subject.full_heads} query heads ({PAPER})."
    share = f"{max(subject.query_heads, subject.kv_heads)}/{subject.full_heads}"
    return (
        f"{text}, where full attention has {subject.full_heads}. Attention's scores and weighted sums take {share} of "
        f"full attention's operations ({PAPER})."
    )


def _conversion(origin: Origin) -> str:
    record = origin.conversion or {}
    score = f", chosen by {record['score']}" if record.get("score") else ""
    source = public_name(str(record["source"]))
    text = (
        f"Made by `sqat convert` from `{source}`, whose {record['before']['query_heads']} query heads "
        f"became {record['after']['query_heads']} (method `{record['method']}`{score})."
    )
    if not (verification := record.get("verification")):
        return text
    trained = " Training came after these figures." if origin.state is not None else ""
    return f"{text}{trained} {conversion_results(verification)}"


def _metadata(title: str, form: str, tags: Sequence[str], origin: Origin, known: Known) -> ModelCardData:
    evaluation = origin.evaluation
    results = [] if evaluation is None else eval_results(evaluation, origin.run, known.datasets)
    names = [*(metric_names(evaluation) if evaluation else ()), *known.metric_names()]
    return ModelCardData(
        license=known.license,
        library_name=LIBRARIES.get(form, "sqat"),
        pipeline_tag="text-generation",
        datasets=list(known.datasets) or None,
        base_model=known.base_model or origin.base_model,
        metrics=list(dict.fromkeys(names)) or None,
        model_name=title if results else None,
        eval_results=results or None,
        tags=list(tags),
    )


def _footer() -> str:
    at = revision()
    return f"Written by sqat {__version__}" + (f", revision {at}." if at else ".")
