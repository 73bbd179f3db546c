"""numpy's products run in one thread inside, and in as many as before outside."""

import threading

import pytest

from sqat.cpu.lean import blas


@pytest.fixture
def library(monkeypatch) -> list[int]:
    """A library whose number of threads is the only entry."""
    threads = [7]
    monkeypatch.setattr(blas, "_controls", lambda: (lambda: threads[0], lambda number: threads.__setitem__(0, number)))
    return threads


def test_as_many_as_before(library):
    with blas.one_thread():
        assert library == [1]
    assert library == [7]


def test_an_error_inside(library):
    with pytest.raises(KeyError), blas.one_thread():
        raise KeyError
    assert library == [7]


def test_several_at_once(library):
    """The last to come out puts the number back."""
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with blas.one_thread():
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    with blas.one_thread():
        thread.start()
        inside.wait()
    assert library == [1]
    leave.set()
    thread.join()
    assert library == [7]


def test_a_library_without_such_functions(monkeypatch):
    monkeypatch.setattr(blas, "_controls", lambda: None)
    with blas.one_thread():
        pass


def test_numpy_s_own_library():
    controls = blas._controls()
    if controls is None:
        pytest.skip("numpy was built with a library that has no such functions")
    before = controls[0]()
    with blas.one_thread():
        assert controls[0]() == 1
    assert controls[0]() == before
