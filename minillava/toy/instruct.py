"""The miniature's instruction data, by the toy teacher; python -m minillava.toy.instruct is minillava.instruct with --teacher toy."""
import random

from minillava.instruct.__main__ import main
from minillava.instruct.captions import brief_samples
from minillava.instruct.samples import make_samples
from minillava.instruct.teacher import Teacher
from minillava.toy import questions
from minillava.toy.teacher import ask, small_talk

TOY_QUESTIONS = {"brief": questions.BRIEF, "detail": questions.DETAIL}
TEACHERS = {"toy": ask}  # who may be named by --teacher, beside an endpoint and a folder


def toy_samples(symbols, kinds, seed):
    """The miniature's data, by the toy world's teacher. kinds: {"brief", "conversation", "detail", "reasoning" or
    "text": for which share of the pictures}; "text" is small talk without a picture."""
    counts = {kind: round(share * len(symbols)) for kind, share in kinds.items()}
    talks, briefs, rng = counts.pop("text", 0), counts.pop("brief", 0), random.Random(f"{seed} text")
    samples = brief_samples(symbols, seed, briefs, False, TOY_QUESTIONS)[0] if briefs else []
    teacher = Teacher(lambda messages: (ask(messages), 0, 0))
    samples += make_samples(symbols, counts, teacher, seed, TOY_QUESTIONS)[0]
    for i in range(talks):
        question, answer = small_talk(rng)
        samples.append({"id": f"{i:012}_text", "conversations": [{"from": "human", "value": question},
                                                             {"from": "gpt", "value": answer}]})
    return samples


if __name__ == "__main__":
    main(TEACHERS, TOY_QUESTIONS)
