"""The model's ways of computing that only GPUs take, against the definitions."""

import pytest
import torch

from sqat.cuda import flex
from sqat.cuda.experts import grouped_mm, grouped_mm_naive, run_experts_few, supports_grouped
from sqat.cuda.static import StaticStep
from sqat.model import AttentionMask, KVCache
from sqat.model.attend import attend, attend_naive
from sqat.model.moe import Experts, run_experts, run_experts_naive

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU here", allow_module_level=True)

HAS_KERNEL = torch.cuda.get_device_capability()[0] in (9, 10)
N, E, WIDTH, HIDDEN = 1031, 7, 64, 72

ROUTINGS = {
    "two of seven": lambda: torch.rand(N, E, device="cuda").topk(2).indices,
    "some never chosen": lambda: torch.tensor([[5, 1]], device="cuda").expand(N, 2),
    "last one never chosen": lambda: torch.zeros(N, 1, dtype=torch.long, device="cuda"),
    "few tokens": lambda: torch.tensor([[6, 2], [0, 6]], device="cuda"),
}


def draw(experts_Nk, gated, biased):
    inner = HIDDEN * (2 if gated else 1)
    shapes = ((E, inner, WIDTH), (E, inner), (E, WIDTH, HIDDEN), (E, WIDTH))
    weights = [(torch.randn(shape, device="cuda") * WIDTH**-0.5).requires_grad_() for shape in shapes]
    if not biased:
        weights[1::2] = None, None
    x = torch.randn(len(experts_Nk), WIDTH, device="cuda", requires_grad=True)
    return x, torch.rand(experts_Nk.shape, device="cuda", requires_grad=True), Experts(*weights, gated=gated)


def with_gradients(run, x, experts_Nk, share, weights, *options):
    out = run(x, experts_Nk, share, weights, *options)
    scale = torch.linspace(-0.5, 1.5, out.numel(), device="cuda").view(out.shape)
    leaves = [leaf for leaf in (x, share, *weights) if leaf is not None]
    return [out, *torch.autograd.grad((out * scale).sum(), leaves)]


def assert_near(found, expected, tolerance):
    """By the norm of the difference, which is not a number where an entry is not."""
    assert (found.double() - expected.double()).norm() <= tolerance * expected.double().norm()


@pytest.mark.parametrize("biased", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "not gated"])
@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize(("bf16", "tolerance"), [(True, 0.02), (False, 1e-5)], ids=["bfloat16", "float32"])
def test_experts(routing, gated, biased, bf16, tolerance):
    experts_Nk = ROUTINGS[routing]()
    x, share, weights = draw(experts_Nk, gated, biased)
    with torch.autocast("cuda", torch.bfloat16):
        assert supports_grouped(x, experts_Nk, share, weights) == (HAS_KERNEL and gated)
    expected = with_gradients(run_experts_naive, x, experts_Nk, share, weights)
    for _ in range(3):  # what a kernel leaves unwritten differs from run to run
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            found = with_gradients(run_experts, x, experts_Nk, share, weights)
        for a, b in zip(found, expected, strict=True):
            assert_near(a, b, tolerance)


@pytest.mark.skipif(not HAS_KERNEL, reason="no kernel for grouped products on this GPU")
def test_grouped_products():
    offs = torch.tensor([8, 16, 640], dtype=torch.int32, device="cuda")
    a, b = (torch.randn(640, width, device="cuda", dtype=torch.bfloat16) for width in (64, 72))
    weight = torch.randn(3, 72, 64, device="cuda", dtype=torch.bfloat16)
    for pair in ((a, weight.transpose(1, 2)), (b, weight), (a.T, b)):
        assert_near(grouped_mm(*pair, offs=offs), grouped_mm_naive(*(x.double() for x in pair), offs=offs), 0.01)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_few_tokens(rows):
    experts_Nk = torch.rand(rows, E, device="cuda").topk(2).indices
    x, share, weights = draw(experts_Nk, gated=True, biased=True)
    with torch.no_grad():
        found = run_experts(x, experts_Nk, share, weights)
        assert torch.equal(found, run_experts_few(x, experts_Nk, share, weights))
        assert_near(found, run_experts_naive(x, experts_Nk, share, weights), 1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("queries", [1, 32])
def test_attention(queries, padded, kv_heads):
    q = torch.randn(3, 4, queries, 16, device="cuda")
    k, v = torch.randn(2, 3, kv_heads, 40, 16, device="cuda")
    first_key_B = torch.tensor([0, 3, 7], device="cuda") if padded else None
    made, kept = (AttentionMask(queries, 40, q.device, first_key_B=first_key_B) for _ in range(2))
    expected = attend_naive(q.double(), k.double(), v.double(), made.rows())
    for mask in (made if padded else None, kept):
        assert_near(attend(q, k, v, mask=mask), expected, 1e-5)
        assert_near(attend(*(x.bfloat16() for x in (q, k, v)), mask=mask), expected, 0.02)


@pytest.mark.parametrize("padding", [None, [0, 3, 1]], ids=["no padding", "left padding"])
@pytest.mark.parametrize("changes", [{}, {"moe": True}], ids=str)
@torch.no_grad()
def test_decoding_by_a_graph(tiny_model, changes, padding):
    model = tiny_model(**changes, feedforward_bias=True).cuda()
    padding_B = None if padding is None else torch.tensor(padding, device="cuda")
    prompt = torch.randint(41, (3, 11), device="cuda")
    cache, grown = (KVCache(model.config, 3, 29, padding_B=padding_B, device="cuda") for _ in range(2))
    for filled in (cache, grown):
        model.hidden_states(prompt, cache=filled)
    step = StaticStep(model, cache)
    for tokens_B in torch.randint(41, (18, 3), device="cuda"):
        expected = model(tokens_B.unsqueeze(1), cache=grown).logits[:, 0]
        assert_near(step(tokens_B), expected, 1e-5)
    assert step.graph is not None
    with pytest.raises(ValueError, match="cache holds 29 positions"):
        step(tokens_B)


WINDOWS = {  # name: (window, global tokens)
    "itself only": (1, 0),
    "short": (37, 0),
    "short, and the first": (37, 3),
    "over blocks": (200, 5),
}
ROWS = {
    "alike": dict,
    "documents": lambda: {"documents_BS": torch.randint(0, 2, (3, 421), device="cuda").cumsum(dim=1) // 40},
    "padding": lambda: {"first_key_B": torch.tensor([0, 5, 203], device="cuda")},
}


@pytest.mark.slow
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (2, 4)], ids=["full", "grouped", "reverse"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("window", WINDOWS)
def test_windowed_attention(window, rows, heads):
    """By FlexAttention, forward and backward; and by masked kernels, as where there is no compiler."""
    width, global_tokens = WINDOWS[window]
    q, k, v = (
        torch.randn(3, count, 421, 16, device="cuda", requires_grad=True) for count in (heads[0], heads[1], heads[1])
    )
    fields = ROWS[rows]()
    flexible, masked = (
        AttentionMask(421, 421, q.device, window=width, global_tokens=global_tokens, **fields) for _ in range(2)
    )
    scale = torch.linspace(-0.5, 1.5, 421, device="cuda").unsqueeze(1)

    def with_gradients(function, *inputs):
        out = function(*inputs)
        return [out, *torch.autograd.grad((out * scale).sum(), inputs)]

    doubles = [x.detach().double().requires_grad_() for x in (q, k, v)]
    expected = with_gradients(lambda *qkv: attend_naive(*qkv, masked.rows()), *doubles)
    assert flex.fits(q, k, v, mask=flexible)
    for _ in range(2):  # the second time compiled: nothing may wait for the device
        found = with_gradients(lambda *qkv: attend(*qkv, mask=flexible), q, k, v)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flex, "HAS_COMPILER", False)
        plain = with_gradients(lambda *qkv: attend(*qkv, mask=masked), q, k, v)
    for a, b, c in zip(found, plain, expected, strict=True):
        assert_near(a, c, 1e-3)  # the kernel's products may be TF32
        assert_near(b, c, 1e-5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fresh = AttentionMask(421, 421, q.device, window=width, global_tokens=global_tokens, **fields)
        with_gradients(lambda *qkv: attend(*qkv, mask=fresh), q, k, v)
    finally:
        torch.cuda.set_sync_debug_mode("default")
