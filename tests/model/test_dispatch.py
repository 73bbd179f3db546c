"""Plug-ins: where they are left out, and a package that works without them."""

import ast
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from sqat.model import dispatch
from sqat.model.dispatch import implements, is_traced, operation

PLUGINS_BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name in {blocked} or name.startswith(tuple(part + "." for part in {blocked})):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
"""
USE = """
import torch
from sqat import Attention, Decoder, ModelConfig
from sqat.model import KVCache

sizes = dict(vocab_size=41, hidden_size=24, num_layers=2, num_query_heads=4, num_kv_heads=2, head_dim=6,
             intermediate_size=16, context_length=32, feedforward_dropout=0.1)
for experts in ({}, {"num_experts": 5, "experts_per_token": 2}):
    model = Decoder(ModelConfig(**sizes, **experts))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(41, (3, 17))
    before = model.head.weight.clone()
    model(tokens).logits.logsumexp(-1).sum().backward()
    optimizer.step()
    assert not before.equal(model.head.weight)
    model.eval()
    with torch.inference_mode():
        cache = KVCache(model.config, 3, 17)
        parts = [model(part, cache=cache).logits for part in tokens.split([11, 1, 5], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens).logits)
Attention(24, 4, 2, 6, window=5, global_tokens=2)(torch.randn(3, 17, 24, requires_grad=True)).sum().backward()
print(sorted(name for name in sys.modules if name.split(".")[0] == "numba" or name[:8] in ("sqat.cpu", "sqat.cud")))
"""


@pytest.mark.slow
def test_the_model_trains_and_generates_without_numba_and_a_plugin():
    """And tests/test_without_plugins.py without cpu/."""
    blocked = ("sqat.cuda", "numba")
    program = PLUGINS_BLOCKED.replace("{blocked}", repr(blocked)) + USE
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not any(name.startswith(blocked) for name in ast.literal_eval(done.stdout))


@pytest.fixture
def double(monkeypatch):
    """An operation that a plug-in would get wrong, to see which of the two ran."""
    monkeypatch.setattr(dispatch, "_implementations", {})

    @operation
    def double(x, *others):
        return 2 * x

    @implements("double", "cpu", fits=lambda x, *others: x.shape[0] != 3)
    def triple(x, *others):
        return 3 * x

    return double


def test_the_first_that_fits_runs(double):
    implements("double", "cpu")(lambda x, *others: 5 * x)
    assert double(torch.ones(2)).tolist() == [3, 3]
    assert double(torch.ones(3)).tolist() == [5, 5, 5]
    assert double.plain(torch.ones(1)).tolist() == [2]


class Subclass(torch.Tensor):
    pass


TRACED = {
    "make_fx": lambda f, x: make_fx(f)(x)(x),
    "make_fx, before dispatch": lambda f, x: make_fx(f, pre_dispatch=True)(x)(x),
    "make_fx, fake tensors": lambda f, x: make_fx(f, tracing_mode="fake")(x)(x),
    "torch.export": lambda f, x: torch.export.export(Module(f), (x,)).module()(x),
    "torch.compile": lambda f, x: torch.compile(f, backend="eager", fullgraph=True)(x),
    "torch.jit.trace": lambda f, x: torch.jit.trace(f, x)(x),
    "vmap": lambda f, x: torch.vmap(f)(x),
    "grad": lambda f, x: torch.func.grad(lambda x: f(x).sum())(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,))[0],
    "forward mode": lambda f, x: forward_mode(f, x),
    "a counter of operations": lambda f, x: counted(f, x),
    "a subclass": lambda f, x: f(x.as_subclass(Subclass)),
    "a subclass inside of a tuple": lambda f, x: f(x, (x, (x.as_subclass(Subclass), 1))),
}


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def forward_mode(function, x):
    with torch.autograd.forward_ad.dual_level():
        return function(torch.autograd.forward_ad.make_dual(x, x))


def counted(function, x):
    with FlopCounterMode(display=False):
        return function(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("trace", TRACED)
def test_plain_torch_runs_where_something_is_traced(double, trace):
    found = TRACED[trace](double, torch.ones(2, 2))
    assert set(found.flatten().tolist()) == {2}


def test_nothing_is_traced_in_everyday_work():
    x = torch.ones(2)
    assert not is_traced(x, torch.nn.Parameter(x), None, 3, ("a", x))
    with torch.device("cpu"), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not is_traced(x)
    with torch.inference_mode():
        assert not is_traced(x, torch.ones(2))
    with FakeTensorMode():
        assert is_traced(torch.ones(2))


def test_what_compiles_serves_compilers(double):
    implements("double", "cpu", compiles=True)(lambda x, *others: 5 * x)
    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert compiled(torch.ones(2)).tolist() == [5, 5]
