"""The commands of chat.py: each is a function of the chat and the words behind it.

Its docstring is what /help says of it. OSError or ValueError, in one line, where it cannot be done.
"""
import json
from io import BytesIO
from itertools import groupby

from minillava import terminal
from minillava.conversation import render
from minillava.explain.look import NEEDED, hottest, look, paint, seen_picture, why
from minillava.files import write, write_bytes
from minillava.generate import check_sampling
from minillava.images import load_image
from minillava.llava import IMAGE_TOKEN
from minillava.terminal import note, printable
from minillava.toy.scene import Scene
from minillava.toy.world import SIDE

SETTINGS = {  # of `stream`: type, value at the start, meaning
    "temperature": (float, 0.0, "0: always the likeliest word"),
    "top-p": (float, 1.0, "draw among the likeliest words that together have this probability"),
    "top-k": (int, 0, "draw among so many of the likeliest words; 0: among all"),
    "repetition-penalty": (float, 1.0, "above 1: words that were said become less likely"),
    "max-new-tokens": (int, 512, "where an answer is cut"),
}


def introduce(model, name):
    """Which model this is, what it knows, and a question to try."""
    tensors = [*model.parameters(), *model.buffers()]
    megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})
    note(f"{name or 'The shipped miniature'}: {megabytes:,.1f} MB, {model.device}, "
         f"{' and '.join(dtypes)}, template {model.config.template}")
    if model.config.vision_config.image_size == SIDE:  # no CLIP's are so small
        note("It knows pictures of coloured shapes: what is where, how many, how large.")
    note("Try: What do you see in the image? /help lists the commands.")


def open_image(chat, path):
    """FILE: look at another picture, and start anew"""
    if not path:
        raise ValueError("name the picture, as in /image photo.jpg; or drag it into the window")
    chat.start(load_image(terminal.typed_path(path)))


def draw_scene(chat, _):
    """draw another scene of the toy world, and start anew"""
    scene = Scene.new()
    chat.start(scene.picture(), scene)


def change_scene(chat, change):
    """CHANGE: alter the scene (red circle to top-left; circle to blue; drop red star; add small
    blue star center), and ask the last question again, the teacher too"""
    if chat.scene is None:
        raise ValueError("this picture is no scene of the toy world; /new draws one")
    scene = chat.scene.changed(change)
    question = chat.take_back() if chat.turns else ""
    chat.start(scene.picture(), scene)
    if question:
        print(f"you> {printable(question)}")
        chat.ask(question)
        note(f"teacher> {scene.answer(question)}", "bold")


def show(chat, _):
    """the picture once more"""
    chat.show(chat.image)


def show_look(chat, word):
    """[WORD]: where it looked for its answer, or for that word of it; also in look.png"""
    show_map(chat, look, word, "look.png")


def show_why(chat, word):
    """[WORD]: what of the picture it needed for that; also in why.png"""
    show_map(chat, why, word, "why.png", least=NEEDED)


def show_map(chat, method, word, file, least=0.0):
    """least: where nothing is as hot, the hottest patch is chance, and the picture stays dark."""
    heat = method(chat.model, chat.tokenizer, chat.turns, chat.image, word, chat.cache)
    painted = paint(seen_picture(chat.model, chat.image), heat, least)
    chat.show(painted)
    painted.save(file)
    if heat.max() < least:
        found = "none alone: whichever patch is hidden, this stays as likely"
    else:
        row, column = hottest(heat)
        found = f"hottest: row {row + 1}, column {column + 1} of {len(heat)} x {len(heat)} patches"
    note(f"{found}; saved as {file}")


def show_tokens(chat, _):
    """how all of this was cut into tokens: what the model sees"""
    if not chat.turns:
        raise ValueError("nothing has been asked yet")
    config = chat.model.config
    ids, _ = render(chat.turns, chat.tokenizer, config.template, config.image_tokens)
    terminal.show_pieces(token_texts(ids, chat.tokenizer))


def token_texts(ids, tokenizer):
    """Token by token what the model sees, an image as one: ["<s>", "A", " chat", "[image x576]"]"""
    texts = []
    for is_image, run in groupby(ids, key=lambda i: i == IMAGE_TOKEN):
        run = list(run)
        texts += [f"[image x{len(run)}]"] if is_image else [tokenizer.spell([i]) for i in run]
    return texts


def retry(chat, _):
    """the last question once more"""
    chat.ask(chat.take_back())


def undo(chat, _):
    """take back the last question and its answer"""
    note(f"taken back: {chat.take_back()}")


def clear(chat, _):
    """start anew with this picture"""
    chat.start(chat.image, chat.scene)


def save(chat, name):
    """FILE.json: the chat as LLaVA-JSON, with its picture: data to train on"""
    path = terminal.typed_path(name)
    if path.suffix != ".json" or not chat.turns:
        raise ValueError("name a .json file once something was asked, as in /save chat.json")
    write_sample(path, chat.turns, chat.image)
    note(f"saved in {path}, the picture beside it; train.py --check-data reads them")


def write_sample(path, turns, image):
    """One conversation as a LLaVA-JSON file, its PIL image beside it as a PNG of the same name.

    ValueError if one of the two files is there already. Where the disk is full neither stays.
    """
    picture = path.with_suffix(".png")
    if path.exists() or picture.exists():
        raise ValueError(f"{path} or its picture is there already; name another file")
    png = BytesIO()
    image.save(png, "PNG")
    conversations = [{"from": role, "value": text} for role, text in turns]
    sample = {"id": path.stem, "image": picture.name, "conversations": conversations}

    write_bytes(picture, png.getvalue())
    try:
        write(path, json.dumps([sample], ensure_ascii=False, indent=1) + "\n")
    except OSError:
        picture.unlink()
        raise


def change_setting(chat, words):
    """NAME VALUE: how words are drawn, as in /set temperature 0.2; alone: how they are"""
    name, _, value = words.partition(" ")
    if name:
        changed = {**chat.settings, keyword(name): read_setting(name, value)}
        check_sampling(**changed)
        chat.settings = changed
    note(", ".join(f"{name} {chat.settings[keyword(name)]}" for name in SETTINGS))


def keyword(name):
    return name.replace("-", "_")


def read_setting(name, value):
    if name not in SETTINGS:
        raise ValueError(f"there is no setting {name!r}, only {', '.join(SETTINGS)}")
    kind = SETTINGS[name][0]
    try:
        return kind(value)
    except ValueError:
        whole = "whole " if kind is int else ""
        raise ValueError(f"{name} is a {whole}number, not {value!r}") from None


def help(chat, _):
    """this list"""
    for name, command in COMMANDS.items():
        note(f"{name:<7} {' '.join(command.__doc__.split())}", "plain", indent=" " * 8)


def leave(chat, _):
    """or Ctrl-D: leave"""
    raise EOFError


COMMANDS = {
    "/image": open_image, "/new": draw_scene, "/scene": change_scene, "/show": show,
    "/look": show_look, "/why": show_why, "/tokens": show_tokens,
    "/retry": retry, "/undo": undo, "/clear": clear, "/save": save,
    "/set": change_setting, "/help": help, "/quit": leave,
}
