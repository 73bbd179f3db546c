"""`--method fit`: query heads chosen, and output projections fitted anew, by least squares on calibration text.

Layer by layer, both models read the text: the one before, and the one with the heads that were chosen so far. A layer's
target is what brings its converted residual stream to the original one,

    target = attention output of the original + (original stream - converted stream),

so that a layer also repairs what earlier ones did. Some architectures change that output before they add it (a norm, a
factor), which the correction does not see: the first layer that has one tries both. Kept are the heads whose weighted
values explain the target best, and their output projection is the ridge regression of the target on these values. No
weights are trained.

Shape letters: N tokens, D hidden size, H query heads, C head_dim, X = H·C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sqat.convert.architectures import Heads, attention_layers, decoder_layers, heads_of, output_projection
from sqat.convert.heads import LayerHeads
from sqat.convert.merge import shared_keys_and_values
from sqat.convert.plan import ConversionPlan
from sqat.model.decoder import evaluating
from sqat.train.step import autocast

BATCH_TOKENS = 4096  # of calibration text at a time
RIDGE = 1e-2  # of the mean square of weighted values: how strongly the projection is drawn to the original one
MASSIVE = 10.0  # times the median norm: tokens above it are left out, since they alone would decide the fit
STRAYED = 5.0  # times the median distance of both streams: likewise

Progress = Callable[[int, int], None]


class _Reached(Exception):
    """A module that a forward pass need not go beyond."""


class Walk:
    """A model's decoder layers, run one at a time on all of the text, each called as the model calls it."""

    def __init__(self, model: PreTrainedModel, rows: Tensor) -> None:
        self.model, self.layers = model, decoder_layers(model)
        self.batches = rows.to(model.device).split(max(1, BATCH_TOKENS // rows.shape[1]))
        # What each layer is called with beside the stream (positions, masks): the same for all batches of one size.
        sizes = {len(batch): batch for batch in (self.batches[0], self.batches[-1])}
        self._calls = {size: self._inputs(batch, last=len(self.layers) - 1) for size, batch in sizes.items()}

    def embedded(self) -> list[Tensor]:
        """The residual stream before the first layer, for each batch."""
        return [self._inputs(batch, last=0)[0][0] for batch in self.batches]

    def run(self, layer: int, stream: Tensor) -> Tensor:
        """The residual stream after a layer, for one batch of it."""
        _, others, options = self._calls[len(stream)][layer]
        with autocast("auto", stream.device.type):
            output = self.layers[layer](stream, *others, **options)
        return output if isinstance(output, Tensor) else output[0]

    def _inputs(self, batch: Tensor, last: int) -> list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]]:
        """What the layers up to `last` are called with: the stream, other arguments, and those by name."""
        calls: list[tuple[Tensor, tuple[Any, ...], dict[str, Any]]] = []

        def keep(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            calls.append((inputs[0], inputs[1:], options))
            if module is self.layers[last]:
                raise _Reached

        with ExitStack() as hooks, suppress(_Reached), autocast("auto", batch.device.type):
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_pre_hook(keep, with_kwargs=True))
            self.model(batch, use_cache=False)
        return calls


@torch.no_grad()
def fit_heads(
    model: PreTrainedModel, plan: ConversionPlan, rows: Tensor, progress: Progress | None = None
) -> list[LayerHeads]:
    """For every layer, the heads that are kept and their output projection. `model` is changed while this runs, and as
    before when it ends. Arguments as :func:`sqat.convert.choose_heads`.
    """
    old, result = heads_of(plan.config), []
    corrected: bool | None = None  # until streams differ
    with evaluating(model):
        walk = Walk(model, rows)
        original = walk.embedded()
        converted = list(original)
        for layer, (attention, new) in enumerate(zip(attention_layers(model), plan.heads, strict=True)):
            same = converted[0] is original[0]
            if attention is None or new == old:
                heads = LayerHeads([(h,) for h in range(new.query)])
                after = [walk.run(layer, stream) for stream in original]
                converted = list(after) if same else [walk.run(layer, stream) for stream in converted]
            else:
                targets = (False,) if same else (False, True) if corrected is None else (corrected,)
                found = _fit_layer(walk, layer, attention, old, new, original, converted, targets)
                heads, after, converted = found.heads, found.original, found.converted
                corrected = None if same else found.corrected
            original = after
            result.append(heads)
            if progress is not None:
                progress(layer + 1, len(plan.heads))
    return result


class _FittedLayer(NamedTuple):
    heads: LayerHeads
    corrected: bool  # whether the target was
    original: list[Tensor]  # streams after the layer, by batch
    converted: list[Tensor]


def _fit_layer(
    walk: Walk,
    layer: int,
    attention: Any,
    old: Heads,
    new: Heads,
    original: Sequence[Tensor],
    converted: Sequence[Tensor],
    targets: Sequence[bool],
) -> _FittedLayer:
    """Fit to each kind of target, corrected or not; returns what leaves the streams closest to each other."""
    projection = output_projection(attention)
    outputs: list[Tensor] = []
    with projection.register_forward_hook(lambda _, inputs, output: outputs.append(output.flatten(0, -2))):
        after = [walk.run(layer, stream) for stream in original]
    values: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values.append(inputs[0].flatten(0, -2))
        raise _Reached

    with _replaced(attention, shared_keys_and_values(attention.state_dict(), old, new)):
        with projection.register_forward_pre_hook(keep):
            for stream in converted:
                with suppress(_Reached):
                    walk.run(layer, stream)
        before_ND, now_ND, after_ND = (_together(streams) for streams in (original, converted, after))
        sound_N = _sound(before_ND, now_ND)
        values_NX, outputs_ND = torch.cat(values).float()[sound_N], torch.cat(outputs).float()
        found: dict[float, _FittedLayer] = {}
        for corrected in targets:
            targets_ND = (outputs_ND + before_ND - now_ND if corrected else outputs_ND)[sound_N]
            heads = fit_output(values_NX, targets_ND, projection.weight, projection.bias, old, new)
            whole_DX = torch.zeros_like(projection.weight)
            whole_DX[:, _columns([h for (h,) in heads.groups], old)] = heads.output["weight"]
            with _replaced(projection, {**heads.output, "weight": whole_DX}):
                streams = [walk.run(layer, stream) for stream in converted]
            distance = (_together(streams) - after_ND)[sound_N].norm().item()
            found[distance] = _FittedLayer(heads, corrected, after, streams)
    return found[min(found)]


def _together(streams: Sequence[Tensor]) -> Tensor:
    return torch.cat([stream.flatten(0, 1) for stream in streams]).float()


def fit_output(
    values_NX: Tensor, targets_ND: Tensor, weight_DX: Tensor, bias_D: Tensor | None, old: Heads, new: Heads
) -> LayerHeads:
    """Keep `new.query` of the heads that `values_NX` holds next to each other, as many for each new key/value head, and
    regress the targets on their values: minimise ‖values · Wᵀ - targets‖² + s · ‖W - weight‖², where s is `RIDGE` times
    the mean square of the values. A bias, where there is one, is fitted with it.

    Heads are left out one by one: always the one without which the error of the fitted projection grows least (Optimal
    Brain Surgeon, Hassibi and Stork 1993, for blocks of weights). Then kept and left-out heads are exchanged while that
    helps.
    """
    width, prior_XD = values_NX.shape[1], weight_DX.double().T
    if bias_D is not None:  # one more value, always 1
        values_NX = torch.cat((values_NX, values_NX.new_ones(len(values_NX), 1)), dim=1)
        prior_XD = torch.cat((prior_XD, bias_D.double().unsqueeze(0)))
    gram_XX, cross_XD = (values_NX.T @ values_NX).double(), (values_NX.T @ targets_ND).double()
    ridge = RIDGE * gram_XX.diagonal()[:width].mean().clamp(min=1e-30)
    gram_XX = gram_XX + ridge * torch.eye(len(gram_XX), dtype=torch.float64, device=gram_XX.device)
    cross_XD = cross_XD + ridge * prior_XD
    kept = _exchange(_eliminate(gram_XX, cross_XD, old, new), gram_XX, cross_XD, old)
    chosen = sorted(h for pool in kept for h in pool)
    fitted_DX = _solve(chosen, gram_XX, cross_XD, old)[1].T.to(weight_DX.dtype).contiguous()
    size = len(chosen) * old.head_dim
    output = {"weight": fitted_DX[:, :size].contiguous()}
    if bias_D is not None:
        output["bias"] = fitted_DX[:, size].contiguous()
    return LayerHeads([(h,) for h in chosen], output)


def _eliminate(gram_XX: Tensor, cross_XD: Tensor, old: Heads, new: Heads) -> list[list[int]]:
    """The heads that are kept of each pool, a pool being the old heads of one new key/value head."""
    size, count = old.query // new.kv, new.query // new.kv
    kept = [list(range(start, start + size)) for start in range(0, old.query, size)]
    inverse_XX = torch.linalg.inv(gram_XX)
    weights_XD = inverse_XX @ cross_XD
    while any(len(pool) > count for pool in kept):
        costs = []
        for pool in kept:
            for head in pool if len(pool) > count else ():
                own = _columns([head], old)
                weights_CD = weights_XD[own]
                grows = (weights_CD * torch.linalg.solve(inverse_XX[own][:, own], weights_CD)).sum()
                costs.append((grows.item(), head))
        head = min(costs)[1]
        own = _columns([head], old)
        step_XC = inverse_XX[:, own] @ torch.linalg.inv(inverse_XX[own][:, own])
        weights_XD = weights_XD - step_XC @ weights_XD[own]
        inverse_XX = inverse_XX - step_XC @ inverse_XX[own]
        kept = [[h for h in pool if h != head] for pool in kept]
    return kept


def _exchange(kept: list[list[int]], gram_XX: Tensor, cross_XD: Tensor, old: Heads) -> list[list[int]]:
    """Exchange a kept head of a pool for another one of it, while the error becomes smaller."""
    size = old.query // len(kept)
    best = _solve([h for pool in kept for h in pool], gram_XX, cross_XD, old)[0]
    better = True
    while better:
        better = False
        for number in range(len(kept)):
            for out in kept[number]:
                for into in range(number * size, (number + 1) * size):
                    if into in kept[number]:
                        continue
                    trial = [*kept[:number], [into if h == out else h for h in kept[number]], *kept[number + 1 :]]
                    explained = _solve([h for pool in trial for h in pool], gram_XX, cross_XD, old)[0]
                    if explained > best * (1 + 1e-9):
                        best, kept, better = explained, trial, True
                        break
    return kept


def _solve(heads: Sequence[int], gram_XX: Tensor, cross_XD: Tensor, old: Heads) -> tuple[float, Tensor]:
    """How much of the targets' squares the heads explain together, and their fitted columns, transposed."""
    own = _columns(heads, old) + list(range(old.query * old.head_dim, len(gram_XX)))  # and the bias
    fitted_XD = torch.linalg.solve(gram_XX[own][:, own], cross_XD[own])
    return (fitted_XD * cross_XD[own]).sum().item(), fitted_XD


def _columns(heads: Sequence[int], old: Heads) -> list[int]:
    return [h * old.head_dim + c for h in heads for c in range(old.head_dim)]


def _sound(before_ND: Tensor, now_ND: Tensor) -> Tensor:
    """Which tokens are fitted: none of massive activation (Sun et al. 2024, arXiv 2402.17762), and none whose converted
    stream has strayed.
    """
    norm_N, distance_N = before_ND.norm(dim=-1), (before_ND - now_ND).norm(dim=-1)
    most = MASSIVE * norm_N.median()
    return (norm_N <= most) & (now_ND.norm(dim=-1) <= most) & (distance_N <= STRAYED * distance_N.median() + 1e-9)


@contextmanager
def _replaced(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a module other parameters for a while."""
    own = dict(module.named_parameters())
    saved = {name: own[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            own[name].data = tensor
        yield
    finally:
        for name, tensor in saved.items():
            own[name].data = tensor
