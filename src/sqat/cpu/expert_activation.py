"""What experts do between their two products: activation, gate and dropout, forward and backward.

Two ways with the same methods. Neither scales what dropout keeps; the caller does. `buffers` are tensors that backward
needs, for all rows R; M are the rows at hand, F the hidden width, I = F (or 2F, gated: linear and gate).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from sqat import cpu as kernels
from sqat.model.dropout import keep_bits, keep_only, random_bits
from sqat.model.seeds import draw_seeds

if TYPE_CHECKING:
    from sqat.cpu.swiglu import Dropped

_aten = torch.ops.aten
_INTO: dict[str, Callable[..., Tensor]] = {
    "silu": _aten.silu.out,
    "swish": _aten.silu.out,
    "gelu": _aten.gelu.out,
    "relu": _aten.relu.out,
    "sigmoid": _aten.sigmoid.out,
    "linear": lambda x, *, out: out.copy_(x),
}
_BACKWARD: dict[str, Callable[..., Tensor]] = {
    "silu": _aten.silu_backward.grad_input,
    "swish": _aten.silu_backward.grad_input,
    "gelu": _aten.gelu_backward.grad_input,
    "relu": lambda grad, x, *, grad_input: _aten.threshold_backward.grad_input(grad, x, 0, grad_input=grad_input),
    "sigmoid": lambda grad, x, *, grad_input: _aten.sigmoid_backward.grad_input(
        grad, torch.sigmoid(x), grad_input=grad_input
    ),
    "linear": lambda grad, x, *, grad_input: grad_input.copy_(grad),
}
Buffers = tuple[Tensor, ...]
COMPILED_ROWS = 1024  # for fewer (a prompt, mostly) a second of compiling would not be worth it


class ExpertActivation(Protocol):
    def buffers(self, hidden_RI: Tensor) -> Buffers:
        """Empty ones for so many rows, and random bits where there is dropout."""

    def forward(self, hidden_MI: Tensor, bias_I: Tensor | None, rows: slice, buffers: Buffers) -> Tensor:
        """Activated values (M, F) of hidden + bias, zero where dropped; valid until the next call. `hidden_MI` may be
        changed, and is to be handed to `backward` as it is then.
        """

    def backward(
        self,
        grad_MF: Tensor,
        hidden_MI: Tensor,
        bias_I: Tensor | None,
        d_bias_I: Tensor | None,
        rows: slice,
        buffers: Buffers,
    ) -> tuple[Tensor, Tensor]:
        """The gradient of the hidden values, (M, I), and the activated values again; `grad_MF` is used up, and the
        bias's gradient is added to `d_bias_I`.
        """


def hidden_type(compute: torch.dtype) -> torch.dtype:
    """Of biases added to values of type `compute`."""
    return torch.promote_types(compute, torch.float32)


def expert_activation(activation: str, gated: bool, dropout: float, num_rows: int, like: Tensor) -> ExpertActivation:
    """One compiled loop for gated SiLU on a CPU; else torch's operators one after the other.

    Args:
        num_rows: R.
        like: of the hidden values' device and type.
    """
    fits = activation in ("silu", "swish") and gated and like.dtype in (torch.float32, torch.bfloat16)
    if fits and num_rows >= COMPILED_ROWS and like.device.type == "cpu" and kernels.available():
        from sqat.cpu.swiglu import Dropped

        return FusedActivation(Dropped(dropout, draw_seeds(1)[0] if dropout else 0))
    return SeparateActivation(activation, gated, dropout)


class FusedActivation:
    """Gated SiLU; backward computes everything again, the dropped elements too."""

    def __init__(self, dropped: Dropped) -> None:
        self.dropped = dropped

    def buffers(self, hidden_RI: Tensor) -> Buffers:
        return ()

    def forward(self, hidden_MI: Tensor, bias_I: Tensor | None, rows: slice, buffers: Buffers) -> Tensor:
        from sqat.cpu.swiglu import swiglu

        out_MF = hidden_MI.new_empty(len(hidden_MI), hidden_MI.shape[1] // 2)
        return swiglu(hidden_MI, bias_I, rows.start, self.dropped, out_MF)

    def backward(
        self,
        grad_MF: Tensor,
        hidden_MI: Tensor,
        bias_I: Tensor | None,
        d_bias_I: Tensor | None,
        rows: slice,
        buffers: Buffers,
    ) -> tuple[Tensor, Tensor]:
        from sqat.cpu.swiglu import swiglu_backward

        d_hidden_MI = torch.empty_like(hidden_MI)
        d_bias = swiglu_backward(grad_MF, hidden_MI, bias_I, rows.start, self.dropped, d_hidden_MI)
        if d_bias_I is not None:
            d_bias_I += d_bias
        return d_hidden_MI, grad_MF


class SeparateActivation(NamedTuple):
    """Any activation. The function's own values and the activated ones are kept, and the bits of dropout."""

    activation: str
    gated: bool
    dropout: float

    def buffers(self, hidden_RI: Tensor) -> Buffers:
        shape = len(hidden_RI), hidden_RI.shape[1] // (2 if self.gated else 1)
        nonlinear_RF = hidden_RI.new_empty(shape)
        activated_RF = hidden_RI.new_empty(shape) if self.gated or self.dropout else nonlinear_RF
        if not self.dropout:
            return nonlinear_RF, activated_RF
        return nonlinear_RF, activated_RF, random_bits(shape, hidden_RI.dtype, hidden_RI.device)

    def forward(self, hidden_MI: Tensor, bias_I: Tensor | None, rows: slice, buffers: Buffers) -> Tensor:
        if bias_I is not None:
            hidden_MI += bias_I
        nonlinear_MF, activated_MF, *bits = (buffer[rows] for buffer in buffers)
        linear, gate = hidden_MI.chunk(2, dim=-1) if self.gated else (None, hidden_MI)
        _INTO[self.activation](gate, out=nonlinear_MF)
        if linear is not None:
            torch.mul(linear, nonlinear_MF, out=activated_MF)
        elif self.dropout:
            activated_MF.copy_(nonlinear_MF)
        return keep_only(activated_MF, keep_bits(bits[0], self.dropout)) if bits else activated_MF

    def backward(
        self,
        grad_MF: Tensor,
        hidden_MI: Tensor,
        bias_I: Tensor | None,
        d_bias_I: Tensor | None,
        rows: slice,
        buffers: Buffers,
    ) -> tuple[Tensor, Tensor]:
        nonlinear_MF, activated_MF, *bits = (buffer[rows] for buffer in buffers)
        if bits:
            keep_only(grad_MF, bits[0])
        d_hidden_MI = torch.empty_like(hidden_MI)
        self._differentiate(grad_MF, hidden_MI, nonlinear_MF, d_hidden_MI)
        if d_bias_I is not None:
            # A product with ones: `sum` over bfloat16 rows is several times slower.
            d_bias_I += (d_hidden_MI.new_ones(1, len(d_hidden_MI)) @ d_hidden_MI).squeeze(0)
        return d_hidden_MI, activated_MF

    def _differentiate(self, grad_MF: Tensor, hidden_MI: Tensor, nonlinear_MF: Tensor, d_hidden_MI: Tensor) -> None:
        backward = _BACKWARD[self.activation]
        if not self.gated:
            backward(grad_MF, hidden_MI, grad_input=d_hidden_MI)
            return
        linear, gate = hidden_MI.chunk(2, dim=-1)
        d_linear, d_gate = d_hidden_MI.chunk(2, dim=-1)
        torch.mul(grad_MF, nonlinear_MF, out=d_linear)
        backward(grad_MF.mul_(linear), gate, grad_input=d_gate)
