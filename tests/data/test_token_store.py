"""Tokens where batches are made; what needs a GPU is in tests/gpu."""

import logging

import numpy as np
import pytest
import torch

from sqat.data.token_store import MEMORY_SHARE, TokenStore, to_device

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_reads_every_id(dtype: type) -> None:
    """Ids past the largest signed one too."""
    ids = np.array([0, 1, 2**15 - 1, 2**15, 2**16 - 1, np.iinfo(dtype).max], dtype=dtype)
    places = torch.tensor([[5, 4, 3], [2, 1, 0]])
    read = TokenStore(ids, CPU).read(places)
    assert read.dtype == torch.int64
    assert read.tolist() == ids[places.numpy()].tolist()


def test_tokens_are_not_copied_and_may_be_read_only(recwarn: pytest.WarningsRecorder) -> None:
    ids = np.arange(7, dtype=np.uint16)
    ids.flags.writeable = False
    store = TokenStore(ids, CPU)
    assert store._ids.data_ptr() == ids.ctypes.data
    assert not recwarn.list


def test_uploads_integers_and_truth_values() -> None:
    table = TokenStore(np.zeros(1, np.uint16), CPU).upload(np.arange(3), np.array([True, False, True]))
    assert table.dtype == torch.int64
    assert table.tolist() == [[0, 1, 2], [1, 0, 1]]


@pytest.mark.parametrize("room", [True, False])
def test_a_gpu_keeps_them_where_it_has_room(
    room: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = TokenStore(np.zeros(1000, np.uint16), CPU)
    free = int(2000 / MEMORY_SHARE) - (0 if room else 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, free))
    with caplog.at_level(logging.INFO):
        assert store._fits(torch.device("cuda")) == room
    assert ("stay on the host: more than 25 %" in caplog.text) != room


def test_to_the_same_device_is_no_copy() -> None:
    part = torch.arange(3)
    assert to_device(part, "cpu") is part
