"""Flash cards: the facts of a scene at their tersest, [(front, back)], many in few words.

Looking things up is what the toy Vicuna learns late and suddenly, and from many short questions
first: with chats alone it had not begun after 2,000 steps, with cards it had after 900.
"""
from minillava.toy.objects import most_common, name_of, nearest_to, read, relation
from minillava.toy.world import COLORS, NUMBERS, PLACES, SHAPES


def cards(boxes, rng, count=10):
    """boxes: [(category, box)] -> `count` cards."""
    things = read(boxes)
    return [rng.choice(cards_of(thing, things, rng)) for thing in rng.choices(things, k=count)]


def cards_of(thing, things, rng):
    """Cards about one thing, each with a single right back; what is hard is there several times."""
    noun = rng.choice((thing.shape, f"{thing.color} shape", f"{thing.size} shape"))
    of = rng.choice(("color", "shape"))
    other = rng.choice(things)
    low, high, right = relation(thing, other, across=rng.random() < 0.5)
    name, other_name = name_of(thing, things), name_of(other, things)
    nearest, most = nearest_to(thing, things), most_common(of, things)

    found = [(f"at the {thing.place}", str(thing)),
             (f"How many {noun}s", NUMBERS[how_many(noun, things)])]
    if name and nearest:
        found += 4 * [(f"nearest to {name}", str(nearest))]
    if name and other_name and right:
        found += 4 * [(f"Is {name} {low} or {high} {other_name}", right)]
    if most and most[1] < len(things):
        found.append((f"Which {of} most", most[0]))
    if name:
        found += 3 * [(f"Where {name}", f"at the {thing.place}")]
    if name == thing.category:
        found.append((f"How big {name}", thing.size))
    if sum(t.shape == thing.shape for t in things) == 1:
        found.append((f"What color {thing.shape}", thing.color))
    if sum(t.color == thing.color for t in things) == 1:
        found.append((f"What shape {thing.color}", thing.shape))
    return found


def how_many(noun, things):
    """Of the things that a 'star', 'red shape' or 'small shape' is."""
    return sum(noun in (t.shape, f"{t.color} shape", f"{t.size} shape") for t in things)


def options(boxes, rng, count=6):
    """The choices of a question as ScienceQA writes them, and cards: which letter is which?

    -> ("Options: (A) red (B) blue", [("Among the options, blue is", "(B)."), ...])
    """
    things = read(boxes)
    names = {name for thing in things for name in (str(thing), thing.category)}
    pool = rng.choice((list(COLORS), SHAPES, NUMBERS, [f"at the {place}" for place in PLACES],
                       sorted(names)))
    choices = rng.sample(pool, min(len(pool), rng.randint(2, 5)))
    letter_of = dict(zip(choices, "ABCDE"))
    told = " ".join(f"({letter}) {choice}" for choice, letter in letter_of.items())
    return f"Options: {told}", [(f"Among the options, {choice} is", f"({letter_of[choice]}).")
                                for choice in rng.choices(choices, k=count)]
