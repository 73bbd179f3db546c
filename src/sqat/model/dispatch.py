"""The one place where faster implementations plug in.

The model is plain torch. A function that is worth computing another way on some device is marked :func:`operation`;
`sqat.cpu` and `sqat.cuda` add theirs with :func:`implements`. They are imported when the first layer is built or the
first operation runs. Where one of them is missing, or what it needs is not installed, the plain torch code runs.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

logger = logging.getLogger(__name__)

PLUGINS = ("sqat.cpu.plugin", "sqat.cuda.plugin")

Function = TypeVar("Function", bound=Callable[..., Any])


# By name and device: functions, whether each fits some arguments, and whether compilers can trace it.
_implementations: dict[tuple[str, str], list[tuple[Callable[..., Any], Callable[..., bool], bool]]] = {}


def operation(plain: Function) -> Function:
    """Let plug-ins compute `plain` in other ways; it stays what runs where none of them fits, and is their definition,
    as the attribute `plain`.

    The first argument must be a tensor: its device decides whose implementations are asked.
    """
    name = plain.__name__

    @functools.wraps(plain)
    def run(*args: Any, **kwargs: Any) -> Any:
        compiling = torch.compiler.is_compiling()
        if not compiling:
            load_plugins()
        found = _implementations.get((name, args[0].device.type), ())
        traced = compiling or (found and is_traced(*args))
        for faster, fits, compiles in found:
            if (compiles if compiling else not traced) and fits(*args, **kwargs):
                return faster(*args, **kwargs)
        return plain(*args, **kwargs)

    run.plain = plain  # type: ignore[attr-defined]
    return cast("Function", run)


def implements(
    name: str, device: str, *, fits: Callable[..., bool] = lambda *_, **__: True, compiles: bool = False
) -> Callable[[Function], Function]:
    """Add an implementation of the operation `name`; of several, the first added that fits runs.

    Args:
        name: the plain function's `__name__`.
        device: such as "cpu" or "cuda".
        fits: called with the operation's arguments; whether this implementation can compute them, and is faster.
        compiles: whether `torch.compile` can trace it, so that it also serves there.
    """

    def add(run: Function) -> Function:
        _implementations.setdefault((name, device), []).append((run, fits, compiles))
        return run

    return add


@functools.cache
def load_plugins() -> None:
    """Import the plug-ins that are there. Modules call it when they are built, since compilers cannot import."""
    for name in PLUGINS:
        try:
            importlib.import_module(name)
        except ImportError as error:
            logger.debug("%s is left out, plain torch runs instead: %s", name, error)


_plain = False


@contextmanager
def plain_torch() -> Iterator[None]:
    """Compute with torch's own operators alone: slower, but differentiable as often as you like.

    Kernels of `cpu/` and `cuda/`, fused rotation and cross-entropy have first derivatives only, and say so where a
    second one is asked for. Only the forward pass has to be within this context.
    """
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def is_plain() -> bool:
    """Whether this runs within :func:`plain_torch`."""
    return _plain


def once_differentiable(backward: Function) -> Function:
    """Mark a backward pass that cannot itself be differentiated. torch's decorator of this name lets pass what is
    differentiated by weights and inputs where the gradient that comes in needs none, and gives wrong results there.
    """

    @functools.wraps(backward)
    def run(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return backward(*args)
        if torch.is_grad_enabled():  # as `create_graph=True` has it
            raise RuntimeError(
                "trying to differentiate twice a function that was marked with @once_differentiable: for second "
                "derivatives run the forward pass within sqat.model.plain_torch()"
            )
        functorch = torch._C._functorch
        legacy = any(isinstance(value, Tensor) and functorch.is_legacy_batchedtensor(value) for value in args)
        if legacy or functorch.maybe_current_level() is not None:
            raise RuntimeError(
                "vmap cannot transform a kernel's backward pass: run the forward pass within sqat.model.plain_torch()"
            )
        return backward(*args)

    return cast("Function", run)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """The type of matrix products with `x`: autocast's, if it is on, or that of `x`."""
    device = x.device.type
    on = device != "meta" and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else x.dtype


def without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast is off on the device of `x`; the device "meta" has none."""
    return nullcontext() if x.device.type == "meta" else torch.autocast(x.device.type, enabled=False)


def like(tensor: Tensor, other: Any) -> Tensor:
    """`tensor`, replicated on the mesh of `other` if that is a DTensor, which mixes with no other class."""
    if not hasattr(other, "device_mesh") or hasattr(tensor, "device_mesh"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = other.device_mesh
    return DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)


def is_traced(*values: Any) -> bool:
    """Whether only torch's own operators will do: where values are hidden (see :func:`has_values`), operations counted
    (`FlopCounterMode`), and within :func:`plain_torch`. Kernels that read memory would miss all of these.
    """
    return _plain or not has_values(*values) or torch._C._len_torch_dispatch_stack() > 0


def has_values(*values: Any) -> bool:
    """Whether the values of these tensors can be read, so that shapes may depend on them.

    They cannot in a compiler or exporter, `torch.jit.trace`, a functorch transform (`vmap`, `grad`), forward-mode
    differentiation, a dispatch mode (`make_fx`, `FakeTensorMode`) other than a counter of operations, on the device
    "meta", or in a tensor that is none of torch's two plain classes (`FakeTensor`, `DTensor`, quantised and other
    subclasses; also inside of tuples).
    """
    if torch.compiler.is_compiling():
        return False
    return (
        torch._C._get_tracing_state() is None  # torch.jit.trace
        and torch._C._functorch.maybe_current_level() is None
        and forward_ad._current_level < 0
        and all(type(mode).__module__ == "torch.utils.flop_counter" for mode in _get_current_dispatch_mode_stack())
        and torch._ops._len_torch_dispatch_stack_pre_dispatch() == 0
        and all(map(_is_plain, values))
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return not isinstance(value, Tensor) or (type(value) in (Tensor, nn.Parameter) and not value.is_meta)
