"""Every command of the documents is run; every flag, file and link that they name exists."""
import argparse
import ast
import io
import re
import runpy
import shlex
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed.run import get_args_parser

from minillava.images import load_image
from minillava.toy.scene import Scene
from tests import made_up
from tests.doc_commands import ARGUMENTS_ONLY, COMMANDS, DOCUMENTS, NOT_HERE, ROOT, STARTS, all_commands
from tests.screens import ROWS, SCREENS, rows_of_cells, shown_picture, shown_text, squares, text_of
from tests.servers import serving

TEXTS = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in DOCUMENTS}
QUESTION = "/set max-new-tokens 4\nWhat is it?\n"


def is_known(command):
    return command in COMMANDS or command.startswith(tuple(NOT_HERE))


def test_every_command_is_known_to_this_test():
    for command, document in all_commands().items():
        assert is_known(command), (f"{document} has a new command, `{command}`: say in COMMANDS of "
                                   "tests/doc_commands.py how it is run within seconds")
    for command in COMMANDS:
        assert command in all_commands(), f"no document has `{command}` any more: out of COMMANDS with it"


# ------------------------------------------------------------------------------- running them, in their order

RUN_HERE = [command for command in all_commands() if command in COMMANDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clone in which everything lies that the documents speak of; what commands make stays for those after them."""
    folder = tmp_path_factory.mktemp("reader")
    made_up.folders(folder)
    with serving(made_up.endpoint) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        patch.setenv("OPENAI_MODEL", "made-up")
        yield folder


def test_the_python_of_the_readme_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for code in re.findall(r"^```python\n(.*?)^```", TEXTS["README.md"], re.M | re.S):
        exec(code, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("command", RUN_HERE, ids=str)
def test_a_command_of_the_documents_runs(command, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    make_what_it_reads(command, monkeypatch)
    status = run_one(command, monkeypatch)
    out, err = capsys.readouterr()
    words = words_as_run(command)
    assert status == 0, f"{shlex.join(words)}\n{err}"
    # A chat says what went wrong and goes on.
    if "chat.py" in words:
        assert re.search(r"llava> *\S", out) or out.count("\n") == 1, out + err


def make_what_it_reads(command, monkeypatch):
    """Runs those before it whose --out it reads, where they have not run: it may be chosen alone, with -k."""
    for earlier in RUN_HERE[: RUN_HERE.index(command)]:
        made = None if only_read(earlier) else out_of(words_as_run(earlier))
        if made and not Path(made).exists() and any(reads(word, made) for word in words_as_run(command)):
            make_what_it_reads(earlier, monkeypatch)
            run_one(earlier, monkeypatch)


def out_of(words):
    if "--out" in words:
        return words[words.index("--out") + 1]
    return "runs/toy" if words[0] == "train.py" and "--recipe" not in words else None


def reads(word, made):
    """runs/own/llava is in runs/own, and the folder answers holds answers/pope.jsonl."""
    return f"{word}/".startswith(f"{made}/") or f"{made}/".startswith(f"{word}/")


def only_read(command):
    """Whether its arguments are read and nothing else."""
    return COMMANDS[command] == ARGUMENTS_ONLY or command.startswith("torchrun ")


def run_one(command, monkeypatch):
    words = words_as_run(command)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(QUESTION))
        if only_read(command):
            patch.setattr(argparse.ArgumentParser, "parse_args", read_arguments)
        return status_of(words, patch)


def words_as_run(command):
    how = COMMANDS[command]
    if how == ARGUMENTS_ONLY:
        return words_of(command)
    return words_of(how if how.startswith(STARTS) else f"{command} {how}")


def words_of(command):
    """What stands behind the pipe, behind `python`, behind `torchrun` and its own flags."""
    words = shlex.split(command.split(" | ")[-1])
    if words[0] == "torchrun":
        known = get_args_parser().parse_args(words[1:])
        words = ["python", *(["-m"] if known.module else []), known.training_script, *known.training_script_args]
    return words[1:]


def status_of(words, monkeypatch):
    """Runs a script or a module in this process, which has PyTorch already -> its exit status."""
    is_module = words[0] == "-m"
    name, *flags = words[1:] if is_module else words
    monkeypatch.setattr(sys, "argv", [name, *flags])
    try:
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / name), run_name="__main__")
    except SystemExit as exit:
        return exit.code or 0
    return 0


READ_ARGUMENTS = argparse.ArgumentParser.parse_args


def read_arguments(parser, *words):
    """In parse_args' place: what is wrong ends the script with 2 as ever, what is right with 0."""
    READ_ARGUMENTS(parser, *words)
    sys.exit(0)


# ------------------------------------------------------------------------------- the chats that they show

BLOCK = re.compile(r"^```\n(.*?)^```", re.M | re.S)
CHATS = [(name, block) for name, text in TEXTS.items() for block in BLOCK.findall(text) if "\nyou> " in block]
FIGURES = r"\d+ tokens, \d+ tokens/s, the first after [\d.]+ s, context [\d,]+ of [\d,]+"


@pytest.mark.parametrize("name, block", CHATS, ids=range(len(CHATS)))
def test_the_miniature_says_what_the_documents_say_it_does(name, block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chat_about_scene(typed_in(block), monkeypatch)
    assert what_is_said(block) == what_is_said(capsys.readouterr().out), (
        f"a chat in {name} goes otherwise now: python tests/make_docs.py records it anew")


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_shows_what_the_miniature_says_and_paints(name, tmp_path, monkeypatch, capsys):
    _, columns, lines, _ = SCREENS[name]
    svg = (ROOT / "docs" / name).read_text(encoding="utf-8")
    anew = f"docs/{name} shows something else than the chat: python tests/make_docs.py makes it anew"

    # the same chat here, as if in that terminal
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    for variable, value in (("COLORTERM", "truecolor"), ("TERM", "xterm"), ("COLUMNS", columns), ("LINES", ROWS)):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    chat_about_scene(lines, monkeypatch)
    rows = rows_of_cells(capsys.readouterr().out.replace("\n", "\r\n"), columns)

    painted = [row for row in rows if "▀" in text_of(row)]
    said = "\n".join(text_of(row) for row in rows if row not in painted)
    assert " ".join(what_is_said(shown_text(svg))) in " ".join(what_is_said(said)), anew
    assert typed_in(shown_text(svg))[-1] in lines, anew
    here, there = shown_picture("".join(squares(painted[-ROWS // 2 :]))), shown_picture(svg)
    assert here.keys() == there.keys(), anew
    assert np.mean([np.abs(np.subtract(here[place], there[place])) for place in here]) < 2, anew


def chat_about_scene(lines, monkeypatch):
    """These lines typed to the shipped miniature, about the scene of the documents."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    words = ["chat.py", "--seed", "5", "--device", "cpu", "--dtype", "bfloat16"]
    assert status_of(words, monkeypatch) == 0


def typed_in(chat):
    """What the person types; after a change of the scene the chat itself asks the last question again."""
    lines = re.findall(r"^you> (.*)$", chat, re.M)
    return [line for before, line in zip(["", *lines], lines) if not before.startswith("/scene")]


def what_is_said(chat):
    """The words of all but the person; figures of time are another machine's."""
    chat = re.sub(r"^(you>.*|\[the picture\])$", "", chat, flags=re.M)
    return re.sub(FIGURES, "", " ".join(chat.split())).split()


def test_the_scene_of_the_readme_is_the_one_of_its_command():
    torch.manual_seed(5)
    drawn, shown = np.asarray(Scene.new().picture(), float), np.asarray(load_image(ROOT / "docs/scene.png"), float)
    assert abs(drawn - shown).mean() < 1


# ------------------------------------------------------------------------------- what they name

def test_no_link_is_dead():
    for name, text in TEXTS.items():
        for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
            target = "".join(link).partition("#")[0]
            if target and "://" not in target:
                assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}, which is not there"


def test_every_file_of_the_project_that_they_name_is_there():
    for name, text in TEXTS.items():
        for path in re.findall(r"`((?:minillava|tests|docs|\.ci)/[\w./-]*)`", text):
            assert (ROOT / path).exists(), f"{name} speaks of {path}, which is not there"


def test_the_core_is_as_short_as_the_readme_says():
    table = TEXTS["README.md"].partition("## Read it")[2].partition("\n\n[")[0]
    core = re.findall(r"^\| `(minillava/\w+\.py)`", table, re.M)
    files, lines = re.search(r"The core is (\d+) files and about ([\d,]+) lines", TEXTS["README.md"]).groups()
    assert len(core) == int(files)
    assert sum(map(code_lines, core)) == pytest.approx(int(lines.replace(",", "")), rel=0.05)


def code_lines(path):
    """Lines of a file less blank ones, comments and docstrings."""
    source = (ROOT / path).read_text(encoding="utf-8")
    layout = {getattr(tokenize, name) for name in ("COMMENT", "NL", "NEWLINE", "INDENT", "DEDENT", "ENDMARKER")}
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_every_flag_that_they_name_is_one():
    sources = [path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.py"), *ROOT.glob("minillava/**/*.py")]]
    # "--lora", or a name from which a flag is made: f"--{name}"
    known = set(re.findall(r"\"(?:--)?([a-z][\w-]*)\"", "\n".join(sources)))
    for name, text in TEXTS.items():
        prose = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        for code in re.findall(r"`([^`]+)`", prose):
            if not code.startswith(STARTS):
                for flag in re.findall(r"--((?!no-)[a-z][\w-]*)", code.replace("--no-", "--")):
                    assert {flag, flag.replace("-", "_")} & known, f"{name} names --{flag}, which no command has"
