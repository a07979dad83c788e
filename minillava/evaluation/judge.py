"""A judge compares two answers (section 5.1)."""
import argparse
import json
import re
from pathlib import Path

from minillava.files import read_jsonl, write
from minillava.instruct.command import add_arguments, open_teacher
from minillava.instruct.teacher import LimitReached

PROMPTS = Path(__file__).parent / "prompts"


def review_messages(question, context, answers, rules):
    """-> the judge's messages in the official layout, and the rule's name. context: captions and boxes, or in the wild
    a caption or several; answers: of Assistant 1 and 2; rules: {name: {"role", "prompt"}}, the official rule.json."""
    if "caption" in context:
        told, name = context["caption"], f"llava_bench_{question['category']}"
        told = told if isinstance(told, str) else "\n".join(told)
    else:
        boxes = "\n".join(f"{thing['category']}: {thing['bbox']}" for thing in context["instances"])
        told, name = "\n".join(context["captions"]) + f"\n\n{boxes}", question["category"]
    if name not in rules:
        raise ValueError(f"question {question['question_id']} is of category {name}, for which there is no rule")
    role, text = rules[name]["role"], f"[Context]\n{told}\n\n[Question]\n{question['text']}\n\n"
    for i, answer in enumerate(answers, 1):
        text += f"[{role} {i}]\n{answer}\n\n[End of {role} {i}]\n\n"
    system = (PROMPTS / "system_message.txt").read_text(encoding="utf-8").strip()
    return [{"role": "system", "content": system},
            {"role": "user", "content": f"{text}[System]\n{rules[name]['prompt']}\n\n"}], name


def parse_scores(review):
    """The two scores, 0 to 10, on the first line that is not empty -> [first, second], or None. Taken are a comma or a
    tab between them, "/10", asterisks, "Scores:"; a line of prose with numbers in it is not."""
    line = next(iter(review.strip().splitlines()), "")
    line = re.sub(r"\b(scores?|ratings?)\b|/ ?10\b|[*_`()\[\]:]", " ", line, flags=re.I).strip(" .")
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:\s*[,;|]\s*|\s+)(\d+(?:\.\d+)?)", line)
    scores = [float(score) for score in match.groups()] if match else []
    return scores if match and max(scores) <= 10 else None


def parse_scores_officially(review):
    """As the official script does, where "8, 9" and a space at the end are failures: [-1, -1]."""
    try:
        first, second = review.split("\n")[0].replace(",", " ").split(" ")
        return [float(first), float(second)]
    except ValueError:
        return [-1.0, -1.0]


def add_judge_flags(parser):
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--context", type=Path, required=True, help="captions and boxes, or captions in the wild")
    parser.add_argument("--answers", type=Path, nargs=2, required=True, metavar=("REFERENCE", "CANDIDATE"))
    parser.add_argument("--rule", type=Path, default=PROMPTS / "rule.json", help="what the judge is told")
    parser.add_argument("--both-orders", action=argparse.BooleanOptionalAction, default=False,
                        help="ask again with the answers changed over")
    parser.add_argument("--out", type=Path, required=True)
    add_arguments(parser, temperature=0.2)


def judge(args, teachers=None):
    questions = read_jsonl(args.questions)
    contexts = {row.get("image"): row for row in read_jsonl(args.context)}
    files = [{row.get("question_id"): row for row in read_jsonl(path)} for path in args.answers]
    rules = json.loads(args.rule.read_text(encoding="utf-8"))
    for question in questions:
        if not {"question_id", "image", "text", "category"} <= question.keys():
            raise ValueError(f"{args.questions} is no question file: a line has question_id, image, text, category")
        given = contexts.get(question["image"], {}).keys()
        if "caption" not in given and not {"captions", "instances"} <= given:
            raise ValueError(f"{args.context} says nothing of {question['image']}")
        for path, rows in zip(args.answers, files):
            if not isinstance(rows.get(question["question_id"], {}).get("text"), str):
                raise ValueError(f"{path} has no answer to question {question['question_id']}")
    teacher, orders = open_teacher(args, teachers), (1, -1) if args.both_orders else (1,)

    def work(job):
        number, question = job
        rows = [rows[question["question_id"]] for rows in files]
        review = {"id": number, "question_id": question["question_id"]}
        for i, row in enumerate(rows, 1):
            review[f"answer{i}_id"] = row.get("answer_id", row["question_id"])
        for order in orders:
            messages, review["category"] = review_messages(question, contexts[question["image"]],
                                                           [row["text"] for row in rows][::order], rules)
            try:
                content = teacher.ask(messages)
            except LimitReached:
                return None
            except ValueError as error:  # no review to be had: a failure among others
                content = f"({error})"
            scores = (parse_scores(content) or [-1.0, -1.0])[::order]
            review |= {"content": content, "tuple": scores} if order == 1 else {
                "swapped_content": content, "swapped_tuple": scores}
        return review

    reviews = [review for review in teacher.map(work, list(enumerate(questions, 1)), "reviews") if review]
    write(args.out, "".join(json.dumps(review) + "\n" for review in reviews))
    print(teacher.report())
    print(f"{len(reviews)} reviews are in {args.out}")
    if len(reviews) < len(questions):
        print(f"{len(questions) - len(reviews)} were not asked for: the limit is near; raise it and run again to go on")
    return int(len(reviews) < len(questions))
