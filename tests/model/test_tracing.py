"""Attention and Decoder where something traces, counts or stands in for tensors: torch's own operators run."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor, init_device_mesh
from torch.utils.flop_counter import FlopCounterMode

from sqat import Attention, Decoder
from sqat.model import plain_torch
from sqat.model.attend import attend_naive
from sqat.model.rope import rotary_tables, rotate_naive
from sqat.train.loss import cross_entropy_naive, linear_cross_entropy

D, C, T = 23, 6, 37
LAYERS = {
    "causal": lambda: Attention(D, 4, 2, C),
    "both ways": lambda: Attention(D, 4, 2, C, causal=False),
    "window": lambda: Attention(D, 4, 2, C, window=5, global_tokens=2),
    "reverse": lambda: Attention(D, 2, 4, C),
    "without positions": lambda: Attention(D, 4, 4, C, rope_theta=None),
}
MODELS = {
    "dense": {},
    "experts": {"num_experts": 3},
    "window": {"window": 5, "global_tokens": 1},
    "layernorm": {"norm": "layernorm", "final_norm": None},
}
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Logits(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens):
        return self.decoder(tokens).logits


@pytest.fixture(params=[*LAYERS, *MODELS.values()], ids=lambda p: p if isinstance(p, str) else f"decoder {p}")
def traced(request, tiny_model):
    """(module, input of some length)"""
    if isinstance(request.param, str):
        return LAYERS[request.param]().eval(), lambda length: torch.randn(1, length, D)
    model = Logits(tiny_model(**request.param)).eval()
    return model, lambda length: torch.randint(0, model.decoder.config.vocab_size, (1, length))


def test_jit_trace(traced):
    module, make = traced
    x = make(T)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.testing.assert_close(torch.jit.trace(module, x)(x), module(x), **CLOSE)


def test_export_with_a_dynamic_length(traced):
    module, make = traced
    length = torch.export.Dim("length", min=2, max=4096)
    exported = torch.export.export(module, (make(T),), dynamic_shapes=({1: length},)).module()
    for other in (2, 7, T, 101):
        x = make(other)
        torch.testing.assert_close(exported(x), module(x), **CLOSE)


def test_compiled_whole_for_a_second_length(traced):
    module, make = traced
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for length in (T, 17, 50):
        x = make(length)
        torch.testing.assert_close(compiled(x), module(x), **CLOSE)


def test_meta_device(traced):
    module, make = traced
    x = make(T)
    assert module.to("meta")(x.to("meta")).shape[:2] == (1, T)


def test_dtensor():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for make in LAYERS.values():
            layer, x = make(), torch.randn(2, T, D)
            expected = layer(x)
            found = distribute_module(layer, mesh)(distribute_tensor(x, mesh, [Replicate()]))
            torch.testing.assert_close(found.full_tensor(), expected, **CLOSE)
    finally:
        dist.destroy_process_group()


def test_attention_is_counted():
    layer, x = Attention(D, 4, 2, C), torch.randn(3, T, D, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    products = 2 * 3 * 4 * T * T * C  # of one (T, C) with (C, T) in 3 rows and 4 heads
    attention = {name: count for name, count in counts.items() if "attention" in name}
    assert sorted(attention.values()) == [2 * products, 5 * products]


def penalty(layer, forward, x):
    (grad,) = torch.autograd.grad((forward(x) + x**2).square().sum(), x, create_graph=True)
    return torch.autograd.grad(grad.square().sum(), layer.q_proj.weight)[0]


@pytest.mark.parametrize("length", [5, 101, 1031])
def test_second_derivatives_are_true_or_refused(length):
    """Refused where kernels compute the gradient, also where the gradient that comes in needs none."""
    layer, x = Attention(D, 4, 2, C), torch.randn(1, length, D, requires_grad=True)

    def definition(x):
        q, k, v = (p(x).unflatten(-1, (-1, C)).transpose(1, 2) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        tables = rotary_tables(torch.arange(length), C, 10000.0)
        out = attend_naive(
            rotate_naive(q, tables), rotate_naive(k, tables), v, torch.ones(length, length).tril().bool()
        )
        return layer.out_proj(out.transpose(1, 2).flatten(2))

    with pytest.raises(RuntimeError, match=r"once_differentiable.*within sqat\.model\.plain_torch"):
        penalty(layer, layer, x)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        torch.autograd.grad(layer(x).sum(), x, create_graph=True)
    with plain_torch():
        found, expected = penalty(layer, layer, x), penalty(layer, definition, x)
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("kind", LAYERS)
def test_hessians_and_batched_gradients(kind):
    layer, x = LAYERS[kind](), torch.randn(1, 7, D)
    with pytest.raises(RuntimeError, match=r"plain_torch|Batching rule not implemented"):
        torch.autograd.functional.jacobian(layer, x, vectorize=True)
    with plain_torch():
        jacobian = torch.autograd.functional.jacobian(layer, x, vectorize=True)
        torch.autograd.functional.hvp(lambda z: layer(z).square().sum(), x, torch.randn_like(x))
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(layer, x))
    double = LAYERS[kind]().double()
    assert torch.autograd.gradcheck(double, x.double().requires_grad_())


def test_second_derivatives_of_the_loss():
    hidden, weight = torch.randn(7, D, requires_grad=True), torch.randn(11, D, requires_grad=True)
    targets = torch.randint(0, 11, (7,))

    def second(loss):
        (grad,) = torch.autograd.grad(loss(hidden, weight, None, targets).loss ** 2, hidden, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), weight)[0]

    with pytest.raises(RuntimeError, match="once_differentiable"):
        second(linear_cross_entropy)
    with plain_torch():
        torch.testing.assert_close(second(linear_cross_entropy), second(cross_entropy_naive))


@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_a_model_is_built_and_run_in_fake_tensor_mode(tiny_config, changes):
    with FakeTensorMode():
        logits = Decoder(tiny_config(**changes))(torch.zeros(1, T, dtype=torch.long)).logits
    assert logits.shape[:2] == (1, T)
