"""From answers to the number, or to the file that a server takes: `score`, `upload` and `table`."""
import json
from pathlib import Path

from minillava.evaluation.benchmarks import BENCHMARKS
from minillava.evaluation.questions import read_questions, read_tsv, without_wish
from minillava.evaluation.scienceqa_table import aligned
from minillava.files import beside, read_jsonl, read_object, write
from minillava.terminal import printable

SCORE = ".score.json"


# ------------------------------------------------------------------------------------- the commands

def score(name, answers_file, questions_file=None, labels=None, out=None, title=None):
    """Prints the score of an answer file and writes it beside the file, for `table`.

    title: of a benchmark that is another's in miniature; the published figures are none of its own.
    """
    row, found = count(name, answers_file, questions_file, labels, title)
    print_score(row, BENCHMARKS[name], found)
    write_score(answers_file, row, out)


def count(name, answers_file, questions_file=None, labels=None, title=None):
    """-> (what the score file says, Score)."""
    benchmark = BENCHMARKS[name]
    if benchmark.labels and not labels and not Path(answers_file).is_dir():
        raise ValueError(f"name the labels with --labels: {benchmark.labels}")
    if labels and not benchmark.labels:
        raise ValueError(f"{benchmark.title} is scored without --labels")
    questions = questions_by_id(questions_file)
    if name in ("pope", "mmbench", "mmbench-cn") and not questions:
        raise ValueError(f"name the question file with --questions: {benchmark.questions}")
    answers = read_answers(answers_file, name, questions)
    found = benchmark.score(answers, questions, labels)
    size = len(questions) or (None if title else benchmark.size)
    row = {
        "benchmark": name, "title": title or benchmark.title, "unit": benchmark.unit,
        "score": found.headline, "published": None if title else benchmark.published,
        "answers": found.scored, "size": size, "rows": found.rows, "unlabelled": found.unlabelled,
        "model": answers[0].get("model_id"), "metadata": answers[0].get("metadata"),
    }
    return row, found


def keep_score(name, answers_file, labels=None, title=None):
    """Writes the score of an answer file beside it, for `table`, and prints nothing."""
    row, _ = count(name, answers_file, labels=labels, title=title)
    write_score(answers_file, row)


def write_score(answers_file, row, out=None):
    write(out or beside(answers_file, SCORE), json.dumps(row, indent=1))


def upload(name, answers_file, questions_file, out):
    """Writes the file that the benchmark's server takes."""
    benchmark = BENCHMARKS[name]
    questions = questions_by_id(questions_file)
    if name not in ("gqa", "mm-vet") and not questions:
        raise ValueError("name the question file with --questions: "
                         f"{benchmark.upload_questions or benchmark.questions}")
    answers = read_answers(answers_file, name, questions)
    answered = {str(row["question_id"]) for row in answers}
    missing = [i for i in questions if i not in answered]
    if missing and name in ("vizwiz", "seed"):
        raise ValueError(f"{len(missing)} of {len(questions)} questions have no answer, such as "
                         f"{missing[0]!r}; the server takes whole files: answer them first")
    benchmark.upload(answers, questions, out)
    print(f"{len(answers)} answers are in {printable(out)}")
    if missing:
        print(f"{len(missing)} of {len(questions)} questions have no answer: {some_of(missing)}")


def table(folder):
    """Prints every score that lies under the folder, beside the paper's."""
    files = sorted(Path(folder).rglob(f"*{SCORE}"))
    if not files:
        raise ValueError(f"{folder} holds no scores (*{SCORE}): `score` writes them beside the "
                         "answers")
    order = list(BENCHMARKS)
    scores = [read_score(path) for path in files]
    scores.sort(key=lambda row: (row.get("published") is None, order.index(row["benchmark"])))
    rows = [["", "score", "LLaVA-1.5 7B", "13B", "answers", "is", "answered by"]]
    for row in scores:
        small, large = published_of(row)
        size = f" of {row['size']}" if row.get("size") else ""
        rows.append([row["title"], f"{row['score']:.1f}", small, large,
                     f"{row['answers']}{size}", row["unit"], answered_by(row)])
    print(aligned(rows))


def answered_by(row):
    """The model's name, and the control where it was not shown the question's own picture."""
    name, control = row.get("model") or "-", (row.get("metadata") or {}).get("control")
    return f"{name}, control: {control}" if control else str(name)


def published_of(row):
    """The paper's two figures; a benchmark in miniature has none."""
    if row.get("published") is None:
        return "-", "-"
    return tuple(str(figure) for figure in BENCHMARKS[row["benchmark"]].published)


# ------------------------------------------------------------------------------------- what is read

def questions_by_id(path):
    """{question_id as text: question}, with the "texts" of all that share the id, as in MME."""
    if path is None:
        return {}
    if Path(path).suffix == ".tsv":
        return {row["index"]: row for row in read_tsv(path)}
    questions = {}
    for row in read_questions(path):
        first = questions.setdefault(str(row["question_id"]), row)
        first.setdefault("texts", []).append(row["text"])
    return questions


def read_answers(path, name, questions):
    """An answer file -> its rows; ValueError unless they answer this benchmark's questions."""
    read = BENCHMARKS[name].answers or read_jsonl
    rows = read(path)
    if not rows:
        raise ValueError(f"{path} holds no answers")
    if name == "llava-bench":  # rows are reviews
        for row in rows:
            i = row.get("question_id")
            if questions and str(i) not in questions:
                raise ValueError(f"{path} reviews other questions, such as {i!r}")
        return rows
    seen = set()
    for number, row in enumerate(rows, 1):
        check_answer(f"line {number} of {path}", row, name)
        key = str(row["question_id"]), row["prompt"], row.get("round_id")
        if key in seen:
            raise ValueError(f"{path} has question {row['question_id']!r} twice")
        seen.add(key)
        check_question(path, row, questions)
    return rows


def check_answer(where, row, name):
    """ValueError unless the row is an answer to this benchmark, as far as it says itself."""
    row["metadata"] = row.get("metadata") or {}
    kinds = {"question_id": (str, int), "prompt": (str,), "text": (str,), "metadata": (dict,),
             "round_id": (int, type(None))}
    for field, allowed in kinds.items():
        if type(row.get(field)) not in allowed:
            raise ValueError(f"{where} is no answer: its {field} is {row.get(field)!r:.40}")
    benchmark = row["metadata"].get("benchmark")
    if benchmark not in (None, name):
        raise ValueError(f"{where} is an answer to {benchmark}, not to {name}")


def check_question(path, row, questions):
    """A benchmark's ids are small numbers, as are another's: the question must be the same."""
    if not questions:
        return
    question = questions.get(str(row["question_id"]))
    prompt = without_wish(row["prompt"].replace("<image>", ""))
    if question is None:
        same = False
    elif "texts" in question:
        same = prompt in map(without_wish, question["texts"])
    else:  # a row of MMBench's .tsv
        same = (question.get("question") or "").strip() in prompt
    if not same:
        raise ValueError(f"{path} answers other questions, such as {row['question_id']!r}, "
                         f"{row['prompt'].strip()[:60]!r}; is it another benchmark's, or split's?")


def read_score(path):
    row = read_object(path)
    kinds = {"benchmark": str, "title": str, "score": (int, float), "answers": int, "unit": str,
             "metadata": (dict, type(None))}
    whole = all(isinstance(row.get(field), kind) for field, kind in kinds.items())
    if not whole or row["benchmark"] not in BENCHMARKS:
        raise ValueError(f"{path} is no score; delete it and score its answers again")
    return row


# ---------------------------------------------------------------------------------- what is printed

def print_score(row, benchmark, found):
    columns = list(dict.fromkeys(name for figures in found.rows.values() for name in figures))
    lines = [[row["title"], *columns]]
    for name, figures in found.rows.items():
        lines.append([name, *(shown(figures.get(column), found.digits) for column in columns)])
    print(aligned(lines))
    asked = f" of {row['size']}" if row["size"] else ""
    print(f"{found.scored}{asked} answers are scored, read: {benchmark.reads}")
    if found.unlabelled:
        print(f"{len(found.unlabelled)} have no label and are not scored: "
              f"{some_of(found.unlabelled)}")
    line = f"{row['unit']}: {row['score']:.2f}"
    if row["published"]:
        small, large = row["published"]
        line += f" (LLaVA-1.5 7B {small}, 13B {large}; {benchmark.source})"
    print(line)


def shown(value, digits):
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.{digits}f}"


def some_of(ids, most=100):
    more = f" and {len(ids) - most} more" if len(ids) > most else ""
    return printable(", ".join(map(str, ids[:most])), keep="") + more
