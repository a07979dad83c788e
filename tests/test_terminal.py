"""What is printed for a person: nothing from outside may command the terminal."""
import pytest

from minillava.terminal import exit_with, printable


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
