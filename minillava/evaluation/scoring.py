"""From answers to the number, or to the file that a server takes: `score`, `upload` and `table`."""
import json
from pathlib import Path

from minillava.evaluation.benchmarks import BENCHMARKS
from minillava.evaluation.questions import check_asked, questions_by_id
from minillava.files import read_object, write
from minillava.terminal import aligned, printable

SCORE = ".score.json"


# ------------------------------------------------------------------------------------- the commands

def score(name, answers_file, questions_file=None, labels=None, out=None, title=None):
    """Prints the score of an answer file and writes it beside the file, for `table`.

    title: of a benchmark that is another's in miniature; the published figures are none of its own.
    """
    row, found = keep_score(name, answers_file, questions_file, labels, out, title)
    print_score(row, BENCHMARKS[name], found)


def keep_score(name, answers_file, questions_file=None, labels=None, out=None, title=None):
    """As `score`, but prints nothing -> (what the score file says, Score)."""
    benchmark = BENCHMARKS[name]
    if benchmark.labels and not labels and not Path(answers_file).is_dir():
        raise ValueError(f"name the labels with --labels: {benchmark.labels}")
    if labels and not benchmark.labels:
        raise ValueError(f"{benchmark.title} is scored without --labels")
    questions = read_questions_for("score", benchmark, questions_file)
    answers = read_answers_to(name, answers_file, questions)
    found = benchmark.score(answers, questions, labels)
    size = sum(len(question["texts"]) for question in questions.values())
    row = {
        "benchmark": name, "title": title or benchmark.title, "unit": benchmark.unit,
        "score": found.headline, "published": None if title else benchmark.published,
        "answers": found.scored, "size": size or (None if title else benchmark.size),
        "rows": found.rows, "unlabelled": found.unlabelled,
        "model": answers[0].get("model_id"), "metadata": answers[0].get("metadata"),
    }
    write(out or score_file(answers_file), json.dumps(row, indent=1))
    return row, found


def score_file(answers_file):
    """a.jsonl, a folder a -> a.score.json; a.json -> a.json.score.json, for it is another file."""
    return str(Path(answers_file)).removesuffix(".jsonl") + SCORE


def upload(name, answers_file, questions_file, out):
    """Writes the file that the benchmark's server takes."""
    benchmark = BENCHMARKS[name]
    questions = read_questions_for("upload", benchmark, questions_file)
    answers = read_answers_to(name, answers_file, questions)
    answered = {str(row["question_id"]) for row in answers}
    missing = [i for i in questions if i not in answered]
    if missing and benchmark.upload_whole:
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
        small, large = row.get("published") or ("-", "-")
        size = f" of {row['size']}" if row.get("size") else ""
        rows.append([row["title"], f"{row['score']:.1f}", small, large,
                     f"{row['answers']}{size}", row["unit"], answered_by(row)])
    print(aligned(rows))


def answered_by(row):
    """The model's name, and the control where it was not shown the question's own picture."""
    name, control = row.get("model") or "-", (row.get("metadata") or {}).get("control")
    return f"{name}, control: {control}" if control else str(name)


# ------------------------------------------------------------------------------------- what is read

def read_questions_for(command, benchmark, path):
    """The question file, by id; {} where there is none and the command needs none."""
    official = benchmark.questions
    if command == "upload" and benchmark.upload_questions:
        official = benchmark.upload_questions
    if path is None and command in benchmark.needs_questions:
        raise ValueError(f"name the question file with --questions: {official}")
    if path and (Path(path).suffix == ".tsv") != official.endswith(".tsv"):
        raise ValueError(f"{path} is no question file of {benchmark.title}, such as {official}")
    return questions_by_id(path)


def read_answers_to(name, path, questions):
    """An answer file -> its rows; ValueError unless they answer this benchmark's questions."""
    rows = BENCHMARKS[name].answers(path)
    if not rows:
        raise ValueError(f"{path} holds no answers")

    for row in rows:
        other = (row.get("metadata") or {}).get("benchmark") or name
        if other != name:
            raise ValueError(f"{path} holds answers to {other}, not to {name}")
        if questions:
            asked = questions.get(str(row.get("question_id")), {})
            check_asked(path, row, asked.get("texts"))
    return rows


def read_score(path):
    row = read_object(path)
    fields = {"benchmark", "title", "score", "answers", "unit"}
    if not fields <= row.keys() or row["benchmark"] not in BENCHMARKS:
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
    if row["size"] and found.scored < row["size"]:
        line += ", of these alone"
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
