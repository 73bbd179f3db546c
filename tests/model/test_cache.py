"""The key/value cache: what it returns, when it is full, and whose positions it counts."""

import pytest
import torch

from sqat.model import KVCache


def test_returns_everything_appended_in_memory_that_is_taken_once(tiny_config):
    layer = KVCache(tiny_config(), 5, 11).layers[1]
    keys, values = torch.randn(2, 5, 3, 11, 10)
    memory = layer.keys.data_ptr()
    for start, stop in [(0, 7), (7, 8), (8, 11)]:
        found = layer.append(keys[:, :, start:stop], values[:, :, start:stop])
        assert layer.length == stop
        torch.testing.assert_close(found, (keys[:, :, :stop], values[:, :, :stop]), rtol=0, atol=0)
        assert found[0].data_ptr() == layer.keys.data_ptr() == memory
    with pytest.raises(ValueError, match="cache holds 11 positions, but 13 are needed"):
        layer.append(keys[:, :, :2], values[:, :, :2])
    assert layer.length == 11


def test_positions_follow_what_is_filled(tiny_config):
    cache = KVCache(tiny_config(), 2, 11)
    assert cache.positions(3).tolist() == [0, 1, 2]
    for layer in cache.layers:
        layer.append(torch.zeros(2, 3, 5, 10), torch.zeros(2, 3, 5, 10))
    assert cache.length == 5
    assert cache.positions(2).tolist() == [5, 6]
    cache = KVCache(tiny_config(), 2, 11, padding_B=torch.tensor([0, 3]))  # they count from the first real token
    assert cache.positions(5).tolist() == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 1]]
