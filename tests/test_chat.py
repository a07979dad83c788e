"""The chat as a person uses it: in a terminal, in a pipe, from a script."""
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

import chat
from chat import main  # noqa: F401: what `run` calls
from minillava.checkpoint import load_llava, save_llava
from minillava.data import LlavaData
from minillava.explain.commands import COMMANDS, write_sample
from minillava.generate import stream
from minillava.toy import world
from minillava.toy.scene import Scene
from tests.pseudo_terminal import ESCAPES, ROOT, PseudoTerminal

SHAPES = [("red circle", [3, 3, 29, 29]), ("blue star", [67, 35, 93, 61])]
HOW_MANY = "How many shapes are there?"


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    path = tmp_path_factory.mktemp("chat") / "my scene's.png"
    world.draw(SHAPES, random.Random(0)).save(path)
    (path.parent / "no-image.txt").write_text("words")
    return path


def save_endless(folder, context):
    """A miniature that never ends an answer, with so many tokens of context."""
    model, tokenizer = load_llava(device="cpu")
    language = replace(model.config.language_config, max_position_embeddings=context)
    model.config = replace(model.config, language_config=language)
    model.language_model.lm_head.weight.data[tokenizer.eos_id] *= -1
    save_llava(model, tokenizer, folder)
    return folder


# ---- in a terminal ----

@pytest.fixture(scope="module", params=[80, 40])
def terminal(request, scene):
    """One chat for the tests of this section, at two widths."""
    terminal = PseudoTerminal(ROOT / "chat.py", "--image", scene, columns=request.param, rows=20, cwd=scene.parent)
    terminal.columns = request.param
    terminal.first_screen = terminal.read_until("you> ")
    yield terminal
    assert terminal.end() == 0


def lines_of(text):
    return text.replace("you> ", "").split("\n")


def test_the_introduction_stays_on_the_first_screen(terminal):
    lines = terminal.first_screen.split("\n")
    introduction = [line for line in lines[:-1] if "▀" not in line]
    assert "".join(introduction).startswith("The shipped miniature: ")
    assert len(lines) <= 20 and len(introduction) <= (3 if terminal.columns == 80 else 6)
    assert 2 <= sum("▀" in line for line in lines) <= 10
    assert max(map(len, lines)) <= terminal.columns


def test_an_answer_is_wrapped_between_words_and_has_its_figures(terminal):
    shown = terminal.ask("Describe the image in detail.")
    assert "There is a large red circle at the top-left." in " ".join(shown.split())
    assert max(map(len, lines_of(shown))) <= terminal.columns
    figures = r"\d+ tokens, \d+ tokens/s, the first after [\d.]+ s, context \d+ of 1,024"
    assert re.search(figures, " ".join(shown.split()))


def test_arrow_keys_edit_the_line_and_bring_back_the_last_one(terminal):
    typed = "How many shapes are here?" + "\x1b[D" * 5 + "t" + "\x1b[C"
    assert "There are two shapes." in " ".join(terminal.ask(typed).split())
    assert "There are two shapes." in " ".join(terminal.ask("\x1b[A").split())
    assert "[A" not in ESCAPES.sub("", terminal.seen)


def test_a_paste_of_several_lines_is_one_message(terminal):
    shown = terminal.ask(f"\x1b[200~Look at it.\nTake your time.\n{HOW_MANY}\x1b[201~")
    assert shown.count("llava> ") == 1
    # Where a line is broken between words depends on what stands before it.
    assert "it.↵\nTake your time.↵\n" in terminal_text(terminal.ask("/tokens"))


def terminal_text(shown):
    return re.sub(r" *\n", "\n", shown)


def test_three_quotes_open_a_message_of_several_lines(terminal):
    terminal.type('"""What is\r')
    terminal.read_until("... ")
    shown = terminal.ask('in the image?"""')
    assert shown.count("llava> ") == 1


def test_an_empty_line_does_nothing_and_ctrl_c_gives_up_the_line(terminal):
    assert "llava>" not in terminal.ask("")
    terminal.type("Is there a")
    terminal.read_until("Is there a")
    terminal.interrupt()
    assert "There are two shapes." in " ".join(terminal.ask(HOW_MANY).split())


def test_tab_completes_commands_and_paths(terminal, scene):
    terminal.type("/ima\t")
    terminal.read_until("/image ")
    terminal.type(f"{scene.parent}/my sc\t")
    terminal.read_until("scene's.png", seconds=5)
    assert "▀" in terminal.ask("")


@pytest.mark.parametrize("form", ["{}", '"{}"', "{escaped}", "file://{}"])
def test_a_picture_is_found_however_its_path_was_dragged_here(terminal, scene, form):
    escaped = str(scene).replace(" ", "\\ ").replace("'", "\\'")
    assert "▀" in terminal.ask("/image " + form.format(scene, escaped=escaped))


def test_a_path_dragged_in_alone_is_opened(terminal, scene):
    assert "▀" in terminal.ask(f"{scene}") and "▀" in terminal.ask(f'"{scene}"')


def test_a_paste_is_one_message_where_readline_does_not_join_it():
    program = ("import sys; sys.modules['readline'] = None; from minillava.terminal import read_message; "
               "print(repr(read_message('you> ')))")
    terminal = PseudoTerminal("-c", program)
    terminal.read_until("you> ")
    terminal.type("Look at it.\nTake your time.\n\nWhat is it?\n")
    assert r"'Look at it.\nTake your time.\n\nWhat is it?'" in terminal.read_until("it?'\n")


@pytest.mark.parametrize("line, said", [
    ("/image", "name the picture"),
    ("/image https://example.org/cat.png", "not fetched from the web"),
    ("/image no-image.txt", "not an image"),
    ("/image nowhere.png", "there is no image nowhere.png"),
    ("/what", "there is no command /what"),
    ("/set temperature nan", "the temperature is 0 or more"),
    ("/set top-k 1.5", "top-k is a whole number"),
    ("/set colour red", "there is no setting 'colour'"),
    ("/scene red circle to blue", "no scene of the toy world"),
])
def test_what_cannot_be_is_one_line_and_the_chat_goes_on(terminal, line, said):
    shown = terminal.ask(line)
    assert said in " ".join(shown.split()) and "Traceback" not in shown


def test_each_command_does_what_help_says(terminal, scene, tmp_path):
    shown = terminal.ask("/help")
    assert all(f"\n{name} " in shown for name in COMMANDS)
    assert "nothing has been asked yet" in terminal.ask("/clear") + terminal.ask("/undo")
    terminal.ask("What color is the circle?")
    assert "▀" in terminal.ask("/show")
    assert "[image x36]" in terminal.ask("/tokens")
    for command in ("look", "why"):
        shown = " ".join(terminal.ask(f"/{command} red").split())
        assert "▀" in shown and "hottest: row 1" in shown.replace("row 2", "row 1"), shown  # at the top
        assert Image.open(scene.parent / f"{command}.png").size == (288, 288)
    assert "does not say 'green'" in terminal.ask("/why green")
    assert "red" in terminal.ask("/retry")
    assert "taken back: What color is the circle?" in terminal.ask("/undo")
    terminal.ask("What color is the circle?")
    assert "temperature 0.5" in " ".join(terminal.ask("/set temperature 0.5").split())
    terminal.ask("/set temperature 0")
    for name in ("", tmp_path / "saved", tmp_path / "saved.png"):  # the picture would be written over
        assert "name a .json file" in " ".join(terminal.ask(f"/save {name}").split())
    file = tmp_path / "saved.json"
    assert "saved in" in terminal.ask(f"/save {file}")
    saved = json.loads(file.read_text())
    assert saved[0]["conversations"] == [{"from": "human", "value": "<image>\nWhat color is the circle?"},
                                         {"from": "gpt", "value": "The circle is red."}]
    assert "there already" in " ".join(terminal.ask(f"/save {file}").split())
    model, tokenizer = load_llava(device="cpu")
    assert LlavaData(file, tmp_path, tokenizer, model.config)[0]["bad"] == []


def test_ctrl_c_stops_the_answer_and_keeps_the_chat(scene, tmp_path):
    model = save_endless(tmp_path / "llava", context=50_000)
    terminal = PseudoTerminal("chat.py", "--model", model, "--image", scene, "--max-new-tokens", 40_000)
    terminal.read_until("you> ")
    terminal.type("Describe the image in detail.\r")
    terminal.read_until("There is")
    terminal.type("\x03")
    shown = terminal.read_until("you> ")
    assert "..." in shown and "Traceback" not in shown and "cut after" not in shown
    assert "cut after 5 tokens" in terminal.ask("/set max-new-tokens 5") + terminal.ask(HOW_MANY)
    assert terminal.end() == 0


def test_a_full_context_loses_the_oldest_turns(scene, tmp_path):
    model = save_endless(tmp_path / "llava", context=320)
    terminal = PseudoTerminal("chat.py", "--model", model, "--image", scene, "--max-new-tokens", 120)
    terminal.read_until("you> ")
    assert "cut after 120 tokens" in terminal.ask("Describe the image in detail.")
    assert "nearly full" in terminal.ask("Go on.")
    shown = " ".join(terminal.ask("And now?").split())
    assert "'Describe the image in detail.' and its answer leave it" in shown
    assert terminal.end() == 0


def test_without_colours_there_are_no_escapes(scene):
    terminal = PseudoTerminal("chat.py", "--image", scene, NO_COLOR="1")
    terminal.read_until("you> ")
    assert "a picture of 96 x 96" in terminal.seen and "\x1b[" not in terminal.seen.replace("\x1b[?2004h", "")
    assert terminal.end() == 0


def test_a_dumb_terminal_gets_no_escapes_at_all(scene):
    terminal = PseudoTerminal("chat.py", "--image", scene, TERM="dumb")
    terminal.read_until("you> ")
    assert "\x1b" not in terminal.seen
    assert terminal.end() == 0


# ---- in a pipe ----

def command(*arguments, typed=None):
    return subprocess.run([sys.executable, "chat.py", *map(str, arguments)], cwd=ROOT, input=typed,
                          capture_output=True, text=True)


def test_a_pipe_gets_the_conversation_without_escapes(scene):
    typed = ("What shape is at the top-left?\n/image nowhere.png\n/what\nWhere is the blue star?\n/clear\n"
             "How many circles are there?\n")
    done = command("--image", scene, typed=typed)
    assert done.returncode == 0 and not done.stderr and "\x1b" not in done.stdout
    for text in ("a circle.", "there is no image nowhere.png", "no command /what",
                 "The blue star is at the middle-right.", "There is one circle."):
        assert text in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--prompt", HOW_MANY]])
def test_a_closed_pipe_ends_it_quietly(scene, arguments):
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    program = subprocess.Popen([sys.executable, "chat.py", "--image", scene, *arguments], cwd=ROOT, env=buffered,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    program.stdout.close()
    _, errors = program.communicate(f"{HOW_MANY}\n".encode() * 3)
    assert (program.returncode, errors) == (0, b"")


@pytest.mark.parametrize("typed, code, said", [
    ("<&-", 0, ""), ("0>/dev/null", 0, ""), ("--prompt 'Hello!' >&-", 0, ""), ("--prompt - <&-", 2, "error: the question is empty"),
    ("--prompt - <&- 2>&-", 2, "")])
def test_a_stream_that_the_shell_has_closed_is_an_empty_one(scene, typed, code, said):
    line = f'exec "{sys.executable}" chat.py --image "{scene}" {typed}'
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and done.stderr.startswith(said) and bool(done.stderr) == bool(said)


# ---- one question ----

def test_the_answer_alone_is_printed(run, scene):
    done = run("--image", scene, "--prompt", HOW_MANY)
    assert (done.returncode, done.out, done.err) == (None, "There are two shapes.\n", "")


def test_without_a_picture_it_says_what_the_answer_is_about(run):
    done = run("--prompt", HOW_MANY)
    path = done.err.split(", ")[-1].strip()
    assert run("--image", path, "--prompt", HOW_MANY).out == done.out


def test_a_seed_draws_the_same_scene_again(run):
    shown = [run("--prompt", "Describe the image in detail.", "--seed", seed).out for seed in (1, 1, 2)]
    assert shown[0] == shown[1] != shown[2]


def test_several_questions_are_one_batch_and_its_lines_are_json(run, scene, tmp_path, monkeypatch):
    other = tmp_path / "one.png"
    world.draw(SHAPES[:1], random.Random(0)).save(other)
    monkeypatch.setattr(sys, "stdin", io.StringIO("What color is the circle?\n"))
    done = run("--image", other, "--prompt", HOW_MANY, "--prompt", "-", "--image", scene, "--json")
    lines = [json.loads(line) for line in done.out.splitlines()]
    assert [line["answer"] for line in lines] == ["There is one shape.", "The circle is red."]
    assert all(line["tokens"] > 3 and line["seconds"] > 0 and line["batch"] == 2 for line in lines)
    assert run("--image", scene, "--prompt", HOW_MANY, "--prompt", HOW_MANY).out == "There are two shapes.\n" * 2


@pytest.mark.parametrize("arguments, message", [
    (["--image", "nowhere.png"], "there is no image nowhere.png"),
    (["--image", "README.md"], "README.md is not an image"),
    (["--image", "{broken}"], "is damaged"),
    (["--image", "https://example.org/cat.png"], "not fetched from the web"),
    (["--image", "no\x1b[2J.png"], "there is no image no\\x1b[2J.png"),
    (["--model", "nowhere"], "there is no folder nowhere"),
    (["--model", "tests"], "tests has no config.json"),
    (["--temperature", "-1"], "temperature"),
    (["--temperature", "nan"], "temperature"),
    (["--temperature", "hot"], "--temperature"),
    (["--top-p", "0"], "top-p"),
    (["--max-new-tokens", "0"], "max-new-tokens"),
    (["--stop", ""], "stop is a list of texts, of which none is empty"),
    (["--device", "tpu9"], "there is no device 'tpu9' here"),
    (["--dtype", "int8"], "dtype 'int8'"),
    (["--prompt", " "], "the question is empty"),
    (["--image", "{scene}", "--image", "{scene}", "--prompt", "a", "--prompt", "b"], "2 images for 3 questions"),
])
def test_what_is_wrong_is_said_in_one_line(run, scene, tmp_path, arguments, message):
    broken = tmp_path / "broken.png"
    broken.write_bytes(scene.read_bytes()[:60])
    done = run("--prompt", "Hi!", *(argument.format(broken=broken, scene=scene) for argument in arguments))
    assert done.returncode == 2 and not done.out and "\x1b" not in done.err
    last = done.err.splitlines()[-1]
    assert message in last and last.startswith(("error: ", "main: error: "))


def test_json_without_a_question_is_an_error(run, scene):
    done = run("--image", scene, "--json")
    assert done.returncode == 2 and "--json goes with --prompt" in done.err


def test_weights_that_compute_nan_are_an_error(run, tmp_path):
    model, tokenizer = load_llava(device="cpu")
    model.language_model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    save_llava(model, tokenizer, tmp_path / "llava")
    done = run("--model", tmp_path / "llava", "--prompt", HOW_MANY)
    assert done.returncode == 2 and not done.out and "NaN" in done.err


def test_a_seed_draws_the_same_words_again(run, scene):
    draw = ["--image", scene, "--prompt", "Describe the image in detail.", "--temperature", "3"]
    assert run(*draw, "--seed", 1).out == run(*draw, "--seed", 1).out
    assert len({run(*draw).out for _ in range(3)}) > 1


# ---- the conversation ----

@pytest.fixture
def talk():
    """A chat about SHAPES, in this process."""
    model, tokenizer = load_llava(device="cpu", dtype=torch.float32)
    talk = chat.Chat(model, tokenizer, {"max_new_tokens": 40}, preview=False)
    scene = Scene(SHAPES, seed=0)
    talk.start(scene.picture(), scene)
    return talk


def test_ten_turns_answer_as_a_fresh_prompt_would_and_cost_only_their_own_tokens(talk, monkeypatch):
    """With turns that are taken back, asked again and left out in between."""
    run = count_tokens(talk.model, monkeypatch)
    questions = [HOW_MANY, "What color is the circle?", "Where is the blue star?", "Is there a green star?",
                 "Hello!", "What shape is blue?", "Describe the image in detail.", "Is the circle large?",
                 "Count the stars.", "Which shape is nearest to the star?"]
    for number, question in enumerate(questions):
        run.clear()
        talk.take(question)
        assert run[0] < (150 if number == 0 else 90) and set(run[1:]) <= {1}
        assert talk.turns[-1][1] == fresh_answer(talk)
        if number in (3, 6):
            talk.take("/undo")
            talk.take("/retry")
            assert talk.turns[-1][1] == fresh_answer(talk)
    assert len(talk.turns) == 16


def count_tokens(model, monkeypatch):
    """How many tokens each later call of the language model runs, in a list."""
    run, forward = [], model.language_model.forward

    def counted(embeddings, cache=None):
        run.append(embeddings.shape[1])
        return forward(embeddings, cache)
    monkeypatch.setattr(model.language_model, "forward", counted)
    return run


def fresh_answer(talk):
    return "".join(stream(talk.model, talk.tokenizer, talk.turns[:-1], talk.image, 40)).strip()


def test_what_needs_no_patch_in_particular_is_said_to_need_none(talk, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for question, found in (("Is there a green star?", "none alone"), ("What color is the circle?", "hottest")):
        talk.take(question)
        talk.take("/why")
        assert capsys.readouterr().out.splitlines()[-1].startswith(found)
        lit = max(high for _, high in Image.open("why.png").getextrema()) > 100
        assert lit == (found == "hottest")


def test_a_scene_is_changed_and_the_last_question_asked_again_of_model_and_teacher(talk, capsys):
    talk.take("What color is the star?")
    for change, answer in [("star to red", "The star is red."), ("star to center", "The star is red."),
                           ("drop star", "There is no star in the image."),
                           ("add small green star bottom-left", "The star is green."), ("green star to large",
                                                                                       "The star is green.")]:
        capsys.readouterr()
        talk.take(f"/scene {change}")
        shown = capsys.readouterr().out.splitlines()
        assert shown[:2] == ["you> What color is the star?", f"llava> {answer}"]
        assert shown[-1] == f"teacher> {answer}"
    assert len(talk.turns) == 2
    assert talk.scene.shapes[0] == SHAPES[0] and talk.scene.answer("How big is the green star?") == "The green star is large."


@pytest.mark.parametrize("change, said", [
    ("", "a scene is changed as in"), ("make it nice", "a scene is changed as in"),
    ("blue circle to red", "0 shapes are 'blue circle'"), ("to red", "a scene is changed as in"),
    ("star to top-left", "a shape at the top-left already"), ("star to heaven", "'heaven' is no color"),
    ("add purple", "a new shape wants one of circle"), ("add red star at the top-left", "a shape at the top-left already"),
    ("add tiny red star center", "'tiny' is no size"),
    ("drop", "a scene is changed as in"), ("drop large", "2 shapes are 'large'")])
def test_a_change_that_cannot_be_leaves_the_scene(change, said):
    with pytest.raises(ValueError, match=said):
        Scene(SHAPES, seed=0).changed(change)


def test_a_shape_that_is_not_clear_is_asked_back_among_those_it_may_be():
    shapes = [*SHAPES, ("blue square", [3, 67, 29, 93])]
    with pytest.raises(ValueError, match="2 shapes are 'blue', .*: large blue star at middle-right, large blue square"):
        Scene(shapes, seed=0).changed("drop blue")
    with pytest.raises(ValueError, match="0 shapes are 'green', .*: large red circle at top-left, "):
        Scene(shapes, seed=0).changed("drop green")
    # nor does the teacher guess which of two is meant, though the question is one of the training's
    twice = Scene([*shapes, ("green star", [35, 3, 61, 29])], seed=0)
    assert "where they have one answer here" in twice.answer("What color is the star?")


def test_the_picture_stays_when_old_turns_leave(talk, capsys):
    talk.cache.max_length = 160
    for question in (HOW_MANY, "Hello!", "What color is the circle?", "Where is the blue star?") * 2:
        talk.take(question)
    assert "the context is full" in capsys.readouterr().out
    assert talk.turns[0][1].startswith("<image>\n") and len(talk.turns) < 16
    assert talk.turns[-1] == ("gpt", "The blue star is at the middle-right.")


def test_ctrl_c_keeps_what_was_said_so_far_and_the_chat_goes_on(talk, capsys, monkeypatch):

    def interrupted(*args, **settings):
        for count, piece in enumerate(stream(*args, **settings)):
            if count == 3:
                raise KeyboardInterrupt
            yield piece
    with monkeypatch.context() as patched:
        patched.setattr(chat, "stream", interrupted)
        talk.take("Describe the image in detail.")
    question, (role, said) = talk.turns
    whole = "".join(stream(talk.model, talk.tokenizer, [question], talk.image, 40)).strip()
    assert role == "gpt" and 0 < len(said) < len(whole) and whole.startswith(said)
    assert f"{said} ..." in capsys.readouterr().out
    talk.take(HOW_MANY)
    assert talk.turns[-1][1] == fresh_answer(talk)


@pytest.mark.parametrize("fault", [torch.OutOfMemoryError("out of memory"), ValueError("NaN"), KeyboardInterrupt()])
def test_what_fails_leaves_the_conversation_as_it_was(talk, capsys, monkeypatch, fault):
    talk.take(HOW_MANY)
    before, scene = list(talk.turns), talk.scene

    def failing(*args, **settings):
        raise fault
    with monkeypatch.context() as patched:
        patched.setattr(chat, "stream", failing)
        for message in ("/retry", "/scene drop star", "Where is the circle?"):
            with pytest.raises(type(fault)):
                talk.take(message)
            assert talk.turns == before and talk.scene is scene
    with pytest.raises(ValueError, match="start anew"):
        talk.take("How many? " * 600)
    assert talk.turns == before and "leave it" not in capsys.readouterr().out
    talk.take("/retry")
    assert talk.turns == before


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of that kind")
@pytest.mark.parametrize("limit", [50, 300])  # the picture takes 71 bytes, the JSON 500
def test_a_chat_that_does_not_fit_on_the_disk_leaves_no_half_of_it(tmp_path, limit):
    """A limit on what a file may hold stands for a full disk."""
    import resource
    path, turns = tmp_path / "chat.json", [("human", "<image>\nWhat?"), ("gpt", "A circle. " * 40)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError):
            write_sample(path, turns, Image.new("RGB", (1, 1)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
    write_sample(path, turns, Image.new("RGB", (1, 1)))
    assert json.loads(path.read_text())[0]["image"] == "chat.png"
