"""Chats of the toy world, each a list of (question, answer).

    chat        about a scene: its questions, with follow-ups, repetitions and any other line
    odd_chat    about a picture that is no scene: whatever is asked about it, it is not known
    text_chat   about no picture
"""
from minillava.toy.annotations import as_fractions
from minillava.toy.follow_ups import about_absent, about_nothing, about_one
from minillava.toy.objects import are, join, read, with_article
from minillava.toy.questions import BRIEF, DETAIL, QUESTIONS, ask_detail, some_kind
from minillava.toy.talk import PICTURED, SOCIAL, as_typed, line, small_talk
from minillava.toy.world import make_scene

NO_SCENE = "This is no picture of my world: I know only circles, squares, triangles and stars."
NO_IMAGE = "Please show me an image first."
# What may come next in a chat about a scene, and how often.
NEXT = {"scene": 28, "one": 24, "absent": 5, "nothing": 3, "line": 28, "small": 2, "again": 10,
        "doubt": 10}
# What is asked about a picture, the same for scenes and for odd ones: no question may give away
# which of the two it is.
ASKED = {"detail": 14, "brief": 11, "any": 6, "question": 69}
# How people ask for a description, beside the wordings that the teacher has.
TELL_ME = ("What do you see?", "What is this?", "What's this?", "What is in the image?",
           "What's in the picture?", "What does the picture show?", "What is shown here?",
           "Tell me about the image.", "Tell me what you see.", "Describe this.",
           "Describe the image.", "Describe what you see.", "List the shapes.")


def chat(boxes, rng):
    """boxes: [(category, box)], corners as fractions of the picture."""
    things = read(boxes)
    pairs = []
    repeatable = []  # pairs that refer to nothing before them, so that they may be asked again
    turns = rng.randint(4, 7)
    while len(pairs) < turns:
        kind = rng.choices(list(NEXT), list(NEXT.values()))[0]
        if kind == "again" and repeatable:
            new = [rng.choice(repeatable)]
        else:  # "again" at the very start is a new question
            new = next_pairs(kind, things, rng)
        question, answer = new[0]
        new[0] = as_typed(question, rng), answer
        repeatable.append(new[0])
        pairs += new
    return pairs


def next_pairs(kind, things, rng):
    if kind == "one":
        return about_one(things, rng)
    if kind == "absent":
        return about_absent(things, rng)
    if kind == "nothing":
        return about_nothing(things, rng)
    if kind == "line":
        return [line(rng, PICTURED | SOCIAL)]
    if kind == "small":
        return [small_talk(rng)]
    if kind == "doubt":  # what is not there either is asked about right after a description
        return [described(things, rng), line(rng, PICTURED)]
    return [about_scene(things, rng)]


def about_scene(things, rng):
    """A description, long or short, or any of the teacher's questions."""
    kind = rng.choices(list(ASKED), list(ASKED.values()))[0]
    if kind == "detail":
        return described(things, rng)
    if kind == "any":
        return ask_any(things, rng)
    if kind == "brief":
        seen = join([with_article(str(thing)) for thing in things])
        return rng.choice(BRIEF), f"A picture of {seen}."
    pair = None
    while not pair:  # not every question can be asked about every scene
        pair = rng.choice(list(QUESTIONS.values()))(things, rng)
    return pair


def described(things, rng):
    _, answer = ask_detail(things, rng)
    return rng.choice(DETAIL + TELL_ME), answer


def ask_any(things, rng):
    noun, found = some_kind(things, rng)
    question = rng.choice((f"Are there any {noun}s?", f"Are there {noun}s in the image?",
                           f"Do you see any {noun}s?"))
    yes_no = "Yes" if found else "No"
    return question, f"{yes_no}, there {are(len(found), noun)}."


def odd_chat(rng):
    pairs = [(as_typed(about_picture(rng), rng), NO_SCENE)]
    for _ in range(rng.randint(0, 2)):
        if rng.random() < 0.4:
            question, answer = line(rng, SOCIAL)
        else:
            question, answer = about_picture(rng), NO_SCENE
        pairs.append((as_typed(question, rng), answer))
    return pairs


def about_picture(rng):
    """A question about a picture, whatever it shows."""
    things = read(as_fractions(make_scene(rng, "train")))
    kind = rng.choices(("scene", "one", "pictured"), (60, 25, 15))[0]
    if kind == "pictured":
        return line(rng, PICTURED)[0]
    if kind == "one":
        return about_one(things, rng)[0][0]
    return about_scene(things, rng)[0]


def text_chat(rng):
    pairs = []
    for _ in range(rng.randint(1, 4)):
        kind = rng.choices(("line", "small", "picture"), (75, 15, 10))[0]
        if kind == "picture":
            question, answer = about_picture(rng), NO_IMAGE
        else:
            question, answer = small_talk(rng) if kind == "small" else line(rng, SOCIAL)
        pairs.append((as_typed(question, rng), answer))
    return pairs
