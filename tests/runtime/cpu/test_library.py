"""The library of CPU kernels: levels, their limit, and what happens without it."""

import warnings

import pytest

from channelwise.runtime.cpu import library as module
from channelwise.runtime.cpu.library import LEVELS, available, kernels, level, level_number, library

needs_kernels = pytest.mark.skipif(not module.LIBRARY.exists(), reason="the kernels were not built")


@pytest.fixture
def level_under(monkeypatch):
    def found(value: str) -> str:
        monkeypatch.setenv("CHANNELWISE_CPU", value)
        library.cache_clear()
        return level()

    yield found
    monkeypatch.delenv("CHANNELWISE_CPU", raising=False)
    library.cache_clear()
    library()


@pytest.fixture
def absent(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "LIBRARY", tmp_path / "_kernels.so")
    library.cache_clear()
    yield
    library.cache_clear()


@needs_kernels
def test_the_level_is_one_of_the_four():
    assert available()
    assert level() in LEVELS


@needs_kernels
def test_the_environment_caps_the_level(level_under):
    best = level_under("")
    for name in LEVELS:
        assert level_under(name) == min(name, best, key=LEVELS.index)


def test_an_unknown_level_is_an_error_that_names_the_four(level_under):
    with pytest.raises(ValueError, match=r"CHANNELWISE_CPU: 'sse2' is no level.*: portable, avx2, avx512, amx"):
        level_under("sse2")


def test_levels_count_from_one():
    assert [level_number(name) for name in (None, *LEVELS)] == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="no level"):
        level_number("mmx")


@pytest.mark.usefixtures("absent")
def test_an_absent_library_is_warned_of_once():
    with pytest.warns(UserWarning, match=r"not built.*slower.*install a C\+\+ compiler"):
        assert not available()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert level() == "none"
        with pytest.raises(RuntimeError, match="not built"):
            kernels()
