"""What tests of several files share."""
import signal
import sys
from types import SimpleNamespace

import pytest
import torch

from minillava import on_cpu

# A shell starts what it runs in the background with Ctrl-C ignored, and what a test starts would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def run(request, monkeypatch, capsys):
    """Calls the `main` of the test's file in this process, with these words typed -> returncode, out, err."""
    def call(*typed, **environment):
        monkeypatch.setattr(sys, "argv", ["main", *map(str, typed)])
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        code = None
        try:
            request.module.main()
        except SystemExit as exit:
            code = exit.code
        return SimpleNamespace(returncode=code, **capsys.readouterr()._asdict())
    return call


@pytest.fixture
def bf16_takes(monkeypatch):
    """Says how many times as long as in fp32 a product in 16 bits takes, whatever this processor is like."""
    def set_speed(times_as_long):
        monkeypatch.setattr(on_cpu, "product_seconds", lambda dtype: 1.0 if dtype == torch.float32 else times_as_long)
        on_cpu.is_slow.cache_clear()

    yield set_speed
    on_cpu.is_slow.cache_clear()


@pytest.fixture
def fast_bf16(bf16_takes):
    bf16_takes(1.0)
