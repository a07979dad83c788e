"""The scores of the benchmarks that come with their labels, each as its official script counts.

A score function takes (answers, questions, labels): answer rows, {question_id: question} of the
question file ({} where it is not needed), and the path of the labels. Labels are joined by what
they say they belong to, an image and a question, never by their line. What was not answered is not
counted: of SEED-Bench and ScienceQA the official scripts count it as wrong.
"""
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from minillava.evaluation.answers import read_answers
from minillava.evaluation.questions import without_wish
from minillava.evaluation.report import official_scores
from minillava.evaluation.vqa_text import normalize
from minillava.files import read_jsonl, read_object, read_text


@dataclass
class Score:
    headline: float                   # on the scale of the paper's figure
    rows: dict                        # {group of questions: {column: number}}
    scored: int                       # how many answers
    unlabelled: list = field(default_factory=list)   # their question ids
    digits: int = 2                   # that are shown


def join_labels(answers, label_of):
    """label_of: row -> its label or None -> ([(row, label)], ids of the rows without one)."""
    labelled, unlabelled = [], []
    for row in answers:
        label = label_of(row)
        if label is None:
            unlabelled.append(row["question_id"])
        else:
            labelled.append((row, label))
    # published files differ in up to one in twenty; in a short file that may be one more by chance
    if not labelled or len(unlabelled) > len(answers) / 10 + 3:
        raise ValueError(f"the labels are those of other questions: {len(unlabelled)} of "
                         f"{len(answers)} answers have none, such as question {unlabelled[0]!r}; "
                         "is it another split?")
    return labelled, unlabelled


def grouped(items, group_of):
    groups = defaultdict(list)
    for item in items:
        groups[group_of(item)].append(item)
    return groups


def percent(rights):
    rights = list(rights)
    return 100 * sum(rights) / max(1, len(rights))


# --------------------------------------------------------------------------------------------- POPE

def score_pope(answers, questions, labels):
    """Li et al. 2023: is there such a thing in the image? F1 of "yes", the mean over categories."""
    asked = {row["question_id"]: questions[str(row["question_id"])] for row in answers}
    known = {}  # what is asked -> "yes" or "no"
    for category in {category_of(question) for question in asked.values()}:
        for label in read_jsonl(pope_labels(labels, category)):
            known[pope_key(label, category)] = label.get("label")

    def label_of(row):
        question = asked[row["question_id"]]
        return known.get(pope_key(question, category_of(question)))

    labelled, unlabelled = join_labels(answers, label_of)
    groups = grouped(labelled, lambda pair: category_of(asked[pair[0]["question_id"]]))
    rows = {name: binary_scores(pairs) for name, pairs in sorted(groups.items())}
    headline = 100 * sum(row["F1"] for row in rows.values()) / max(1, len(rows))
    return Score(headline, rows, len(labelled), unlabelled, digits=5)


def category_of(question):
    """POPE's own files, one for each category, do not state it; LLaVA's, of all three, does."""
    return str(question.get("category", "all"))


def pope_key(question, category):
    return category, str(question.get("image")), without_wish(str(question.get("text")))


def pope_labels(path, category):
    path = Path(path)
    if path.is_file():
        return path
    found = sorted(path.glob(f"*_pope_{category}.json"))
    if len(found) != 1:
        raise FileNotFoundError(f"{path} has no file coco_pope_{category}.json with the labels of "
                                f"the questions of category {category}")
    return found[0]


def pope_says_yes(text):
    """All but a "no" or "not" in the first sentence is a yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return not {"No", "not", "no"} & set(words)


def binary_scores(pairs):
    said = [pope_says_yes(row["text"]) for row, _ in pairs]
    true = [label != "no" for _, label in pairs]
    both = sum(s and t for s, t in zip(said, true))
    precision = both / max(1, sum(said))
    recall = both / max(1, sum(true))
    return {
        "accuracy": sum(s == t for s, t in zip(said, true)) / len(pairs),
        "precision": precision, "recall": recall,
        "F1": 2 * precision * recall / max(1e-9, precision + recall),
        "yes": sum(said) / len(pairs), "questions": len(pairs),
    }


# ---------------------------------------------------------------------------------------------- MME

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene",
              "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation",
             "code_reasoning")


def score_mme(answers, questions, labels):
    """Fu et al. 2023: yes or no; in % the questions right, and the images with both right."""
    known = mme_labels(labels) if labels else {}

    def label_of(row):
        return row.get("label") or known.get(mme_key(row))

    labelled, unlabelled = join_labels(answers, label_of)
    categories = grouped(labelled, lambda pair: mme_key(pair[0])[0])
    rows = {category: mme_scores(categories[category])
            for category in (*PERCEPTION, *COGNITION) if category in categories}
    totals = {"perception": PERCEPTION, "cognition": COGNITION}
    for name, members in totals.items():
        rows[name] = {"score": sum(rows[member]["score"] for member in members if member in rows)}
    return Score(rows["perception"]["score"], rows, len(labelled), unlabelled)


def mme_scores(pairs):
    """A category's [(row, label)], two questions about each image."""
    images = defaultdict(list)
    for row, label in pairs:
        _, image, _ = mme_key(row)
        images[image].append(mme_says(row["text"]) == label)
    accuracy = percent(right for rights in images.values() for right in rights)
    both = percent(all(rights) for rights in images.values())
    return {"accuracy": accuracy, "accuracy+": both, "score": accuracy + both}


def mme_key(row):
    """An answer row -> (category, image without its suffix, question)."""
    category, _, image = str(row["question_id"]).partition("/")
    return category, Path(image).stem, mme_question(row["prompt"])


def mme_question(text):
    return without_wish(without_wish(text).removesuffix("Please answer yes or no."))


def mme_says(text):
    beginning = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in beginning), "other")


def mme_labels(folder):
    """MME's release -> {(category, image, question): "yes" or "no"}.

    CATEGORY/NAME.txt, in some categories CATEGORY/questions_answers_YN/NAME.txt, a line a question.
    """
    known = {}
    for path in sorted(Path(folder).glob("*/**/*.txt")):
        category = path.relative_to(folder).parts[0]
        for line in read_text(path).splitlines():
            question, tab, label = line.strip().partition("\t")
            if tab:
                known[category, path.stem, mme_question(question)] = label.strip().lower()
    if not known:
        raise FileNotFoundError(f"{folder} holds no labels: it is not MME's release, "
                                "CATEGORY/NAME.txt")
    return known


def read_mme_answers(path):
    """Answer lines, or MME's own results: CATEGORY.txt with image, question, label, answer."""
    if not Path(path).is_dir():
        return read_answers(path)
    answers = []
    for path in sorted(Path(path).glob("*.txt")):
        for number, line in enumerate(read_text(path).rstrip("\n").split("\n"), 1):
            cells = line.split("\t")
            if len(cells) != 4:
                raise ValueError(f"line {number} of {path} has no image, question, label and "
                                 "answer")
            image, question, label, text = cells
            answers.append({"question_id": f"{path.stem}/{image}", "prompt": question, "text": text,
                            "label": label.strip().lower()})
    return answers


# ------------------------------------------------------------------------------------ short answers

def score_textvqa(answers, questions, labels):
    """Singh et al. 2019: how many of ten people say the same."""
    known = {(str(label.get("image_id")), str(label.get("question")).lower()): label.get("answers")
             for label in listed(read_object(labels), "data", labels)}

    def label_of(row):
        return known.get((str(row["question_id"]), textvqa_question(row["prompt"]).lower()))

    labelled, unlabelled = join_labels(answers, label_of)
    accuracy = percent(soft_accuracy(row["text"], people) for row, people in labelled)
    return Score(accuracy, {"all": {"accuracy": accuracy}}, len(labelled), unlabelled)


def textvqa_question(prompt):
    """The first line, or the second where "Reference OCR token:" begins the first."""
    lines = prompt.split("\n")
    return lines[1] if lines[0].startswith("Reference OCR token:") and len(lines) > 1 else lines[0]


def soft_accuracy(text, people):
    """Each of the ten is left out in turn: an answer that three of the other nine give is right."""
    said, given = normalize(text), [normalize(answer) for answer in people]
    if said not in given:
        return 0.0
    times = given.count(said)
    return sum(min(1, (times - (answer == said)) / 3) for answer in given) / len(given)


def score_gqa(answers, questions, labels):
    """Hudson & Manning 2019: equal to the word of testdev_balanced_questions.json."""
    known = read_object(labels)

    def label_of(row):
        label = known.get(str(row["question_id"]))
        return label.get("answer") if isinstance(label, dict) else None

    labelled, unlabelled = join_labels(answers, label_of)
    accuracy = percent(gqa_text(row["text"]) == label for row, label in labelled)
    return Score(accuracy, {"all": {"accuracy": accuracy}}, len(labelled), unlabelled)


def gqa_text(text):
    return text.rstrip(".").lower()


# --------------------------------------------------------------------------------------- SEED-Bench

def score_seed(answers, questions, labels):
    """Li et al. 2023: exactly the letter; by kind of question, and of images and of videos."""
    table = read_object(labels)
    known = {str(label.get("question_id")): label for label in listed(table, "questions", labels)}
    labelled, unlabelled = join_labels(answers, lambda row: known.get(str(row["question_id"])))

    names = {number: name for name, number in table.get("question_type", {}).items()}
    kinds = grouped(labelled, lambda pair: names.get(pair[1].get("question_type_id")))
    media = grouped(labelled, lambda pair: str(pair[1].get("data_type")))
    groups = {name: kinds[name] for name in names.values() if name in kinds}
    groups |= media | {"all": labelled}

    rows = {}
    for name, pairs in groups.items():
        rights = [row["text"] == label.get("answer") for row, label in pairs]
        rows[name] = {"accuracy": percent(rights), "questions": len(pairs)}
    return Score(rows["all"]["accuracy"], rows, len(labelled), unlabelled)


def listed(table, name, path):
    """{name: [objects]}, which stood in the file `path` -> the objects."""
    found = table.get(name)
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise ValueError(f'{path} has no list "{name}": these are not the labels of this benchmark')
    return found


# ------------------------------------------------------------------------ LLaVA-Bench (in the wild)

def score_llava_bench(reviews, questions, labels):
    """As the official summary: the candidate in % of the reference, failures as -1 : -1."""
    numbers = Counter(review.get("category") for review in reviews)
    numbers["all"] = len(reviews)
    columns = "relative", "reference", "candidate", "reviews"
    rows = {name: dict(zip(columns, (*shares, numbers[name])))
            for name, shares in official_scores(reviews).items()}
    return Score(rows["all"]["relative"], rows, len(reviews), digits=1)
