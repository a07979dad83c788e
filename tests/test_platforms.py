"""Windows and macOS, as far as they can be played on Linux: what is a platform's own is one small function each."""
import ast
import io
import os
import sys
from pathlib import Path, PureWindowsPath
from types import SimpleNamespace

import pytest
import torch

from minillava import data, files
from minillava.data import safe_name
from minillava.terminal import print_in_utf8
from minillava.training import records


def refusing(times):
    """An os.replace that refuses so often, as Windows does while another program has the file open."""
    calls, real = [], os.replace

    def replace(new, path):
        calls.append(path)
        if len(calls) <= times:
            raise PermissionError(13, "Access is denied")
        real(new, path)
    return replace, calls


def test_on_windows_a_file_that_somebody_reads_is_replaced_a_moment_later(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAITS", (0, 0, 0))
    for platform, times, tries in (("win32", 2, 3), ("linux", 0, 1)):
        replace, calls = refusing(times)
        monkeypatch.setattr(files.os, "replace", replace)
        monkeypatch.setattr(sys, "platform", platform)
        files.write(tmp_path / "a.txt", platform)
        assert (tmp_path / "a.txt").read_text() == platform and len(calls) == tries
    for platform, times, tries in (("win32", 9, 4), ("linux", 9, 1)):  # in the end it is an error
        replace, calls = refusing(times)
        monkeypatch.setattr(files.os, "replace", replace)
        monkeypatch.setattr(sys, "platform", platform)
        with pytest.raises(PermissionError):
            files.write(tmp_path / "a.txt", "never")
        assert (tmp_path / "a.txt").read_text() == "linux" and len(calls) == tries


@pytest.mark.parametrize("platform, unit", [("linux", 2**10), ("darwin", 1)])
def test_peak_memory_is_in_kib_on_linux_and_in_bytes_on_macos(monkeypatch, platform, unit):
    usage = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    fake = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage)
    monkeypatch.setattr(records, "resource", fake)
    monkeypatch.setattr(records, "STATUS", Path("no-such-file"))
    monkeypatch.setattr(sys, "platform", platform)
    assert records.peak_memory(torch.device("cpu")) == 3.0


def test_without_the_module_resource_as_on_windows_memory_is_not_told(monkeypatch):
    monkeypatch.setattr(records, "STATUS", Path("no-such-file"))
    monkeypatch.setattr(records, "resource", None)
    assert records.peak_memory(torch.device("cpu")) is None


def test_a_windows_path_does_not_lead_out_of_the_image_folder(monkeypatch):
    assert str(safe_name("train\\..\\a:b.png")) == "train\\..\\a:b.png"  # an ordinary file name on Linux
    monkeypatch.setattr(data, "PurePath", PureWindowsPath)
    assert safe_name("coco/train2017/1.jpg").as_posix() == "coco/train2017/1.jpg"
    for name in ("..\\a.png", "C:\\a.png", "C:a.png", "\\\\server\\share\\a.png", "/a.png", "../a.png"):
        with pytest.raises(ValueError, match="is not within the image folder"):
            safe_name(name)


def test_a_pipe_of_another_encoding_takes_every_character(monkeypatch):
    pipe = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", pipe)
    print_in_utf8()
    print("猫 ▀ é")
    pipe.flush()
    assert pipe.buffer.getvalue().decode("utf-8").strip() == "猫 ▀ é"


def test_no_module_of_one_platform_is_imported_without_asking():
    """`import resource` or `termios` at the top of a file ends a script on Windows before its first word."""
    own = {"resource", "termios", "tty", "fcntl", "pwd", "readline", "curses"}
    for path in [*files.Path(files.__file__).parent.rglob("*.py"), *files.Path(files.__file__).parents[1].glob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith(("import ", "from ")):
                assert line.split()[1].split(".")[0] not in own, path


def test_every_file_is_opened_in_an_encoding_that_is_named():
    """The default is UTF-8 on Linux and macOS, and another one on Windows."""
    package = files.Path(files.__file__).parent
    for path in [*package.rglob("*.py"), *package.parent.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            words = {keyword.arg for keyword in node.keywords}
            plain = len(node.args) < (2 if name == "write_text" else 1)  # it may be the last argument
            if name in ("read_text", "write_text") and plain and not isinstance(node.func, ast.Name):
                assert "encoding" in words, f"{path}:{node.lineno}"
            if name == "open" and isinstance(node.func, ast.Name):
                mode = node.args[1].value if len(node.args) > 1 else "r"
                assert "encoding" in words or "b" in mode, f"{path}:{node.lineno}"
