"""ScienceQA (Lu et al. 2022; section 5.2 of the paper): its problems become conversations, its answers a table.

    python -m minillava.scienceqa --data ScienceQA --split train --format QCM-LEA      # writes llava_train_QCM-LEA.json

The official folder: problems.json, pid_splits.json, captions.json, images/SPLIT/ID/image.png. A format says in which
order things stand, those of the question before the dash, those of the answer after it:
    Q question, C context (hint), M multiple options, L lecture, E explanation (solution), A answer; in LEPA the answer
    follows upon a prompt, "###\\nANSWER:", with which the first LLaVA was asked for it in a second pass
The paper reasons first (QCM-LEPA, later QCM-LEA) and compares with answering first (QCM-ALE).
"""
import argparse
import json
import re
from pathlib import Path

LETTERS = "ABCDE"
OPTION_LETTER = "Answer with the option's letter from the given choices directly."  # what LLaVA-1.5 was taught to obey
SPLIT_SIZES = {"train": 12726, "val": 4241, "test": 4241, "trainval": 16967, "minitrain": 1272, "minival": 424,
               "minitest": 424}  # of the whole ScienceQA

QUESTIONS = {
    "QCM": "Question: {question}\nContext: {context}\nOptions: {options}",
    "CQM": "Context: {context}\nQuestion: {question}\nOptions: {options}",
    "QCML": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture}",
    "QCME": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {solution}",
    "QCMLE": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture} {solution}",
    "QCLM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture}\nOptions: {options}",
    "QCEM": "Question: {question}\nContext: {context}\nBECAUSE: {solution}\nOptions: {options}",
    "QCLEM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture} {solution}\nOptions: {options}",
}
ANSWERS = {
    "A": "Answer: The answer is {letter}.",
    "AL": "Answer: The answer is {letter}. BECAUSE: {solution}",  # sic: the official converter mixes up
    "AE": "Answer: The answer is {letter}. BECAUSE: {lecture}",   # these two
    "ALE": "Answer: The answer is {letter}. BECAUSE: {lecture} {solution}",
    "AEL": "Answer: The answer is {letter}. BECAUSE: {solution} {lecture}",
    "LA": "Answer: {lecture} The answer is {letter}.",
    "EA": "Answer: {solution} The answer is {letter}.",
    "LEA": "Answer: {lecture} {solution} The answer is {letter}.",
    "ELA": "Answer: {solution} {lecture} The answer is {letter}.",
    "LEPA": "{plan}###\nANSWER: {letter}.",
}


# ------------------------------------------------------------------------------------------------ the official folder

def read_object(path):
    """A JSON file that holds an object -> dict; OSError or ValueError in one line."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:  # a JSONDecodeError or a UnicodeDecodeError
        raise ValueError(f"{path} is not a JSON file") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a JSON object")
    return data


def load(folder, split):
    """{id: problem} of a split, in the split's order. OSError or ValueError names what is missing or malformed."""
    folder = Path(folder)
    for name in ("problems.json", "pid_splits.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is not ScienceQA's folder (problems.json, "
                                    "pid_splits.json, captions.json, images/)")
    splits, problems = read_object(folder / "pid_splits.json"), read_object(folder / "problems.json")
    if split not in splits:
        raise ValueError(f"{folder / 'pid_splits.json'} has no split {split!r}, only {', '.join(splits)}")
    ids = splits[split]
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids) or len(set(ids)) < len(ids):
        raise ValueError(f"{folder / 'pid_splits.json'}: split {split} is not a list of ids, each once")
    for i in ids:
        check_problem(i, problems.get(i))
    return {i: problems[i] for i in ids}


def check_problem(i, problem):
    if not isinstance(problem, dict):
        raise ValueError(f"problems.json has no problem {i!r}, which pid_splits.json names")
    for field in ("question", "hint", "lecture", "solution", "subject", "topic", "grade", "split"):
        if not isinstance(problem.get(field), str):
            raise ValueError(f"problem {i} has no text {field!r}")
    choices, answer, image = problem.get("choices"), problem.get("answer"), problem.get("image")
    if not isinstance(choices, list) or not 1 < len(choices) <= 5 or not all(isinstance(c, str) for c in choices):
        raise ValueError(f"problem {i} has no list of 2 to 5 choices")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"problem {i}: answer {answer!r:.40} is none of its {len(choices)} choices, counted from 0")
    inside = image is None or all(re.fullmatch(r"[\w-][\w .-]*", str(name)) for name in (i, image))
    if "image" not in problem or not inside:
        raise ValueError(f"problem {i}: image {image!r:.80} is neither null nor the name of a file in its own folder")


def image_folder(folder, split):
    """What the "image" entries of `convert` are relative to."""
    return Path(folder, "images", "" if split == "trainval" else split.removeprefix("mini"))


def check_images(samples, images):
    """FileNotFoundError, in one line, unless the image of every LLaVA-JSON sample lies in the folder `images`."""
    wanted = [Path(images, sample["image"]) for sample in samples if "image" in sample]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(wanted)} images are missing, such as {missing[0]}; unpack "
                                "ScienceQA's images there, or leave their questions out with --text-only")


# ------------------------------------------------------------------------------------------------------- conversion

def options(problem):
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem["choices"]))


def texts(problem, format, caption=""):
    """A problem -> (question, answer) as the official converter writes them, oddities included."""
    ask, _, tell = str(format).partition("-")
    if ask not in QUESTIONS or tell not in ANSWERS:
        raise ValueError(f"there is no format {format!r}; one is made of {', '.join(QUESTIONS)}, a dash, and "
                         f"{', '.join(ANSWERS)}")
    lecture, solution = problem["lecture"], problem["solution"]
    plan = "".join(f"{name}: {text}\n" for name, text in (("LECTURE", lecture), ("SOLUTION", solution)) if text.strip())
    fields = {"question": problem["question"], "context": f"{problem['hint']} {caption}".strip() or "N/A",
              "options": options(problem), "lecture": lecture, "solution": solution, "plan": plan,
              "letter": LETTERS[problem["answer"]]}
    return (tidy(QUESTIONS[ask].format(**fields), "Question: "), tidy(ANSWERS[tell].format(**fields), "Answer: "))


def tidy(text, header):
    # sic, three times: one pass makes two spaces of three, so that an answer whose lecture and solution are empty keeps a
    # space in front; BECAUSE: goes only where nothing follows it, not from the middle; and the header goes from wherever
    # else it stands in the text, too.
    text = text.replace("  ", " ").strip().removesuffix("BECAUSE:").strip()
    return text.replace(header, "") if text.startswith(header) else text


def convert(folder, split, format="QCM-LEA", use_caption=False, text_only=False):
    """The official folder -> LLaVA-JSON samples of a split; "image" entries are relative to `image_folder`.

    use_caption: the image's caption goes into the context; text_only: problems with an image are left out.
    """
    problems, captions, samples = load(folder, split), {}, []
    if use_caption:
        path = Path(folder, "captions.json")
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path} with the captions of the images")
        captions = read_object(path).get("captions")
        if not isinstance(captions, dict) or not all(isinstance(caption, str) for caption in captions.values()):
            raise ValueError(f'{path} does not hold {{"captions": {{id: text}}}}')
    for i, problem in problems.items():
        question, answer = texts(problem, format, captions.get(i, ""))
        sample = {"id": i}
        if problem["image"] is not None:
            question += "\n<image>"
            sample["image"] = f"{problem['split']}/" * (split == "trainval") + f"{i}/{problem['image']}"
        sample["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        if not (text_only and "image" in sample):
            samples.append(sample)
    return samples


def ask(samples, images, option_letter=False):
    """LLaVA-JSON samples -> questions for a model: [{"question_id", "prompt", "image": Path or None}]."""
    questions = []
    for sample in samples:
        prompt = sample["conversations"][0]["value"].replace("<image>", "").strip()
        prompt = "<image>\n" * ("image" in sample) + prompt + f"\n{OPTION_LETTER}" * option_letter
        image = Path(images, sample["image"]) if "image" in sample else None
        questions.append({"question_id": sample["id"], "prompt": prompt, "image": image})
    return questions


# ---------------------------------------------------------------------------------------------------------- scoring

def choice_of(text, count):
    """What an answer settles on: the index of one of `count` choices, or -1 if it names none, or two.

    The letter alone ("B", "B.", "(B)", or with more after it: "B. 12 cm"), else what follows "The answer is" or
    "ANSWER:", as often as it likes but always the same.
    """
    text = text.strip()
    alone = re.match(r"\(?([A-E])(?:\)?[.:]?$|\)?[.:] |\) )", text)
    letters = {alone[1]} if alone else set(re.findall(r"(?i:the answer is|answer:)[\s*(]*([A-Z])\b", text))
    index = "ABCDEFGHIJKLMNOPQRSTUVWXYZ".index(letters.pop()) if len(letters) == 1 else -1
    return index if index < count else -1


def official_choice_of(text, count, shortcuts=True):
    """The same as eval_science_qa.py finds it, to the letter; the ensembles' scripts take no `shortcuts`."""
    if shortcuts and (text in list(LETTERS) or len(text) > 2 and text[0] in LETTERS and text[1:3] == ". "):
        letter = text[0]
    else:
        found = re.findall(r"The answer is ([A-Z]).", text)  # sic: the dot is any character, but one there must be
        letter = found[0] if len(found) == 1 else "FAILED"
    return LETTERS.index(letter) if letter in LETTERS[:count] else -1


GROUPS = {
    "NAT": lambda p: p["subject"] == "natural science", "SOC": lambda p: p["subject"] == "social science",
    "LAN": lambda p: p["subject"] == "language science",
    "TXT": lambda p: bool(p["hint"]), "IMG": lambda p: bool(p["image"]),
    "NO": lambda p: not p["hint"] and not p["image"],
    "G1-6": lambda p: p["grade"] in [f"grade{n}" for n in range(1, 7)],
    "G7-12": lambda p: p["grade"] in [f"grade{n}" for n in range(7, 13)],
    "Avg": lambda p: True,
}


def table(problems, rows, topics=False):
    """The paper's table 7 as text, in per cent; rows: {name: {id: 1 if right, 0 if wrong, or a chance between}}.

    With `topics`, a line per topic instead of a column per group of questions. A group without questions shows -.
    """
    if topics:
        names = sorted({p["topic"] for p in problems.values()})
        groups = {topic: lambda p, topic=topic: p["topic"] == topic for topic in names}
    else:
        groups = GROUPS
    members = {group: [i for i in problems if belongs(problems[i])] for group, belongs in groups.items()}
    cells = [["", *groups], ["questions", *(str(len(ids)) for ids in members.values())]]
    for name, right in rows.items():
        cells.append([name, *(f"{100 * sum(right[i] for i in ids) / len(ids):.2f}" if ids else "-"
                              for ids in members.values())])
    if topics:
        cells = list(zip(*cells))
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = [[cell.rjust(width) for cell, width in zip(line, widths)] for line in cells]
    return "\n".join("  ".join([line[0].strip().ljust(widths[0]), *line[1:]]) for line in lines)


# -------------------------------------------------------------------------------------------------------- ensembles

def complement(ours, teacher):
    """GPT-4's answer, or ours where it gave none; all {id: index of a choice, or -1}."""
    return {i: ours[i] if teacher[i] < 0 else teacher[i] for i in ours}


def disagree(ours, teacher):
    """Ids about which the judge is asked: the two differ, or neither gave an answer."""
    return [i for i in ours if ours[i] != teacher[i] or ours[i] < 0]


def judge_prompt(problem, ours, teacher):
    """The second query: the question, what the two said, and the request for an answer of its own."""
    unseen = "(The question comes with an image, which is not shown here.)\n" if problem["image"] else ""
    return (f"{texts(problem, 'CQM-A')[0]}\n{unseen}"
            f"\n[Answer 1]\n{ours or '(none)'}\n[End of Answer 1]\n"
            f"\n[Answer 2]\n{teacher or '(none)'}\n[End of Answer 2]\n\n"
            "The two answers to this question do not agree. Weigh the reasons that they give, think about the question "
            'yourself, and end with your own final answer in the words "The answer is X.", where X is the letter of '
            "one option. Use these words only once.")


def judged(ours, verdicts):
    """Where the two agree their answer, else the judge's, or ours where the judge gave none."""
    return {i: ours[i] if verdicts.get(i, -1) < 0 else verdicts[i] for i in ours}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="ScienceQA's folder")
    parser.add_argument("--split", default="train")
    parser.add_argument("--format", default="QCM-LEA")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--use-caption", action=flag, default=False, help="put the images' captions into the context")
    parser.add_argument("--text-only", action=flag, default=False, help="leave out the questions with an image")
    parser.add_argument("--out", type=Path, help="default: llava_SPLIT_FORMAT.json in the folder")
    args = parser.parse_args()
    try:
        samples = convert(args.data, args.split, args.format, args.use_caption, args.text_only)
        out = args.out or args.data / f"llava_{args.split}_{args.format}.json"
        out.write_text(json.dumps(samples, indent=2))
    except (OSError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{len(samples)} samples, their images relative to {image_folder(args.data, args.split)}: {out}")


if __name__ == "__main__":
    main()
