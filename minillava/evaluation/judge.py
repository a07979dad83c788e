"""A judge compares two answers to each question about a picture (section 5.1: LLaVA-Bench, judged by GPT-4).

It sees no picture either: captions and boxes stand for it. The first answer is the reference, that
of a text-only GPT-4 which was told the same; the second is the candidate's.
"""
import argparse
import json
import re
from dataclasses import dataclass
from pathlib import Path

from minillava.files import read_jsonl, write
from minillava.instruct.command import add_teacher_flags, open_from_flags
from minillava.instruct.exchange import LimitReached

PROMPTS = Path(__file__).parent / "prompts"
FAILED = [-1.0, -1.0]  # the official scores of a review that names none


@dataclass(frozen=True)
class Comparison:
    """One line of the question file, and what the other files say about it."""

    number: int     # of the line, from 1
    question: dict  # question_id, image, text, category
    context: dict   # captions and instances, or in the wild a caption
    answers: list   # two lines of answer files


def add_judge_flags(parser):
    add = parser.add_argument
    add("--questions", type=Path, required=True)
    add("--context", type=Path, required=True, help="captions and boxes, or captions in the wild")
    add("--answers", type=Path, nargs=2, required=True, metavar=("REFERENCE", "CANDIDATE"))
    add("--rule", type=Path, default=PROMPTS / "rule.json", help="what the judge is told")
    add("--both-orders", action=argparse.BooleanOptionalAction, default=False,
        help="ask again with the answers changed over")
    add("--out", type=Path, required=True)
    add_teacher_flags(parser, temperature=0.2)


def judge(args, teachers=None):
    """Questions, contexts and two answer files -> reviews. Returns the exit code."""
    comparisons = read_comparisons(args.questions, args.context, args.answers)
    rules = json.loads(args.rule.read_text(encoding="utf-8"))
    teacher = open_from_flags(args.teacher, args, teachers)

    def review(comparison):
        try:
            return review_of(comparison, rules, teacher, args.both_orders)
        except LimitReached:
            return None

    reviews = [row for row in teacher.map(review, comparisons, "reviews") if row]
    write(args.out, "".join(json.dumps(row) + "\n" for row in reviews))
    print(teacher.spending())
    print(f"{len(reviews)} reviews are in {args.out}")
    unasked = len(comparisons) - len(reviews)
    if unasked:
        print(f"{unasked} were not asked for: the limit is near; raise it and run again to go on")
    return 1 if unasked else 0


def read_comparisons(questions, context, answers):
    """The paths of a question file, of contexts and of two answer files -> Comparisons, in the questions' order."""
    contexts = {row.get("image"): row for row in read_jsonl(context)}
    answered = [{row.get("question_id"): row for row in read_jsonl(path)} for path in answers]
    comparisons = []
    for number, question in enumerate(read_jsonl(questions), 1):
        if not {"question_id", "image", "text", "category"} <= question.keys():
            raise ValueError(f"{questions} is no question file: "
                             "a line has question_id, image, text, category")
        told = contexts.get(question["image"], {})
        if "caption" not in told and not {"captions", "instances"} <= told.keys():
            raise ValueError(f"{context} says nothing of {question['image']}")
        rows = [rows.get(question["question_id"], {}) for rows in answered]
        for path, row in zip(answers, rows):
            if not isinstance(row.get("text"), str):
                raise ValueError(f"{path} has no answer to question {question['question_id']}")
        comparisons.append(Comparison(number, question, told, rows))
    return comparisons


def review_of(comparison, rules, teacher, both_orders):
    """Asks the judge -> a line of the review file, as the official script writes it."""
    first, second = comparison.answers
    question_id = comparison.question["question_id"]
    review = {"id": comparison.number, "question_id": question_id,
              "answer1_id": first.get("answer_id", question_id),
              "answer2_id": second.get("answer_id", question_id),
              "category": rule_name(comparison.question, comparison.context)}
    review["content"] = ask_for_review(teacher, comparison, rules, first, second)
    review["tuple"] = parse_scores(review["content"]) or FAILED
    if both_orders:
        review["swapped_content"] = ask_for_review(teacher, comparison, rules, second, first)
        swapped = parse_scores(review["swapped_content"]) or FAILED
        review["swapped_tuple"] = swapped[::-1]  # back in the order of the answers
    return review


def ask_for_review(teacher, comparison, rules, first, second):
    texts = first["text"], second["text"]
    messages = review_messages(comparison.question, comparison.context, texts, rules)
    try:
        return teacher.ask(messages)
    except ValueError as error:  # no review to be had: a failure among others
        return f"({error})"


def review_messages(question, context, texts, rules):
    """-> the judge's messages, in the official layout. rules: {name: {"role", "prompt"}}, the official rule.json."""
    name = rule_name(question, context)
    if name not in rules:
        raise ValueError(f"question {question['question_id']} is of category {name}, "
                         "for which there is no rule")
    role = rules[name]["role"]
    task = f"[Context]\n{context_text(context)}\n\n[Question]\n{question['text']}\n\n"
    for number, text in enumerate(texts, 1):
        task += f"[{role} {number}]\n{text}\n\n[End of {role} {number}]\n\n"
    task += f"[System]\n{rules[name]['prompt']}\n\n"
    system = (PROMPTS / "system_message.txt").read_text(encoding="utf-8").strip()
    return [{"role": "system", "content": system}, {"role": "user", "content": task}]


def rule_name(question, context):
    prefix = "llava_bench_" if "caption" in context else ""
    return prefix + question["category"]


def context_text(context):
    """What stands for the picture: in the wild a caption or several, else captions and boxes."""
    if "caption" in context:
        caption = context["caption"]
        return caption if isinstance(caption, str) else "\n".join(caption)
    boxes = [f"{thing['category']}: {thing['bbox']}" for thing in context["instances"]]
    return "\n".join(context["captions"]) + "\n\n" + "\n".join(boxes)


def parse_scores(review):
    """The two scores, 0 to 10, on the first line that is not empty -> [first, second], or None.

    Taken are a comma or a tab between them, "/10", asterisks, "Scores:"; a line of prose with
    numbers in it is not.
    """
    line = next(iter(review.strip().splitlines()), "")
    line = re.sub(r"\b(scores?|ratings?)\b|/ ?10\b|[*_`()\[\]:]", " ", line, flags=re.I).strip(" .")
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(number + r"(?:\s*[,;|]\s*|\s+)" + number, line)
    if not match:
        return None
    scores = [float(score) for score in match.groups()]
    return scores if max(scores) <= 10 else None


def parse_scores_officially(review):
    """As the official script does, where "8, 9" and a space at the end are failures: [-1, -1]."""
    try:
        first, second = review.split("\n")[0].replace(",", " ").split(" ")
        return [float(first), float(second)]
    except ValueError:
        return FAILED
