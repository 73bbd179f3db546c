"""A cache that rolls: what is cached equals what is not, in memory that does not grow."""

import pytest
import torch

from sqat import Attention
from sqat.model import KVCache
from sqat.model.cache import LayerCache, RollingLayer

V, T = 41, 31
WINDOWS = {  # name: (window, global tokens)
    "itself only": (1, 0),
    "itself and the first": (1, 1),
    "a few": (5, 0),
    "a few and the first three": (5, 3),
    "most": (23, 0),
    "most and more than fit": (23, 29),
}
FEEDS = {
    "one by one": [1] * T,
    "a long prompt": [19] + [1] * (T - 19),
    "several at once": [2, 3, 11, 1, 7, 1, 1, 5],
    "a short prompt, then many": [2, T - 2],
    "after the window is full": [7, 1, 13, 1, 9],
}


@pytest.fixture(params=WINDOWS)
def window(request):
    return WINDOWS[request.param]


@pytest.mark.parametrize("feed", FEEDS)
@torch.no_grad()
def test_cached_equals_uncached(tiny_model, window, feed):
    model = tiny_model(window=window[0], global_tokens=window[1])
    tokens_BT = torch.randint(V, (3, T))
    cache = KVCache(model.config, 3, T)
    found = [model(part, cache=cache).logits for part in tokens_BT.split(FEEDS[feed], dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), model(tokens_BT).logits, rtol=1e-5, atol=1e-5)
    assert cache.length == T


@pytest.mark.parametrize("padding", [[0, 3, 18], [18, 17, 1], [2, 2, 2]], ids=str)
@pytest.mark.parametrize("feed", [name for name in FEEDS if FEEDS[name][0] == 19] + ["several at once"])
@torch.no_grad()
def test_left_padding(tiny_model, window, feed, padding):
    """Every row is what it is alone, whether padding ends within the first tokens that are fed, or later."""
    model = tiny_model(window=window[0], global_tokens=window[1])
    tokens_BT = torch.randint(V, (3, T))
    cache = KVCache(model.config, 3, T, padding_B=torch.tensor(padding))
    found = torch.cat([model(part, cache=cache).logits for part in tokens_BT.split(FEEDS[feed], dim=1)], dim=1)
    for row, first in enumerate(padding):
        alone = model(tokens_BT[row : row + 1, first:]).logits
        torch.testing.assert_close(found[row : row + 1, first:], alone, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_memory_does_not_grow(tiny_model):
    model = tiny_model(window=5, global_tokens=3)
    cache = KVCache(model.config, 2, 1_000_000)

    for _ in range(20):
        model(torch.randint(V, (2, 3)), cache=cache)
    for layer in cache.layers:
        for memory in (layer.keys, layer.values):
            assert memory.shape == (2, 3, 8, 10)
            assert memory.untyped_storage().nbytes() == 4 * memory.numel()


@torch.no_grad()
def test_a_window_is_never_full_and_a_cache_within_it_does_not_roll(tiny_model):
    model = tiny_model(window=5)
    assert [isinstance(KVCache(model.config, 1, n).layers[0], RollingLayer) for n in (5, 6)] == [False, True]
    cache = KVCache(model.config, 1, 7)
    tokens_BT = torch.randint(V, (1, T))
    found = [model(part, cache=cache).logits for part in tokens_BT.split(4, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), model(tokens_BT).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_layer_alone_with_a_cache_that_does_not_roll():
    layer = Attention(23, 6, 3, 10, window=5, global_tokens=2)
    x = torch.randn(3, T, 23)
    cache = LayerCache((3, 3, T, 10))
    parts = [layer(part, cache=cache) for part in x.split([9, 1, 4, 17], dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), layer(x), rtol=1e-5, atol=1e-6)
