"""Captions alone become the data of stage 1."""
import random
import re
from collections import defaultdict

from minillava.instruct.replies import question_list
from minillava.instruct.samples import llava_sample, tell_apart
from minillava.instruct.symbols import choose

FUNCTION_WORDS = set("""
    about above across after again against all along also although among and another any are
    around because been before behind being below beneath beside besides between both but can
    could did does doing done down during each either else ever every few for from had has have
    having her here hers him his how into its itself just like many may might more most much
    near nearby neither nor not off once one onto only other others our out over own per several
    she should since some still such than that the their them then there these they this those
    though through together too toward towards two under until upon very was were what when
    where whether which while who whom whose why will with within without would yet you
    your""".split())


def thin_captions(captions, rng, rarest=3, most=100):
    """The paper's filter of CC3M (appendix): {name: caption} -> names to keep, counts of concepts.

    A caption is kept for each of its concepts: for all of one that 3 to 100 captions have, for 100
    drawn at random of a common one, never for a rare one. The paper's concepts are noun phrases by
    spaCy; here, any word of three letters or more that is not a function word, so that "dog" and
    "dogs" are two.
    """
    holders = defaultdict(list)  # concept -> the names of the captions that have it
    for name, caption in captions.items():
        for word in concepts(caption):
            holders[word].append(name)

    kept = set()
    for word, names in sorted(holders.items(), key=lambda item: (len(item[1]), item[0])):
        if len(names) > most:
            names = rng.sample(names, most)
        if len(names) >= rarest:
            kept.update(names)

    sizes = [len(names) for names in holders.values()]
    counts = {"concepts": len(sizes),
              "rare": sum(size < rarest for size in sizes),
              "common": sum(size > most for size in sizes)}
    return [name for name in captions if name in kept], counts


def concepts(caption):
    words = set(re.findall(r"[^\W\d_]{3,}", caption.lower()))
    return sorted(words - FUNCTION_WORDS)


def brief_samples(symbols, seed, count=None, thinned=True, questions=None):
    """One caption and one question of the brief list per picture -> samples, the counts of
    thin_captions or None. questions: in place of those in prompts/."""
    questions = questions or question_list("brief")
    one_each = {name: random.Random(f"{seed} {name}").choice(captions)
                for name, (captions, _) in symbols.items()}
    names = list(one_each)
    counts = None
    if thinned:
        names, counts = thin_captions(one_each, random.Random(seed))
    if count is not None:
        names = choose(names, count, seed)

    samples = []
    for name in names:
        rng = random.Random(f"{seed} brief {name}")
        pair = rng.choice(questions), one_each[name]
        samples.append(llava_sample(name, "brief", [pair], rng))
    tell_apart(samples)
    return samples, counts
