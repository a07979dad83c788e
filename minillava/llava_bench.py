"""LLaVA-Bench (section 5.1): answers to any question file, a judge who compares them, relative scores.

    python -m minillava.llava_bench answer --questions q.jsonl --images DIR --out answers.jsonl
    python -m minillava.llava_bench judge --questions q.jsonl --context caps_boxes.jsonl \\
        --answers gpt4.jsonl answers.jsonl --teacher openai --out reviews.jsonl
    python -m minillava.llava_bench report reviews.jsonl
    python -m minillava.llava_bench toy --out runs/bench     # these three in the toy world, for the shipped miniature

Files are the official ones, in and out. An answer is a line {"question_id", "prompt", "text", "answer_id", "model_id",
"metadata"}, which the converters of VQAv2, GQA, VizWiz, TextVQA, POPE, MME, SEED, MM-Vet and MMBench take. The question
file of MMBench is a .tsv with its pictures inside, those of the others are jsonl: {"question_id", "image", "text"}.
"""
import argparse
import base64
import csv
import io
import json
import random
import re
import shlex
import sys
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minillava import toy_world
from minillava.checkpoint import load_llava
from minillava.generate import generate
from minillava.instruct_data import PROMPTS, read_jsonl, read_symbols
from minillava.run import write
from minillava.scienceqa import OPTION_LETTER
from minillava.teacher import LimitReached, add_arguments, open_teacher, run_command
from minillava.vision import load_image

FORMS = {  # LLaVA-1.5's wishes for the form of an answer (its table 7); official question files have theirs already
    "short_answer": "Answer the question using a single word or phrase.",
    "option_letter": OPTION_LETTER,
    "option_letter_cn": "请直接回答选项字母。"}


# ------------------------------------------------------------------------------------------------------------- answers

def key_of(row):
    return row["question_id"], row["prompt"]


def answers_so_far(questions, path, model_id, metadata):
    """{(question_id, prompt): answer line} of an earlier run; ValueError if it answered something else or otherwise."""
    path = Path(path)
    if not path.exists():
        return {}
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):  # the run was killed while it wrote a line: that one is asked again
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
    asked, done = set(map(key_of, questions)), {}
    for row in read_jsonl(path):
        if (row.get("question_id"), row.get("prompt")) not in asked:
            raise ValueError(f"{path} answers other questions, such as {row.get('question_id')!r}; name another file")
        if (row.get("model_id"), row.get("metadata")) != (model_id, metadata):
            raise ValueError(f"{path} was answered by {row.get('model_id')} with {row.get('metadata')}, this run is "
                             f"{model_id} with {metadata}; name another file")
        done[key_of(row)] = row
    return done


def answer_file(questions, path, answer, model_id, metadata, batch=8):
    """Appends an answer to `path` for every question that it does not answer yet; returns all, in the questions' order.

    questions: [{"question_id", "prompt", ...}]; answer: list of questions -> list of texts, one batch. Two questions
    may share an id, as in MME, but then not the prompt. Questions of like length run together, and the finished file is
    put into their order, which official scripts rely on.
    """
    twice = [key for key, times in Counter(map(key_of, questions)).items() if times > 1]
    if twice:
        raise ValueError(f"question_id {twice[0][0]!r} occurs twice")
    done = answers_so_far(questions, path, model_id, metadata)
    todo = sorted((q for q in questions if key_of(q) not in done), key=lambda q: len(q["prompt"]))
    with open(path, "a", encoding="utf-8") as out, tqdm(total=len(questions), initial=len(done), desc="answers") as bar:
        for start in range(0, len(todo), batch):
            asked = todo[start : start + batch]
            for question, text in zip(asked, answer(asked), strict=True):
                row = {"question_id": question["question_id"], "prompt": question["prompt"], "text": text,
                       "answer_id": uuid.uuid4().hex, "model_id": model_id, "metadata": metadata}
                out.write(json.dumps(row) + "\n")
                done[key_of(row)] = row
            out.flush()
            bar.update(len(asked))
    if todo:
        write(path, "".join(json.dumps(done[key_of(q)]) + "\n" for q in questions))
    return [done[key_of(q)] for q in questions]


def read_questions(path, form=None):
    """A jsonl of {"question_id", "text", "image" (a file, or left out)}, or MMBench's .tsv -> the same with "prompt",
    which is the text and, unless it ends with it already, the wished form of the answer; form: a key of FORMS."""
    if Path(path).suffix == ".tsv":
        csv.field_size_limit(sys.maxsize)  # a picture is one field
        with open(path, encoding="utf-8", newline="") as file:
            rows = [from_mmbench(row) for row in csv.DictReader(file, delimiter="\t")]
    else:
        rows = read_jsonl(path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row.get("text"), str) or not isinstance(row.get("question_id"), (str, int)):
            raise ValueError(f"question {number} of {path} has no question_id or no text")
        row["prompt"] = row["text"]
        if form and not row["text"].endswith(FORMS[form]):
            row["prompt"] = f"{row['text']}\n{FORMS[form]}"
    return rows


def from_mmbench(row):
    """Hint, question and options in the official layout; options that a question has not are empty, or nan."""
    given = lambda name: row.get(name) not in (None, "", "nan")
    options = [f"{letter}. {row[letter]}" for letter in "ABCD" if given(letter)]
    text = "\n".join([row["hint"]] * given("hint") + [row.get("question") or ""] + options)
    return {"question_id": row.get("index"), "text": text, "base64": row.get("image")}


def answer(args):
    form = next((form for form in FORMS if getattr(args, form)), None)
    if args.batch < 1 or args.max_new_tokens < 1 or args.temperature < 0:
        raise ValueError("--batch and --max-new-tokens are at least 1, --temperature at least 0")
    questions = read_questions(args.questions, form)
    for question in questions:  # rather now than after hours
        name = Path(question.get("image") or ".")
        if name != Path() and (not args.images or ".." in name.parts or not (args.images / name).is_file()
                               or name.is_absolute()):
            raise ValueError(f"{name}, of question {question['question_id']}, is not in --images {args.images}")
    model, tokenizer = load_llava(args.model, vision=args.vision, device=args.device)

    def picture(question):
        if question.get("base64"):
            return load_image(io.BytesIO(base64.b64decode(question["base64"])))
        return load_image(args.images / question["image"]) if question.get("image") else None

    def texts(asked):
        return generate(model, tokenizer, [question["prompt"] for question in asked], list(map(picture, asked)),
                        args.max_new_tokens, args.temperature)

    metadata = {"template": model.config.template, "temperature": args.temperature,
                "max_new_tokens": args.max_new_tokens}
    rows = answer_file(questions, args.out, texts, str(args.model or "miniature"), metadata, args.batch)
    print(f"{len(rows)} answers are in {args.out}")
    return 0


# ----------------------------------------------------------------------------------------------------------- the judge

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
    system = (PROMPTS / "judge" / "system_message.txt").read_text(encoding="utf-8").strip()
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


def judge(args):
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
    teacher, orders = open_teacher(args), (1, -1) if args.both_orders else (1,)

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


# ---------------------------------------------------------------------------------------------------------- the report

def by_category(rows, pairs):
    """{category: [questions, 2]}, "all" among them, the categories in order."""
    groups = {name: [pair for row, pair in zip(rows, pairs) if name in ("all", row["category"]) and pair is not None]
              for name in ["all", *sorted({row["category"] for row in rows})]}
    return {name: np.asarray(groups[name], dtype=float).reshape(-1, 2) for name in sorted(groups)}


def relative(pairs):
    """[.., questions, 2] -> the candidate's mean score in per cent of the reference's, [..]."""
    first, second = np.moveaxis(pairs.mean(-2), -1, 0)
    return 100 * second / np.maximum(first, 1e-9)


def interval(pairs, draws=2000):
    """95 % interval of `relative`, by bootstrap over the questions."""
    drawn = np.random.default_rng(0).integers(0, len(pairs), (draws, len(pairs)))
    return np.percentile(relative(pairs[drawn]), (2.5, 97.5))


def official_lines(rows):
    """What the official summary prints: failures count as -1 : -1, means are rounded before they are divided."""
    pairs = [parse_scores_officially(row["content"]) if "content" in row else row["tuple"] for row in rows]
    for name, scores in by_category(rows, pairs).items():
        first, second = (round(mean, 3) for mean in scores.mean(0).tolist())
        share = round(second / first * 100, 1) if first else "nan"
        yield f"{name} {share} {round(first * 10, 1)} {round(second * 10, 1)}"


def show(rows):
    """The table of the paper: per category the candidate's score in per cent of the reference's."""
    pairs = [parse_scores(row["content"]) if "content" in row else row["tuple"] for row in rows]
    pairs = [pair if pair and min(pair) >= 0 else None for pair in pairs]
    both = any("swapped_content" in row for row in rows)
    if both:  # the mean of the two orders, where both are there
        swapped = [(parse_scores(row.get("swapped_content", "")) or [])[::-1] for row in rows]
        straight, pairs = pairs, [np.mean((pair, other), 0) if pair and other else None
                                  for pair, other in zip(pairs, swapped)]
    print(f"{'category':20} relative   95 % interval  reference  candidate  reviews  failed")
    for name, scores in by_category(rows, pairs).items():
        cells = f"{'-':>9}{'-':>16}{'-':>11}{'-':>11}"
        if len(scores):
            (first, second), (low, high) = 10 * scores.mean(0), interval(scores)
            cells = f"{relative(scores):9.1f}{f'{low:.1f} - {high:.1f}':>16}{first:11.1f}{second:11.1f}"
        asked = sum(name in ("all", row["category"]) for row in rows)
        print(f"{name:20}{cells}{len(scores):9}{asked - len(scores):8}")
    good = [(a, b) for a, b, pair in zip(straight, swapped, pairs) if pair is not None] if both else []
    if good:
        gain = np.mean([(a[0] - b[0] + b[1] - a[1]) / 2 for a, b in good])  # each answer's points, first less second
        turned = sum((a[0] - a[1]) * (b[0] - b[1]) < 0 for a, b in good)
        print(f"position bias: an answer gets {gain:+.2f} points for standing first; {turned} of {len(good)} verdicts "
              "turn round when the answers change places")


def report(args):
    for path in args.reviews:
        rows = read_jsonl(path)
        if not rows or not all("category" in row and ("content" in row or "tuple" in row) for row in rows):
            raise ValueError(f"{path} holds no reviews: a line has category, content and tuple")
        print(path)
        if args.strict_official:
            print("\n".join(official_lines(rows)))
        else:
            show(rows)
    return 0


# -------------------------------------------------------------------------------------------------------- the toy world

def toy(args):
    """LLaVA-Bench (COCO) in miniature: per held-out scene a question of each category, and the teacher's answers."""
    toy_world.make_world(args.out, "val", args.scenes, args.seed)
    symbols = read_symbols(args.out / "captions_val.json", args.out / "instances_val.json")
    files, rng = {"questions": [], "context": [], "reference": []}, random.Random(args.seed)
    for name, (captions, boxes) in symbols.items():
        things = [{"category": category, "bbox": box} for category, box in boxes]
        files["context"].append({"id": Path(name).stem, "image": name, "captions": captions, "instances": things})
        for category, kind in (("conv", "conversation"), ("detail", "detail"), ("complex", "reasoning")):
            question, answer = toy_world.teach(kind, captions, boxes, rng)[0]
            row = {"question_id": len(files["questions"]), "category": category}
            files["questions"].append(row | {"image": name, "text": question})
            files["reference"].append(row | {"text": answer})
    paths = {name: args.out / f"{name}.jsonl" for name in (*files, "answers", "reviews")}
    for name, rows in files.items():
        write(paths[name], "".join(json.dumps(row) + "\n" for row in rows))
    paths["answers"].unlink(missing_ok=True)  # of a model of the same name, perhaps
    model = ["--model", args.model] if args.model else []
    for command in (["answer", "--questions", paths["questions"], "--images", args.out / "val",
                     "--out", paths["answers"], "--batch", "30", *model],
                    ["judge", "--questions", paths["questions"], "--context", paths["context"],
                     "--answers", paths["reference"], paths["answers"], "--teacher", "toy", "--out", paths["reviews"]],
                    ["report", paths["reviews"]]):
        command = list(map(str, command))
        print("\n$ python -m minillava.llava_bench", shlex.join(command), flush=True)
        again = make_parser().parse_args(command)
        again.run(again)
    return 0


# --------------------------------------------------------------------------------------------------------- the commands

def make_parser():
    parser = argparse.ArgumentParser(prog="python -m minillava.llava_bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("answer", help="a question file and pictures -> answers")
    command.set_defaults(run=answer)
    command.add_argument("--questions", type=Path, required=True)
    command.add_argument("--images", type=Path, help="the folder that the questions' images are in")
    command.add_argument("--out", type=Path, required=True)
    command.add_argument("--model", type=Path, help="folder of a LLaVA (default: the shipped miniature)")
    command.add_argument("--vision", help="folder of its CLIP, where it has none of its own")
    form = command.add_mutually_exclusive_group()
    for name, wish in FORMS.items():
        form.add_argument(f"--{name.replace('_', '-')}", action=flag, default=False, help=f'asks: "{wish}"')
    command.add_argument("--max-new-tokens", type=int, default=1024)
    command.add_argument("--temperature", type=float, default=0.0)
    command.add_argument("--batch", type=int, default=8)
    command.add_argument("--device", default="auto")
    command = commands.add_parser("judge", help="two answer files -> reviews")
    command.set_defaults(run=judge)
    command.add_argument("--questions", type=Path, required=True)
    command.add_argument("--context", type=Path, required=True, help="captions and boxes, or captions in the wild")
    command.add_argument("--answers", type=Path, nargs=2, required=True, metavar=("REFERENCE", "CANDIDATE"))
    command.add_argument("--rule", type=Path, default=PROMPTS / "judge" / "rule.json", help="what the judge is told")
    command.add_argument("--both-orders", action=flag, default=False, help="ask again with the answers changed over")
    command.add_argument("--out", type=Path, required=True)
    add_arguments(command, temperature=0.2)
    command = commands.add_parser("report", help="reviews -> relative scores")
    command.set_defaults(run=report)
    command.add_argument("reviews", type=Path, nargs="+")
    command.add_argument("--strict-official", action=flag, default=False, help="the official arithmetic and output")
    command = commands.add_parser("toy", help="answer, judge and report in the toy world")
    command.set_defaults(run=toy)
    command.add_argument("--model", type=Path)
    command.add_argument("--scenes", type=int, default=30)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", type=Path, required=True)
    return parser


def main():
    run_command(make_parser())


if __name__ == "__main__":
    main()
