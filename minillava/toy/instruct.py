"""The miniature's instruction data, written by the toy teacher.

    python -m minillava.toy.instruct --teacher toy ...      # minillava.instruct, where "toy" may be named as the teacher
"""
import random

from minillava.instruct.__main__ import main
from minillava.instruct.captions import brief_samples
from minillava.instruct.samples import llava_sample, make_samples
from minillava.instruct.teacher import free_teacher
from minillava.toy import questions
from minillava.toy.oddities import draw_odd
from minillava.toy.talk import chat, odd_chat, text_chat
from minillava.toy.teacher import ask

TEACHERS = {"toy": ask}  # who may be named by --teacher, beside an endpoint and a folder

# What the miniature learns from in its two stages: samples of each kind for each scene of the world.
PRETRAIN = {"brief": 1.0}
FINETUNE = {"conversation": 0.7, "detail": 0.4, "reasoning": 1.0,  # the paper's three kinds
            "chat": 0.5, "odd": 0.1, "text": 0.12}                 # and what it is to doubt


def toy_samples(symbols, kinds, seed, images=None):
    """The miniature's data -> LLaVA-JSON. kinds: as in FINETUNE; symbols: {image file: (captions, boxes)};
    images: the folder of these files, into which "odd" draws its pictures."""
    counts = {kind: round(share * len(symbols)) for kind, share in kinds.items()}
    briefs = counts.pop("brief", 0)
    talks = {kind: counts.pop(kind) for kind in ("chat", "odd", "text") if kind in counts}

    samples = []
    if briefs:
        samples, _ = brief_samples(symbols, seed, briefs, thinned=False, questions=questions.BRIEF)
    taught, _, _ = make_samples(symbols, counts, free_teacher(ask), seed, questions.DETAIL)
    samples += taught
    return samples + talk_samples(symbols, talks, images, seed)


def talk_samples(symbols, counts, images, seed):
    """Conversations that need more than one question (see talk.py). counts: {"chat", "odd" or "text": how many}."""
    names, samples = sorted(symbols), []
    for kind, count in counts.items():
        rng = random.Random(f"{seed} {kind}")
        for i in range(count):
            if kind == "chat":
                name = names[i % len(names)]
                samples.append(llava_sample(name, kind, chat(symbols[name][1], rng), rng))
            elif kind == "odd":
                name = f"odd_{i:06}.png"
                draw_odd(rng).save(images / name, compress_level=1)
                samples.append(llava_sample(name, kind, odd_chat(rng), rng))
            else:
                samples.append(text_sample(i, text_chat(rng)))
    return samples


def text_sample(i, pairs):
    """A conversation without a picture."""
    turns = [{"from": role, "value": text} for pair in pairs for role, text in zip(("human", "gpt"), pair)]
    return {"id": f"{i:012}_text", "conversations": turns}


if __name__ == "__main__":
    main(TEACHERS, questions.DETAIL)
