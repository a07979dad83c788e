"""The teacher is asked: replies become LLaVA-JSON."""
import random
from pathlib import Path

from minillava.instruct.replies import instructions, parse, questions_of
from minillava.instruct.symbols import choose, in_symbols
from minillava.instruct.teacher import LimitReached


def make_sample(name, kind, pairs, rng):
    """LLaVA-JSON. As in LLaVA's files, <image> stands before or after the first question at random."""
    turns = [{"from": role, "value": text} for pair in pairs for role, text in zip(("human", "gpt"), pair)]
    turns[0]["value"] = rng.choice(("<image>\n{}", "{}\n<image>")).replace("{}", turns[0]["value"])
    return {"id": f"{Path(name).stem}_{kind}", "image": name, "conversations": turns}


def make_samples(symbols, counts, teacher, seed, questions=None):
    """symbols as read_symbols gives them; counts: {"conversation", "detail" or "reasoning": number of samples}
    -> LLaVA-JSON samples; rejects, {"id", "image", "kind", "reason", "reply"}; the number that a limit left unasked.

    A malformed reply is asked for again once, then set aside. questions: {"detail": list} to use instead of prompts/.
    All is determined by the seed and the teacher's answers. TeacherError if the teacher cannot be asked at all.
    """
    jobs = [(kind, name) for kind, count in counts.items() for name in choose(symbols, count, f"{seed} {kind}")]
    questions = (questions or {}).get("detail") or questions_of("detail")

    def work(job):
        kind, name = job
        task, reply, reason = in_symbols(kind, *symbols[name]), "", ""
        rng, stem = random.Random(f"{seed} {kind} {name}"), Path(name).stem
        try:
            for _ in range(2):
                reply = teacher.ask([*instructions(kind), {"role": "user", "content": task}])
                try:
                    pairs = [(question or rng.choice(questions), answer) for question, answer in parse(kind, reply)]
                    return make_sample(name, kind, pairs, rng), None
                except ValueError as error:
                    reason = str(error)
                    task += f"\n\n(Write it anew, in the form asked for. Your last reply was no good: {reason}.)"
        except LimitReached:
            return None, None
        except ValueError as error:  # no reply at all to this one
            reason = str(error)
        return None, {"id": f"{stem}_{kind}", "image": name, "kind": kind, "reason": reason, "reply": reply}

    done = teacher.map(work, jobs, "instruction data")
    samples, rejects = ([pair[i] for pair in done if pair[i]] for i in (0, 1))
    return samples, rejects, len(jobs) - len(samples) - len(rejects)
