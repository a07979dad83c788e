"""ScienceQA: a LLaVA and a text-only teacher together (section 5.2; the last rows of table 7).

complement: the teacher's answer counts, ours where it gave none. judge: where the two differ,
somebody weighs both and answers anew. All choices are {id: index of a choice, or -1 where there is
none}.
"""
import sys

from minillava.evaluation.scienceqa import texts as texts_of
from minillava.evaluation.scienceqa_answers import choices_of
from minillava.files import write_jsonl
from minillava.instruct.exchange import BadReply
from minillava.terminal import printable


def ensemble(texts, theirs, problems, strict=False, judge=None):
    """Our texts and a teacher's, {id: text} -> ({name: choices}, the texts that count, notes).

    judge: {id: prompt of the second query} -> {id: text}; without one the two complement each
    other. Only questions that both answered are scored.
    """
    both = {i: problems[i] for i in problems if i in texts and i in theirs}
    if not both:
        raise ValueError("no question is answered both by us and by the teacher")
    ours = choices_of({i: texts[i] for i in both}, problems, strict, shortcuts=False)
    teacher = choices_of({i: theirs[i] for i in both}, problems, strict, shortcuts=False)
    joined = complement(ours, teacher)
    rows = {"ours": ours, "teacher": teacher, "complement": joined}
    notes = [unread("ours", ours), unread("the teacher", teacher)]

    if judge:
        asked = disagree(ours, teacher)
        prompts = {i: judge_prompt(problems[i], texts[i], theirs[i]) for i in asked}
        replies = judge(prompts)
        replies = {i: replies[i] for i in asked if i in replies}
        verdicts = choices_of(replies, problems, strict, shortcuts=False)
        joined = rows["judge"] = judged(ours, verdicts)
        silent = sum(verdicts.get(i, -1) < 0 for i in asked)
        notes.append(f"the judge was asked {len(asked)} questions and gave no answer to {silent}; "
                     "there ours stands")

    rows["upper bound"] = upper_bound(ours, teacher, problems)
    said = {i: theirs[i] if joined[i] == teacher[i] else texts[i] for i in both}
    return rows, said, notes


def unread(name, chosen):
    count = sum(choice < 0 for choice in chosen.values())
    share = 100 * count / len(chosen)
    return f"no answer to be read from {name}: {count} of {len(chosen)} ({share:.2f} %)"


def complement(ours, teacher):
    """The teacher's answer, or ours where it gave none."""
    return {i: ours[i] if teacher[i] < 0 else teacher[i] for i in ours}


def disagree(ours, teacher):
    """Ids about which the judge is asked: the two differ, or neither gave an answer."""
    return [i for i in ours if ours[i] != teacher[i] or ours[i] < 0]


def judged(ours, verdicts):
    """Where the two agree their answer, else the judge's, or ours where the judge gave none."""
    return {i: verdicts[i] if verdicts.get(i, -1) >= 0 else ours[i] for i in ours}


def upper_bound(ours, teacher, problems):
    """Whichever of the two is right, as nobody can know who does not know the answer."""
    return {i: teacher[i] if teacher[i] == problems[i]["answer"] else ours[i] for i in ours}


def judge_prompt(problem, ours, teacher):
    """The second query: the question, what the two said, and that it shall answer itself."""
    question, _ = texts_of(problem, "CQM-A")
    unseen = ""
    if problem["image"]:
        unseen = "(The question comes with an image, which is not shown here.)\n"
    return (f"{question}\n{unseen}"
            f"\n[Answer 1]\n{ours or '(none)'}\n[End of Answer 1]\n"
            f"\n[Answer 2]\n{teacher or '(none)'}\n[End of Answer 2]\n\n"
            "The two answers to this question do not agree. Weigh the reasons that they give, "
            "think about the question yourself, and end with your own final answer in the words "
            '"The answer is X.", where X is the letter of one option. Use these words only once.')


def ask_judge(judge, prompts):
    """{id: prompt of the second query} -> {id: text}; what has no usable reply is left out."""
    def ask(i):
        try:
            return i, judge.ask([{"role": "user", "content": prompts[i]}])
        except BadReply as error:
            print(printable(f"question {i}: {error}", keep=""), file=sys.stderr)

    replies = judge.map(ask, list(prompts), "judge")
    return dict(reply for reply in replies if reply)


def write_verdicts(path, prompts, replies):
    """The judge's answers, a line each, as the official script of the ensemble reads them."""
    rows = [{"question_id": i, "prompt": prompts[i], "text": text} for i, text in replies.items()]
    write_jsonl(path, rows)
