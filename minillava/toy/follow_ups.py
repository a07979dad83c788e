"""Questions that refer back: "And its color?", "Is it small?", "How about the star?"

A name leaves some aspects of a thing open ("the star" its color, size and place): one of them is
asked with the name, the next ones without it. Each function returns [(question, answer)].
"""
from minillava.toy.objects import name_of, with_article
from minillava.toy.questions import VALUES
from minillava.toy.talk import PICTURED, answer_of, line, mend_articles, worded
from minillava.toy.world import COLORS, PLACES, SHAPES

WHICH = "Which shape do you mean?"
# How an aspect is asked about with the NAME of a thing.
NAMED = {
    "color": "{What|Which} color {is|has} the NAME?",
    "shape": "{What|Which} shape {is|has} the NAME?",
    "size": "{How big is the NAME?|What size is the NAME?|Is the NAME small or large?}",
    "place": "Where {is|do you see} the NAME?",
}
# And once the thing has been named; VALUE is the right one or another.
REFERRING = {
    "color": ("{What|Which|And what|And which} color {is it|does it have}?",
              "{Its|The|And the|What is its|What about its} color?",
              "{And is|Is} it VALUE?", "Is it {a|the} VALUE one?"),
    "shape": ("{What|Which|And what|And which} shape {is it|does it have}?",
              "{Its|The|And the|And its|What is its} shape?",
              "{And is|Is} it {a|the} VALUE?", "What is it?"),
    "size": ("{How big is it|What size is it|And what size|How large is it|And how big is it|"
             "How big}?",
             "{Its|The|And the|And its|What is its} size?",
             "{And is|Is} it {VALUE|a VALUE one|rather VALUE|very VALUE}?",
             "{And is|Is} it {small or large|large or small|big or small}?"),
    "place": ("{And where is it|Where do you see it|Where exactly is it|And where}?",
              "{Its|The|And the|And its|What is its} place?",
              "{And is|Is} it {|the one }at the VALUE?",
              "{Where in the image|At which place|In which place} is it?"),
}
ALL_VALUES = VALUES | {"place": PLACES}
# What the miniature is measured by (tests/fixtures/small_talk.json) is not to be learned.
HELD_OUT = ("is it large", "where is it", "and its color", "so how big is it")


def names_of(thing, things):
    """Every name that this thing alone has -> {name: the aspects that the name leaves open}."""
    names = {f"shape at the {thing.place}": ("color", "shape", "size")}
    if sum(other.shape == thing.shape for other in things) == 1:
        names[thing.shape] = ("color", "size", "place")
    if sum(other.color == thing.color for other in things) == 1:
        names[f"{thing.color} shape"] = ("shape", "size", "place")
    if name_of(thing, things) == thing.category:
        names[thing.category] = ("size", "place")
    return names


def stated(name, aspect, thing):
    """'The star is large.'"""
    value = getattr(thing, aspect)
    if aspect == "shape":
        value = with_article(value)
    if aspect == "place":
        value = f"at the {value}"
    return f"The {name} is {value}."


def refer_back(name, aspect, thing, rng):
    """A follow-up about a thing already named -> (question, answer)."""
    true = getattr(thing, aspect)
    while True:
        question = worded(rng.choice(REFERRING[aspect]), rng)
        value = true if rng.random() < 0.5 else rng.choice(ALL_VALUES[aspect])
        answer = stated(name, aspect, thing)
        if "VALUE" in question:
            question = mend_articles(question.replace("VALUE", value))
            yes_no = "Yes" if value == true else "No"
            answer = f"{yes_no}, t{answer[1:]}"
        if not question.lower().startswith(HELD_OUT):
            return question, answer


def about_one(things, rng):
    """A question about one thing, and one or two that refer back to it."""
    thing = rng.choice(things)
    names = names_of(thing, things)
    name = rng.choice(list(names))
    aspects = rng.sample(names[name], len(names[name]))

    if name == thing.category and rng.random() < 0.5:
        pairs = [is_there(name, rng, found=True)]
    else:
        aspect = aspects.pop()
        question = worded(NAMED[aspect], rng).replace("NAME", name)
        pairs = [(question, stated(name, aspect, thing))]
        if rng.random() < 0.4:
            return pairs + about_another(aspect, thing, things, rng)
    for aspect in aspects[: rng.randint(1, 2)]:
        pairs.append(refer_back(name, aspect, thing, rng))
    return pairs


def about_another(aspect, thing, things, rng):
    """The same aspect of another thing, 'And the star?', and one more question about that."""
    for other in rng.sample(things, len(things)):
        left_open = names_of(other, things)  # {name: the aspects that it leaves open}
        names = [name for name in left_open if aspect in left_open[name]]
        if other is thing or not names:
            continue
        name = rng.choice(names)
        question = worded("{And|How about|And what of|What of|And now} the NAME?", rng)
        one_more = rng.choice([another for another in left_open[name] if another != aspect])
        return [(question.replace("NAME", name), stated(name, aspect, other)),
                refer_back(name, one_more, other, rng)]
    return []


def about_absent(things, rng):
    """The same about a coloured shape that is not there: each follow-up must be refused."""
    name = f"{rng.choice(list(COLORS))} {rng.choice(SHAPES)}"
    if any(thing.category == name for thing in things):
        return about_one(things, rng)
    pairs = [is_there(name, rng, found=False)]
    for aspect in rng.sample(("size", "place"), rng.randint(1, 2)):
        question, _ = refer_back(name, aspect, rng.choice(things), rng)
        pairs.append((question, f"There is no {name} in the image."))
    return pairs


def is_there(name, rng, found):
    question = f"{rng.choice(('Is there', 'Do you see'))} {with_article(name)}?"
    return question, f"Yes, there is {with_article(name)}." if found else f"No, there is no {name}."


def about_nothing(things, rng):
    """A follow-up to nothing, or to something that is in no scene."""
    aspect = rng.choice(list(REFERRING))
    question, _ = refer_back("shape", aspect, rng.choice(things), rng)
    if rng.random() < 0.5:
        return [line(rng, PICTURED), (question, answer_of("unseen"))]
    return [line(rng, {"greeting": 1, "thanks": 1, "filler": 1}), (question, WHICH)]
