"""From probabilities, of whatever sum, and a draw to the token.

Shape letters: B rows, V vocabulary, N tokens that may be chosen.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from sqat.generate.sample import SamplingConfig

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

# From where on top-p leaves out so little that rounding could blur what is surely left out.
WIDE_TOP_P = 1 - 1e-4


def draw(probs_BV: Tensor, uniform_B: Tensor, config: SamplingConfig) -> Tensor:
    """The token of every row, (B,): of those that `config` keeps, the one at which the sum of probabilities, in the
    order of ids, exceeds its share `uniform_B` of their total.

    On a CPU it is computed for the tokens alone that may be kept; the result is that of :func:`draw_naive`.

    Args:
        probs_BV: probabilities.
        uniform_B: in [0, 1), float64, on the CPU.
    """
    if probs_BV.device.type != "cpu":
        return draw_naive(probs_BV, uniform_B, config)
    likeliest_Bk: Ids | None = None
    if config.top_k is not None and config.top_k < probs_BV.shape[1]:
        order_Bk = probs_BV.topk(config.top_k, dim=-1, sorted=False).indices  # torch's choice among equal ones
        likeliest_Bk = order_Bk.sort(dim=-1).values.numpy()
    rows = zip(probs_BV.detach().numpy(), uniform_B.tolist(), strict=True)
    tokens = [
        _draw_row(probs_V, None if likeliest_Bk is None else likeliest_Bk[row], uniform, config)
        for row, (probs_V, uniform) in enumerate(rows)
    ]
    return torch.from_numpy(np.array(tokens))


def draw_naive(probs_BV: Tensor, uniform_B: Tensor, config: SamplingConfig) -> Tensor:
    """The definition, for tests and GPUs: everything for all of the vocabulary."""
    cumulative_BV = keep_likeliest(probs_BV, config).double().cumsum(dim=-1)
    end_B1 = cumulative_BV[:, -1:]
    target_B1 = uniform_B.to(probs_BV.device).unsqueeze(1) * end_B1
    target_B1 = target_B1.minimum(end_B1.nextafter(torch.zeros_like(end_B1)))
    places_B = torch.searchsorted(cumulative_BV, target_B1, right=True).squeeze(1)
    return places_B.clamp(max=probs_BV.shape[1] - 1)  # where probabilities are no numbers


def keep_likeliest(probs_BV: Tensor, config: SamplingConfig) -> Tensor:
    """Probabilities with those outside top-k, then top-p, then min-p set to zero (not renormalised); the likeliest
    always stays.
    """
    if config.top_k is not None and config.top_k < probs_BV.shape[-1]:
        values, order = probs_BV.topk(config.top_k, dim=-1)  # exactly k, also where probabilities are equal
        probs_BV = torch.zeros_like(probs_BV).scatter(1, order, values)
    if config.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True, stable=True)
        before_BV = sorted_BV.double().cumsum(dim=-1) - sorted_BV
        kept_BV = before_BV < config.top_p * sorted_BV.double().sum(dim=-1, keepdim=True)
        kept_BV[:, 0] = True
        probs_BV = torch.zeros_like(probs_BV).scatter(1, order_BV, sorted_BV * kept_BV)
    if config.min_p > 0:
        probs_BV = probs_BV * (probs_BV >= config.min_p * probs_BV.amax(dim=-1, keepdim=True))
    return probs_BV


def _draw_row(probs_V: Floats, ids_N: Ids | None, uniform: float, config: SamplingConfig) -> int:
    """One row of :func:`draw`, among `ids_N`, which are in order (all for `None`). Row by row, since what is computed
    then stays in the cache, and every row has its own N.
    """
    if math.isnan(probs_V[0]):  # then all are: the model diverged
        return len(probs_V) - 1
    probs_N = probs_V if ids_N is None else probs_V[ids_N]
    if config.top_p < 1:
        nucleus = _nucleus(probs_N, config.top_p)
        probs_N, ids_N = probs_N[nucleus], nucleus if ids_N is None else ids_N[nucleus]
    if config.min_p > 0:
        likely = (probs_N >= np.float32(config.min_p) * probs_N.max()).nonzero()[0]
        probs_N, ids_N = probs_N[likely], likely if ids_N is None else ids_N[likely]
    cumulative_N = probs_N.cumsum(dtype=np.float64)
    end = float(cumulative_N[-1])
    target = min(uniform * end, math.nextafter(end, 0))  # below the end also when rounded
    place = int(cumulative_N.searchsorted(target, "right"))
    return place if ids_N is None else int(ids_N[place])


def _nucleus(probs_N: Floats, top_p: float) -> Ids:
    """Where the likeliest are that together reach `top_p` of the sum, in order; of equal ones the first.

    Tokens whose probability is below half of (1 - top_p) / N of the sum cannot be among them, since all of these
    together are less than what top-p leaves out. Only the others are sorted: of a trained model's, by far the fewest.
    """
    total = float(probs_N.sum(dtype=np.float64))
    least = 0.5 * (1 - top_p) * total / len(probs_N) if top_p < WIDE_TOP_P else 0.0
    places = (probs_N >= np.float32(least)).nonzero()[0]
    values = probs_N[places]
    sorted_N = np.sort(values)[::-1]
    before_N = sorted_N.cumsum(dtype=np.float64) - sorted_N
    count = max(int(before_N.searchsorted(top_p * total)), 1)
    if count >= len(values):
        return places
    kept = (values >= sorted_N[count - 1]).nonzero()[0]
    if len(kept) > count:
        equal = kept[values[kept] == sorted_N[count - 1]]
        kept = np.setdiff1d(kept, equal[count - len(kept) :], assume_unique=True)
    return places[kept]
