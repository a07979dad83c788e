"""Captions alone become the data of stage 1."""
import random
import re
from collections import defaultdict

from minillava.instruct.replies import questions_of
from minillava.instruct.samples import make_sample
from minillava.instruct.symbols import choose

FUNCTION_WORDS = set("""about above across after again against all along also although among and another any are around
    because been before behind being below beneath beside besides between both but can could did does doing done down
    during each either else ever every few for from had has have having her here hers him his how into its itself just
    like many may might more most much near nearby neither nor not off once one onto only other others our out over
    own per several she should since some still such than that the their them then there these they this those though
    through together too toward towards two under until upon very was were what when where whether which while who
    whom whose why will with within without would yet you your""".split())


def thin(captions, rng, rarest=3, most=100):
    """The paper's filter of CC3M (appendix): {name: caption} -> the names that are kept, and counts of concepts.

    A caption is kept for each of its concepts: for all of one that 3 to 100 captions have, for 100 drawn at random of a
    common one, never for a rare one. The paper's concepts are noun phrases by spaCy; here, any word of three letters or
    more that is not a function word, so that "dog" and "dogs" are two.
    """
    holders = defaultdict(list)
    for name, caption in captions.items():
        for word in sorted(set(re.findall(r"[^\W\d_]{3,}", caption.lower())) - FUNCTION_WORDS):
            holders[word].append(name)
    kept = set()
    for word, names in sorted(holders.items(), key=lambda item: (len(item[1]), item[0])):
        if len(names) >= rarest:
            kept.update(names if len(names) <= most else rng.sample(names, most))
    sizes = [len(names) for names in holders.values()]
    counts = {"concepts": len(sizes), "rare": sum(n < rarest for n in sizes), "common": sum(n > most for n in sizes)}
    return [name for name in captions if name in kept], counts


def brief_samples(symbols, seed, count=None, thinned=True, questions=None):
    """One caption and one question of the brief list per picture -> samples, and thin's counts or None."""
    one_each = {name: random.Random(f"{seed} {name}").choice(captions) for name, (captions, _) in symbols.items()}
    names, counts = thin(one_each, random.Random(seed)) if thinned else (list(one_each), None)
    samples, questions = [], (questions or {}).get("brief") or questions_of("brief")
    for name in names if count is None else choose(names, count, seed):
        rng = random.Random(f"{seed} brief {name}")
        samples.append(make_sample(name, "brief", [(rng.choice(questions), one_each[name])], rng))
    return samples, counts
