"""A setting of the C library, where there is one to set."""
import ctypes

import pytest

from minillava.weights.allocator import M_MMAP_THRESHOLD, keep_freed_memory


class Library:
    """A C library that notes what is set, or has nothing to set."""

    def __init__(self, has_mallopt):
        self.settings = {}
        if has_mallopt:
            self.mallopt = self.settings.__setitem__


@pytest.mark.parametrize("has_mallopt", [True, False])
def test_freed_memory_is_kept_where_the_library_can(monkeypatch, has_mallopt):
    library = Library(has_mallopt)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    keep_freed_memory()
    assert (M_MMAP_THRESHOLD in library.settings) == has_mallopt


def test_another_c_library_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError(name)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    keep_freed_memory()
