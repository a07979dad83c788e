"""What people say beside questions about a scene, and what fits: the part of the instruction data that teaches doubt.

LLaVA-1.5 mixes text-only conversations into its data and adds questions that have no answer, so that a model learns to say
so. Here both are written by rule. talk.txt holds the lines, each with many wordings; this file puts them into conversations:

    about a scene      its questions, with follow-ups ("And its color?"), repetitions and any other line between them
    about no scene     a picture that is none of the toy world's gets NO_SCENE for an answer, whatever is asked about it
    about no picture   lines alone, as text

A conversation is a list of (question, answer).
"""
import re
from functools import lru_cache
from pathlib import Path

from minillava.toy.annotations import as_fractions
from minillava.toy.objects import a, join, name_of, read
from minillava.toy.questions import BRIEF, DETAIL, QUESTIONS
from minillava.toy.teacher import small_talk
from minillava.toy.world import COLORS, PLACES, SHAPES, SIZES, make_scene

NO_SCENE = "This is no picture of my world: I know only circles, squares, triangles and stars."
WHICH = "Which shape do you mean?"
# How often each group of talk.txt is drawn; those about what a picture might show have a row of their own.
PICTURED = {"absent": 14, "unseen": 12, "pale": 4}
SHARES = PICTURED | {"greeting": 8, "thanks": 8, "goodbye": 7, "who": 11, "able": 11, "language": 12, "beyond": 20,
                     "filler": 5}


# ---------------------------------------------------------------------------------------------------------- wordings

@lru_cache
def groups():
    """talk.txt -> {group: (answer, lines)}; a list of words has the answer ""."""
    found = {}
    for line in Path(__file__).with_name("talk.txt").read_text(encoding="utf-8").splitlines():
        if head := re.fullmatch(r"\[(\w+)\] ?(.*)", line):
            lines = []
            found[head[1]] = head[2], lines
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def worded(text, rng):
    """'{Hi|Hello} <person>' -> 'Hello Anna': one of the alternatives in braces, a word of a list in angle brackets."""
    while choice := re.search(r"\{([^{}]*)\}", text):
        text = text[: choice.start()] + rng.choice(choice[1].split("|")) + text[choice.end() :]
    while name := re.search(r"<(\w+[a-z])>", text):
        word = worded(rng.choice(groups()[name[1]][1]), rng)
        text = text[: name.start()] + word + text[name.end() :]
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def as_typed(question, rng):
    """People spell as in Britain, leave out capitals and full stops, and are polite."""
    if rng.random() < 0.25:
        question = question.replace("color", "colour").replace("center", "centre")
    if rng.random() < 0.1:
        opening = rng.choice(("Please: ", "Tell me, ", "OK, ", "Now, ", "Please tell me: "))
        question = opening + question[0].lower() + question[1:]
    if rng.random() < 0.1:
        question = question.lower()
    return question.rstrip("?.!") or question if rng.random() < 0.08 else question


def line(rng, shares=SHARES):
    """A line of talk.txt -> (question, answer)."""
    group = rng.choices(list(shares), list(shares.values()))[0]
    answer, lines = groups()[group]
    return worded(rng.choice(lines), rng), answer


# -------------------------------------------------------------------------------------------------- one shape, and then?

# What can be asked about a thing: with its name, and once it has been named.
ASPECTS = {
    "color": ("{What|Which} color {is|has} the NAME?", "{What|Which|And what|And which} color {is it|does it have}?",
              "{Its|The|And the|What is its|What about its} color?", "{And is|Is} it VALUE?", "Is it {a|the} VALUE one?"),
    "shape": ("{What|Which} shape {is|has} the NAME?", "{What|Which|And what|And which} shape {is it|does it have}?",
              "{Its|The|And the|And its|What is its} shape?", "{And is|Is} it {a|the} VALUE?", "What is it?"),
    "size": ("{How big is the NAME?|What size is the NAME?|Is the NAME small or large?}",
             "{How big is it?|What size is it?|And what size?|How large is it?|And how big is it?|How big?}",
             "{Its|The|And the|And its|What is its} size?", "{And is|Is} it {VALUE|a VALUE one|rather VALUE|very VALUE}?",
             "{And is|Is} it {small or large|large or small|big or small}?"),
    "place": ("Where {is|do you see} the NAME?", "{And where is it|Where do you see it|Where exactly is it|And where}?",
              "{Its|The|And the|And its|What is its} place?", "{And is|Is} it {|the one }at the VALUE?",
              "{Where in the image|At which place|In which place} is it?"),
}
VALUES = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES), "place": PLACES}
HELD_OUT = ("is it large", "where is it", "and its color", "so how big is it")  # to measure with: not to be learned


def names_of(thing, things):
    """Every name that this thing alone has -> {name: the aspects that the name leaves open}."""
    names = {f"shape at the {thing.place}": ("color", "shape", "size")}
    if sum(other.shape == thing.shape for other in things) == 1:
        names[thing.shape] = ("color", "size", "place")
    if sum(other.color == thing.color for other in things) == 1:
        names[f"{thing.color} shape"] = ("shape", "size", "place")
    if name_of(thing, things) == f"{thing.color} {thing.shape}":
        names[f"{thing.color} {thing.shape}"] = ("size", "place")
    return names


def stated(name, aspect, thing):
    """'The star is large.'"""
    value = getattr(thing, aspect)
    return f"The {name} is {a(value) if aspect == 'shape' else f'at the {value}' if aspect == 'place' else value}."


def asked_once_more(name, aspect, thing, rng):
    """A follow-up about a thing already named -> (question, answer)."""
    while True:
        question = worded(rng.choice(ASPECTS[aspect][1:]), rng)
        true = getattr(thing, aspect)
        value = true if rng.random() < 0.5 else rng.choice(VALUES[aspect])
        answer = stated(name, aspect, thing)
        if "VALUE" in question:
            question = question.replace("VALUE", value)
            answer = f"{'Yes' if value == true else 'No'}, t{answer[1:]}"
        question = re.sub(r"\ba (?=[aeio])", "an ", question)
        if not question.lower().startswith(HELD_OUT):
            return question, answer


def about_one(things, rng):
    """A question about one thing and what follows from it -> pairs of which all but the first refer back."""
    thing = rng.choice(things)
    names = names_of(thing, things)
    name = rng.choice(list(names))
    open_aspects = rng.sample(names[name], len(names[name]))
    if " " in name and "at" not in name and rng.random() < 0.4:
        pairs = [(f"{rng.choice(('Is there', 'Do you see'))} {a(name)}?", f"Yes, there is {a(name)}.")]
    else:
        aspect = open_aspects.pop()
        question = worded(ASPECTS[aspect][0], rng).replace("NAME", name)
        pairs = [(question, stated(name, aspect, thing))]
        for other in rng.sample(things, len(things)):
            fitting = [n for n, open_ in names_of(other, things).items() if aspect in open_]
            if other is not thing and fitting and rng.random() < 0.15:  # "And the star?"
                name = rng.choice(fitting)
                question = worded(f"{{And|How about|And what of|What of|And now}} the {name}?", rng)
                pairs.append((question, stated(name, aspect, other)))
                thing, open_aspects = other, list(names_of(other, things)[name])
                open_aspects.remove(aspect)
                break
    for aspect in open_aspects[: rng.randint(1, 2)]:
        pairs.append(asked_once_more(name, aspect, thing, rng))
    return pairs


def about_none(things, rng):
    """The same about what is not there: each follow-up must be refused."""
    name = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    if any(f"{thing.color} {thing.shape}" == name for thing in things):
        return about_one(things, rng)
    pairs = [(f"{rng.choice(('Is there', 'Do you see'))} {a(name)}?", f"No, there is no {name}.")]
    for aspect in rng.sample(("size", "place"), rng.randint(1, 2)):
        question, _ = asked_once_more(name, aspect, rng.choice(things), rng)
        pairs.append((question, f"There is no {name} in the image."))
    return pairs


def about_nothing(things, rng):
    """A follow-up to nothing, or to something that is in no scene."""
    question, _ = asked_once_more("shape", rng.choice(list(ASPECTS)), rng.choice(things), rng)
    if rng.random() < 0.5:
        return [line(rng, PICTURED), (question, groups()["unseen"][0])]
    social = {"greeting": 1, "thanks": 1, "filler": 1}
    return [line(rng, social), (question, WHICH)]


# -------------------------------------------------------------------------------------------------------- conversations

def in_short(things, rng):
    return rng.choice(BRIEF), f"A picture of {join([a(str(thing)) for thing in things])}."


def about_scene(things, rng):
    """Any of the teacher's questions about the scene."""
    ask = rng.choice([*QUESTIONS.values(), in_short])
    while not (pair := ask(things, rng)):  # not every question can be asked about every scene
        ask = rng.choice(list(QUESTIONS.values()))
    return [pair]


def chat(boxes, rng):
    """A conversation about a scene as people lead it. boxes: [(category, box)], corners as fractions of the picture."""
    things, pairs, whole = read(boxes), [], []
    turns = rng.randint(4, 7)
    while len(pairs) < turns:
        kind = rng.choices(("scene", "one", "none", "nothing", "line", "again"), (30, 22, 4, 4, 30, 10))[0]
        if kind == "again" and whole:
            new = [rng.choice(whole)]
        elif kind == "one":
            new = about_one(things, rng)
        elif kind == "none":
            new = about_none(things, rng)
        elif kind == "nothing":
            new = about_nothing(things, rng)
        elif kind == "line":
            new = [line(rng)]
        else:
            new = about_scene(things, rng)
        new[0] = as_typed(new[0][0], rng), new[0][1]
        whole.append(new[0])  # stands for itself wherever it is asked again
        pairs += new
    return pairs


def odd_chat(rng):
    """A conversation about a picture that is no scene: whatever is asked about it, it is not known."""
    things, pairs = read(as_fractions(make_scene(rng, "train"))), []
    for turn in range(rng.randint(1, 3)):
        question, answer = line(rng) if turn and rng.random() < 0.5 else (None, NO_SCENE)
        if not question:
            kind = rng.random()
            question = (rng.choice(DETAIL + BRIEF) if kind < 0.35 else line(rng, PICTURED)[0] if kind < 0.5
                        else about_one(things, rng)[0][0] if kind < 0.65 else about_scene(things, rng)[0][0])
        elif answer in [groups()[group][0] for group in PICTURED]:
            answer = NO_SCENE
        pairs.append((as_typed(question, rng), answer))
    return pairs


def text_chat(rng):
    """A conversation without any picture."""
    lines = SHARES | dict.fromkeys(PICTURED, 0)
    pairs = [small_talk(rng) if rng.random() < 0.15 else line(rng, lines) for _ in range(rng.randint(1, 4))]
    return [(as_typed(question, rng), answer) for question, answer in pairs]
