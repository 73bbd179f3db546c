"""A checkpoint's figures, each with what it means. Right ones count real targets; the card's, which count padding too,
are named as such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub import EvalResult

from sqat.convert.uptrain_config import UptrainConfig
from sqat.model_card.known import Metric
from sqat.model_card.text import public_name, table
from sqat.run_config import RunConfig

STORIES = "stories"  # the built-in generator, in `data.source`

# Field of an evaluation -> name, format, meaning
_RIGHT = {
    "loss": ("loss", "{:.4f}", "mean cross-entropy in nats per real target; padding is none"),
    "perplexity": ("perplexity", "{:.2f}", "e to the loss"),
    "accuracy": ("accuracy", "{:.2%}", "share of real targets that the model finds likeliest"),
    "bits_per_byte": ("bits per byte", "{:.3f}", "the loss in bits, per byte of text: comparable between tokenizers"),
}
_PADDED = "as the SQAT cards count: documents cut or padded to the context, and padding is a target too"
_CARD = {
    "card_loss": ("loss, padding counted", "{:.4f}", f"{_PADDED}; not comparable with the loss above"),
    "card_accuracy": ("accuracy, padding counted", "{:.2%}", f"{_PADDED}; not comparable with the accuracy above"),
}
_CONVERSION = {
    "perplexity_before": ("perplexity before", "{:.2f}", "of the model it was made of"),
    "perplexity_after": ("perplexity after", "{:.2f}", "right after conversion, without training"),
    "kl": ("KL", "{:.4f}", "KL(before ‖ after) of the next token's distribution, nats, mean over positions"),
    "agreement": ("agreement", "{:.2%}", "share of positions where both find the same token likeliest"),
}


def results_section(evaluation: dict[str, Any], run: RunConfig | UptrainConfig | None) -> str:
    """The figures of an evaluation that exist, and what they were measured on, as far as that is known."""
    rows = _rows(evaluation, {**_RIGHT, **_CARD})
    on = "" if run is None else f" of {evaluated_on(run)}"
    return (
        f"Measured after step {evaluation['step']:,} of training, on {evaluation['targets']:,} targets{on}.\n\n"
        f"{table(('figure', 'value', 'meaning'), rows)}"
    )


def stated_results(metrics: Sequence[Metric]) -> str:
    """Figures that the user gave."""
    rows = [(name, f"{value:.6g}", meaning) for name, value, meaning in metrics]
    return f"Measured by the author:\n\n{table(('figure', 'value', 'meaning'), rows)}"


def conversion_results(verification: dict[str, Any]) -> str:
    """The figures of `sqat convert --verify`."""
    text = public_name(str(verification["text"]))
    rows = _rows(verification, _CONVERSION)
    return f"On {verification['tokens']:,} tokens of `{text}`:\n\n{table(('figure', 'value', 'meaning'), rows)}"


def _rows(figures: dict[str, Any], meanings: dict[str, tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    return [
        (name, form.format(figures[field]), meaning)
        for field, (name, form, meaning) in meanings.items()
        if figures.get(field) is not None
    ]


def evaluated_on(run: RunConfig | UptrainConfig) -> str:
    """The validation set of a run, in words."""
    data = run.data
    if data.validation is not None:
        return f"`{public_name(data.validation)}`"
    if _is_stories(data.source):
        return f"`{data.source}`, the stories that sqat generates: its validation split"
    return (
        f"`{public_name(data.source)}`: its validation split, or every hundredth document, held out, where it has none"
    )


def metric_names(evaluation: dict[str, Any]) -> list[str]:
    """The right figures that have a name on the Hub."""
    return [name for name in ("perplexity", "accuracy") if evaluation.get(name) is not None]


def eval_results(
    evaluation: dict[str, Any], run: RunConfig | UptrainConfig | None, datasets: tuple[str, ...]
) -> list[EvalResult]:
    """The right figures as the Hub's metadata, where their data set is known: a single one that was named, which the
    run was validated on, too. The padded ones stay out, since nothing there would tell them apart.
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
            metric_value=_rounded(evaluation[field]),
        )
        for field, (name, _, meaning) in _RIGHT.items()
        if evaluation.get(field) is not None
    ]


def _rounded(value: float) -> float | str:
    return round(value, 4) if math.isfinite(value) else str(value)


def _is_stories(source: str) -> bool:
    return source == STORIES or source.startswith(f"{STORIES}:")
