"""The teacher is asked of pictures, and its replies become LLaVA-JSON (section 3)."""
import random
from collections import Counter
from pathlib import Path

from minillava.instruct.exchange import TeacherError
from minillava.instruct.replies import instructions, parse_reply, question_list
from minillava.instruct.symbols import choose, describe


def llava_sample(name, kind, pairs, rng):
    """[(question, answer)] -> LLaVA-JSON. As in LLaVA's files, <image> stands before or after the
    first question at random."""
    turns = []
    for question, answer in pairs:
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": answer})
    order = rng.choice(("<image>\n{}", "{}\n<image>"))
    turns[0]["value"] = order.replace("{}", turns[0]["value"])
    return {"id": sample_id(name, kind), "image": name, "conversations": turns}


def sample_id(name, kind):
    return f"{Path(name).stem}_{kind}"


def tell_apart(rows):
    """Pictures of one name, a/1.png and b/1.png, would share an id: it is then the path's."""
    times = Counter(row["id"] for row in rows)
    for row in rows:
        if times[row["id"]] > 1:
            kind = row["id"].rpartition("_")[2]
            row["id"] = f"{row['image']}_{kind}"


def jobs_for(symbols, counts, seed):
    """counts: {"conversation", "detail", "reasoning": samples of each} -> [(kind, image file)]"""
    return [(kind, name) for kind, count in counts.items()
            for name in choose(symbols, count, f"{seed} {kind}")]


def request_for(kind, captions, boxes, complaint=""):
    """Instructions, examples and one picture in symbols -> the messages that the teacher gets."""
    task = describe(kind, captions, boxes) + complaint
    return [*instructions(kind), {"role": "user", "content": task}]


def make_samples(symbols, jobs, teacher, seed, detail_questions=None):
    """Asks the teacher -> samples, LLaVA-JSON; rejects, {"id", "image", "kind", "reason", "reply"}.

    symbols: as read_symbols gives them; jobs: as jobs_for does; detail_questions: in place of those
    in prompts/. A job that could not be asked for is in neither list: teacher.stopped_by says why.
    All is determined by the seed and the teacher's answers.
    """
    detail_questions = detail_questions or question_list("detail")

    def make(job):
        kind, name = job
        rng = random.Random(f"{seed} {kind} {name}")
        try:
            return make_sample(kind, name, symbols[name], teacher, rng, detail_questions)
        except TeacherError:
            return None, None

    made = teacher.map(make, jobs, "instruction data")
    samples = [sample for sample, _ in made if sample]
    rejects = [reject for _, reject in made if reject]
    tell_apart([*samples, *rejects])
    return samples, rejects


def make_sample(kind, name, symbols, teacher, rng, detail_questions):
    """-> (sample, None) or (None, reject). A malformed reply is asked for again, once."""
    complaint = reply = reason = ""
    try:
        for _ in range(2):
            answer = teacher.answer(request_for(kind, *symbols, complaint))
            reply = answer.text
            try:
                pairs = pairs_of(kind, answer, rng, detail_questions)
                return llava_sample(name, kind, pairs, rng), None
            except ValueError as error:
                reason = str(error)
                complaint += ("\n\n(Write it anew, in the form asked for. "
                              f"Your last reply was no good: {reason}.)")
    except ValueError as error:  # no reply at all to this one
        reason = str(error)
    return None, {"id": sample_id(name, kind), "image": name, "kind": kind,
                  "reason": reason, "reply": reply}


def pairs_of(kind, answer, rng, detail_questions):
    """An Answer -> [(question, answer)]. A description was asked for by a question of the list."""
    if answer.cut:
        raise ValueError(f"it was cut off before its end ({answer.cut})")
    return [(question or rng.choice(detail_questions), text)
            for question, text in parse_reply(kind, answer.text)]
