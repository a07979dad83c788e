"""The miniature's instruction data, written by the toy teacher.

    python -m minillava.toy.instruct --teacher toy ...  # minillava.instruct, with "toy" to choose
"""
import random

from minillava.instruct.__main__ import main
from minillava.instruct.captions import brief_samples
from minillava.instruct.samples import jobs_for, llava_sample, make_samples
from minillava.instruct.symbols import PAPER_MIX
from minillava.instruct.teacher import free_teacher
from minillava.toy import questions
from minillava.toy.chats import NO_SCENE, chat, odd_chat, text_chat
from minillava.toy.oddities import draw_odd
from minillava.toy.teacher import ask, ask_carelessly

# Whom --teacher may name, beside an endpoint and a folder.
TEACHERS = {"toy": ask, "toy-careless": ask_carelessly}

# What the miniature learns from in its two stages: samples of each kind for each of its scenes.
PRETRAIN = {"brief": 1.0, "odd_brief": 0.2}
SCIENCE_PRETRAIN = {"brief": 1.0}
FINETUNE = {"conversation": 0.7, "detail": 0.4, "reasoning": 1.0,  # the paper's three kinds
            "chat": 0.2, "odd": 0.06, "text": 0.15}                # what it is to doubt
SECOND_ROUND = FINETUNE | {"chat": 0.6, "odd": 0.13, "text": 0.4}  # of a finished miniature


def toy_samples(symbols, kinds, seed, images=None, teacher=ask):
    """The miniature's data -> LLaVA-JSON.

    symbols: {image file: (captions, boxes)}; kinds: as in FINETUNE; images: the folder of these
    files, into which the odd kinds draw their pictures.
    """
    counts = {kind: round(share * len(symbols)) for kind, share in kinds.items()}

    samples = []
    if briefs := counts.pop("brief", 0):
        samples, _ = brief_samples(symbols, seed, briefs, thinned=False, questions=questions.BRIEF)
    # the paper's kinds, through the very code that would ask GPT-4
    taught = {kind: count for kind, count in counts.items() if kind in PAPER_MIX}
    jobs = jobs_for(symbols, taught, seed)
    samples += make_samples(symbols, jobs, free_teacher(teacher), seed, questions.DETAIL)[0]

    names = sorted(symbols)
    for kind in [kind for kind in counts if kind not in PAPER_MIX]:
        rng = random.Random(f"{seed} {kind}")
        for i in range(counts[kind]):
            samples.append(talk_sample(kind, i, names, symbols, images, rng, seed))
    return samples


def talk_sample(kind, i, names, symbols, images, rng, seed):
    """Number i of the samples of a kind that chats.py makes."""
    if kind == "chat":
        name = names[i % len(names)]
        return llava_sample(name, kind, chat(symbols[name][1], rng), rng)
    if kind == "text":
        turns = [{"from": role, "value": text}
                 for pair in text_chat(rng) for role, text in zip(("human", "gpt"), pair)]
        return {"id": f"{i:012}_text", "conversations": turns}
    name = f"odd_{i:06}.png"  # the same picture in both stages
    draw_odd(random.Random(f"{seed} {name}")).save(images / name, compress_level=1)
    pairs = odd_chat(rng) if kind == "odd" else [(rng.choice(questions.BRIEF), NO_SCENE)]
    return llava_sample(name, kind, pairs, rng)


if __name__ == "__main__":
    main(TEACHERS, questions.DETAIL)
