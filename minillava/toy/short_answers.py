"""Questions that want a word for an answer, as VQA's do, with or without saying so.

LLaVA-1.5 (section 3.2) learns from both kinds of answer and ends the short kind's questions with a
wish. Without it nobody could tell which answer is wanted:

    What color is the star? Answer in one word.     blue
    What color is the star?                         The star is blue.
"""
import random
import re

from minillava.instruct.samples import llava_sample
from minillava.toy.objects import read
from minillava.toy.questions import CONVERSATION, QUESTIONS
from minillava.toy.scienceqa import PROBLEMS

WISH = "Answer in one word."


def short_answer(kind, answer):
    """('color', 'The star is blue.') -> 'blue'; None where a word does not say it."""
    pattern, *_ = PROBLEMS[kind]
    found = re.search(pattern, answer)
    return found and found[1]


def short_samples(symbols, names, seed, with_wish, turns=4):
    """A conversation of short answers about each of these pictures -> LLaVA-JSON."""
    samples = []
    for name in names:
        rng = random.Random(f"{seed} short {name}")
        things = read(symbols[name][1])
        pairs = {}
        while len(pairs) < turns:
            kind = rng.choice(list(CONVERSATION))
            asked = QUESTIONS[kind](things, rng)
            short = asked and short_answer(kind, asked[1])
            if short:
                pairs[wished(asked[0]) if with_wish else asked[0]] = short
        samples.append(llava_sample(name, "short", list(pairs.items()), rng))
    return samples


def wished(question):
    return f"{question} {WISH}"
