"""What is printed for a person: nothing from outside may command the terminal."""
import os

import pytest
import torch
from PIL import Image

from minillava import terminal
from minillava.terminal import (TRUE_COLOR, WrappedText, color_depth, completions, errors_in_one_line, exit_with,
                                half_blocks, is_dragged_file, note, palette_index, printable, show_pieces, typed_path)


@pytest.mark.parametrize("text, shown", [
    ("a\x1b[2Jb\x07", "a\\x1b[2Jb\\x07"),
    ("line\n\tindented\r", "line\n\tindented\\r"),
    ("\x9b31m", "\\x9b31m"),                            # the one-byte form of ESC [
    ("photo\u202egpj.exe", "photo\\u202egpj.exe"),      # would be shown as photoexe.jpg
    ("caf\udce9", "caf\\udce9"),                        # a file name that is no UTF-8
    ("naïve 圖\u3000片 👩\u200d🚀 a\u00a0b", "naïve 圖\u3000片 👩\u200d🚀 a\u00a0b"),
])
def test_what_a_terminal_would_obey_is_shown(text, shown):
    assert printable(text) == shown
    printable(text).encode()


def test_an_error_is_one_line_and_the_exit_code_says_whose_it_is(capsys):
    with pytest.raises(SystemExit) as ended:
        exit_with(FileNotFoundError("there is no image a\nb\x1b]0;title\x07"))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: there is no image a\\nb\\x1b]0;title\\x07\n"


def wrapped(capsys, pieces, columns, start=0):
    text = WrappedText(columns, start)
    for piece in pieces:
        text.put(piece)
    text.end()
    return capsys.readouterr().out


@pytest.mark.parametrize("pieces, shown", [
    (["The sh", "ape is ", "red", "."], "The shape\nis red.\n"),
    (["a ", "\n", "b"], "a \nb\n"),
    (["0123456789"], "0123456789\n"),
    (["ab 0123456789ab"], "ab\n0123456789ab\n"),              # longer than a line: the terminal breaks it
    (["x \x1b[2J"], "x \\x1b[2J\n"),
    (["図形は三つあります"], "図形は三つ\nあります\n"),         # two columns each
    (["e\u0301" * 10 + " a"], "e\u0301" * 10 + "\na\n"),        # an accent takes no column
])
def test_lines_break_between_words_however_the_text_comes(capsys, pieces, shown):
    assert wrapped(capsys, pieces, 10) == shown
    assert wrapped(capsys, list("".join(pieces)), 10) == shown
    assert wrapped(capsys, pieces, 0) == printable("".join(pieces)) + "\n"


def test_the_first_line_has_what_room_there_is_behind_the_prompt(capsys):
    assert wrapped(capsys, ["one two"], 10, start=5) == "one\ntwo\n"


@pytest.mark.parametrize("color, shown", [
    ("", "<s>| What|\ncolor?|↵\n|[image\nx36]\n"),
    ("1", "\x1b[36m<s>\x1b[0m\x1b[35m What\x1b[0m\x1b[36m\ncolor?\x1b[0m\x1b[35m↵\x1b[0m\x1b[36m\n[image\nx36]\x1b[0m\n"),
])
def test_pieces_break_between_words_too_and_are_told_apart(color, shown, monkeypatch, capsys):
    monkeypatch.setattr("minillava.terminal.color_depth", lambda: color and TRUE_COLOR)
    monkeypatch.setattr("minillava.terminal.width", lambda: 10)
    show_pieces(["<s>", " What", " color?", "\n", "[image x36]"])
    assert capsys.readouterr().out == shown


def test_a_note_in_a_pipe_is_one_line(capsys):
    note("a word " * 40 + "\x1b[1m")
    assert capsys.readouterr().out == "a word " * 40 + "\\x1b[1m\n"


@pytest.mark.parametrize("size", [(96, 96), (20, 2000), (2000, 20), (1, 1), (640, 480)])
@pytest.mark.parametrize("depth, escape", [(TRUE_COLOR, "38;2;"), (256, "38;5;")])
def test_a_picture_stays_within_its_columns_and_rows(size, depth, escape):
    lines = half_blocks(Image.new("RGB", size, "red"), 40, 10, depth).split("\n")
    assert 1 <= len(lines) <= 10
    assert all(1 <= line.count("▀") <= 40 and escape in line for line in lines)


@pytest.mark.parametrize("environment, depth", [
    ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, TRUE_COLOR), ({"TERM": "xterm-256color"}, 256),
    ({"TERM": "xterm-kitty"}, 256), ({"TERM": "xterm"}, 0), ({"TERM": "dumb", "COLORTERM": "truecolor"}, 0), ({"WT_SESSION": "1"}, TRUE_COLOR),
    ({"TERM": "xterm-256color", "COLORTERM": "truecolor", "NO_COLOR": "1"}, 0)])
def test_colours_are_those_that_the_terminal_has(monkeypatch, environment, depth):
    for name in ("TERM", "COLORTERM", "NO_COLOR", "WT_SESSION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert color_depth() == 0  # pytest reads the output: no terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert color_depth() == depth


def test_the_palette_of_256_has_the_nearest_colour():
    assert palette_index((0, 0, 0)) == 16 and palette_index((255, 255, 255)) == 231
    assert palette_index((255, 0, 0)) == 196 and palette_index((95, 135, 255)) == 69
    assert palette_index((128, 128, 128)) == 244


def test_paths_as_people_type_and_drag_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "it's a photo.png"
    file.touch()
    quoted = str(file).replace("'", "\\'").replace(" ", "\\ ")
    for typed in (file, f'"{file}"', quoted, "~/it's a photo.png", f"file://{file}",
                  f"file://{str(file).replace(' ', '%20')}"):
        assert typed_path(str(typed)) == file
    with pytest.raises(ValueError, match="not fetched"):
        typed_path("HTTPS://example.org/a.png")
    assert str(typed_path("Anna's dog's.png")) == "Anna's dog's.png"  # what is not there is named as it was typed
    assert is_dragged_file(str(file)) and not is_dragged_file("/" + 300 * "a question about it, ")


def test_tab_offers_commands_and_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pictures").mkdir()
    (tmp_path / "my pictures" / "[a].png").touch()
    (tmp_path / "my pictures" / "[b].png").touch()
    commands = ["/image", "/save", "/set"]
    assert completions("/s", commands, 1) == ["save ", "set "]
    assert completions("/image my p", commands, 10) == ["pictures" + os.sep]
    assert completions("/image my pictures/[", commands, 19) == ["[a].png", "[b].png"]
    assert completions("what is", commands, 5) == []


@pytest.mark.parametrize("error, code, said", [
    (ValueError("wrong\x1b[2J"), 2, "error: wrong\\x1b[2J\n"), (KeyboardInterrupt(), 130, "\nstopped\n"),
    (torch.OutOfMemoryError("CUDA out of memory."), 2, "error: CUDA out of memory.\n")])
def test_wrong_input_and_ctrl_c_end_a_command_without_a_traceback(capsys, error, code, said):
    with pytest.raises(SystemExit) as ended, errors_in_one_line():
        raise error
    assert ended.value.code == code and capsys.readouterr().err == said


def test_what_another_rank_alone_finds_wrong_is_said_too(capsys, monkeypatch):
    waits = []
    monkeypatch.setattr(terminal.time, "sleep", waits.append)  # in which torchrun ends it, if rank 0 says the same
    with pytest.raises(SystemExit) as ended, errors_in_one_line(rank=1):
        raise ValueError("there is no CLIP here")
    assert ended.value.code == 2 and capsys.readouterr().err == "error: there is no CLIP here\n" and waits == [3.0]
