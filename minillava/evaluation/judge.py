"""A judge compares two answers to each question about a picture (section 5.1: LLaVA-Bench, GPT-4).

It sees no picture either: captions and boxes stand for it. The first answer is the reference, that
of a text-only GPT-4 which was told the same; the second is the candidate's. Its reply begins with a
score for each, "8 7", and goes on with its reasons.
"""
import argparse
import re
from dataclasses import dataclass
from pathlib import Path

from minillava.evaluation.questions import check_asked, read_questions
from minillava.files import read_jsonl, read_object, read_text, write_jsonl
from minillava.instruct.command import add_teacher_flags, check_output, end_without, print_dry_run
from minillava.instruct.exchange import TeacherError
from minillava.terminal import exit_with, printable

PROMPTS = Path(__file__).parent / "prompts"
RULE = PROMPTS / "rule.json"
SYSTEM = PROMPTS / "system_message.txt"
FAILED = [-1.0, -1.0]  # the official scores of a review that names none


@dataclass(frozen=True)
class Comparison:
    """One line of the question file, and what the other files say about it."""

    number: int     # of the line, from 1
    question: dict  # question_id, image, text, category
    context: dict   # captions and instances, or in the wild a caption
    answers: list   # two lines of answer files


def add_judge_flags(parser, teachers=None):
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--questions", type=Path, required=True)
    add("--context", type=Path, required=True, help="captions and boxes, or captions in the wild")
    add("--answers", type=Path, nargs=2, required=True, metavar=("REFERENCE", "CANDIDATE"))
    add("--rule", type=Path, default=RULE,
        help="what the judge is told to do, such as the official rule.json (default: our wording)")
    add("--system", type=Path, default=SYSTEM,
        help="a text file, the judge's system message (default: our wording)")
    add("--both-orders", action=flag, default=False, help="ask again with the answers changed over")
    add("--out", type=Path, required=True)
    add("--dry-run", action=flag, default=False,
        help="ask nothing: show a request, how many there are, what they would cost")
    add_teacher_flags(parser, temperature=0.2, teachers=teachers or {})


def judge(questions, context, answers, out, open_judge, rule_file=RULE, system_file=SYSTEM,
          both_orders=False, dry_run=False):
    """Questions, contexts and two answer files -> reviews. Returns the exit code.

    open_judge: gives the Teacher who is asked, once all files have been read.
    """
    check_output(out, questions, context, *answers, rule_file, system_file)
    comparisons = read_comparisons(questions, context, answers)
    rules = read_rules(rule_file, comparisons)
    system = read_text(system_file).strip()
    teacher = open_judge()
    if RULE == rule_file or SYSTEM == system_file:
        print("the judge is told our own wording of the task, not the official one: "
              "--rule and --system take other files")

    orders = (False, True) if both_orders else (False,)
    if dry_run:
        print_dry_run(teacher, [review_messages(comparison, rules, system, swapped)
                                for comparison in comparisons for swapped in orders])
        return 0

    def review(comparison):
        try:
            return review_of(comparison, rules, system, teacher, orders)
        except TeacherError:
            return None

    reviews = [row for row in teacher.map(review, comparisons, "reviews") if row]
    print(teacher.spending())
    return finish(out, reviews, len(comparisons), teacher)


def finish(path, reviews, wanted, teacher):
    """Writes the reviews and says what is missing. Returns the exit code."""
    if not reviews:
        end_without("review", teacher)
    if not any(row["scores"] for row in reviews):
        exit_with(f"of {len(reviews)} reviews none names two scores, and no file is written; the "
                  f"first one says: {reviews[0]['content'][:300]!r}", code=1)
    write_jsonl(path, reviews)
    print(f"{len(reviews)} reviews are in {printable(path)}")
    if len(reviews) < wanted:
        print(f"{wanted - len(reviews)} were not asked for: {teacher.why_stopped()}")
    return 0 if len(reviews) == wanted else 1


# ------------------------------------------------------------------------------------ files in

def read_comparisons(questions, context, answers):
    """The paths of a question file, of contexts and of two answer files -> [Comparison]."""
    contexts = rows_by("image", context)
    answered = [rows_by("question_id", path) for path in answers]
    comparisons = []
    for number, question in enumerate(read_questions(questions), 1):
        i, image = question["question_id"], question.get("image")
        if not image or not isinstance(question.get("category"), str):
            raise ValueError(f"question {i} of {questions} has no image or no category")
        told = contexts.get(image, {})
        check_told(told, image, context)
        rows = []
        for path, row_of in zip(answers, answered):
            row = row_of.get(str(i), {})
            if not isinstance(row.get("text"), str):
                raise ValueError(f"{path} has no answer to question {i}")
            check_asked(path, row, [question["text"]])
            rows.append(row)
        comparisons.append(Comparison(number, question, told, rows))
    return comparisons


def rows_by(name, path):
    """JSON lines -> {row[name] as text: row}"""
    found = {}
    for row in read_jsonl(path):
        if found.setdefault(str(row.get(name)), row) != row:
            raise ValueError(f"{path} has two rows of {name} {row.get(name)!r}")
    return found


def check_told(told, image, path):
    if "caption" not in told and not {"captions", "instances"} <= told.keys():
        raise ValueError(f"{path} says nothing of {image}")
    try:
        context_text(told)
    except (KeyError, TypeError):
        raise ValueError(f"{path}: of {image} it has neither a caption nor a list of captions and "
                         "one of instances, each with category and bbox") from None


def read_rules(path, comparisons):
    """{name: {"role", "prompt"}}, the official rule.json, with a rule for every question."""
    rules = read_object(path)
    for comparison in comparisons:
        name = rule_name(comparison)
        rule = rules.get(name)
        if not isinstance(rule, dict) or not {"role", "prompt"} <= rule.keys():
            i = comparison.question["question_id"]
            raise ValueError(f"question {i} is of category {name}, for which {path} has no rule "
                             "with a role and a prompt")
    return rules


# ------------------------------------------------------------------------ what the judge is told

def review_messages(comparison, rules, system, swapped=False):
    """-> chat messages in the official layout; swapped: the candidate's answer stands first."""
    rule = rules[rule_name(comparison)]
    answers = comparison.answers[::-1] if swapped else comparison.answers
    task = f"[Context]\n{context_text(comparison.context)}\n\n"
    task += f"[Question]\n{comparison.question['text']}\n\n"
    for number, answer in enumerate(answers, 1):
        name = f"{rule['role']} {number}"
        task += f"[{name}]\n{answer['text']}\n\n[End of {name}]\n\n"
    task += f"[System]\n{rule['prompt']}\n\n"
    return [{"role": "system", "content": system}, {"role": "user", "content": task}]


def rule_name(comparison):
    prefix = "llava_bench_" if "caption" in comparison.context else ""
    return f"{prefix}{comparison.question['category']}"


def context_text(context):
    """What stands for the picture: in the wild a caption or several, else captions and boxes."""
    if "caption" in context:
        return joined(context["caption"])
    boxes = [f"{thing['category']}: {thing['bbox']}" for thing in context["instances"]]
    return joined(context["captions"]) + "\n\n" + "\n".join(boxes)


def joined(captions):
    """One or several, a line each."""
    return captions if isinstance(captions, str) else "\n".join(captions)


# ----------------------------------------------------------------------------- what it replies

def review_of(comparison, rules, system, teacher, orders):
    """Asks the judge -> a line of the official review file.

    "tuple" holds the scores as the official script reads them, so that its summary of our file is
    its own; "scores" holds them as `parse_scores` does, which understands more. Those of a review
    with the answers changed over are put back in the order of the answers.
    """
    question_id = comparison.question["question_id"]
    review = {"id": comparison.number, "question_id": question_id}
    for number, row in enumerate(comparison.answers, 1):
        review[f"answer{number}_id"] = row.get("answer_id", question_id)
    review["category"] = rule_name(comparison)
    for swapped in orders:
        try:
            content = teacher.ask(review_messages(comparison, rules, system, swapped))
        except ValueError as error:  # no review to be had: a failure among others
            content = f"({error})"
        official, scores = parse_scores_officially(content), parse_scores(content)
        if swapped:
            official, scores = official[::-1], scores and scores[::-1]
        prefix = "swapped_" if swapped else ""
        review[f"{prefix}content"] = content
        review[f"{prefix}tuple"] = official
        review[f"{prefix}scores"] = scores
    return review


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
