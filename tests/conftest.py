"""What tests of several files share."""
import os
import signal
import sys
from types import SimpleNamespace

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # beside a GPU the tests are of the CPU too: tests/gpu/check.py is of the GPU

import pytest  # noqa: E402

from minillava import on_cpu  # noqa: E402

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
def has_bf16(monkeypatch):
    """Says whether this processor multiplies in 16 bits, whatever it really does."""
    return lambda answer: monkeypatch.setattr(on_cpu, "onednn_multiplies", lambda dtype: answer)


@pytest.fixture
def fast_bf16(has_bf16):
    has_bf16(True)
