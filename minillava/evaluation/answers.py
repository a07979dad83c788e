"""Answers to any question file."""
import base64
import csv
import io
import json
import sys
import uuid
import zlib
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from minillava.checkpoint import load_llava
from minillava.evaluation.scienceqa import OPTION_LETTER
from minillava.files import read_jsonl, write
from minillava.generate import generate
from minillava.images import load_image

FORMS = {  # LLaVA-1.5's wishes for the form of an answer (its table 7); official question files have theirs already
    "short_answer": "Answer the question using a single word or phrase.",
    "option_letter": OPTION_LETTER,
    "option_letter_cn": "请直接回答选项字母。"}


def fingerprint(model):
    """A checksum over some of each tensor's numbers: after a training step it is another one."""
    total = 0
    for p in model.parameters():
        some = p.detach().flatten()[:: max(1, p.numel() // 64)]
        total = zlib.crc32(some.float().cpu().numpy().tobytes(), total)
    return f"{total:08x}"


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
