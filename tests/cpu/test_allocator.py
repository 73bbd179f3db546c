import platform

from sqat.cpu import allocator


def test_it_says_whether_the_allocator_could_be_told(monkeypatch):
    keep_freed_memory = allocator.keep_freed_memory.__wrapped__
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False
