r"""ScienceQA (Lu et al. 2022; section 5.2 of the paper): its folder, its problems as dialogues.

    python -m minillava.evaluation.scienceqa --data ScienceQA --split train --format QCM-LEA

writes llava_train_QCM-LEA.json. The official folder holds problems.json, pid_splits.json,
captions.json and images/SPLIT/ID/image.png. A format says in which order things stand, those of
the question before the dash, those of the answer after it:

    Q question, C context (hint), M multiple options, L lecture, E explanation (solution), A answer

The paper reasons first (QCM-LEPA, later QCM-LEA) and compares with answering first (QCM-ALE). In
LEPA the answer follows upon a prompt, "###\nANSWER:", with which the first LLaVA was asked in a
second pass. The format "zero-shot" is that of LLaVA-1.5, which was not trained for it
(llava_test_CQM-A.json).
"""
import argparse
import json
import re
from pathlib import Path

from minillava.files import read_object, write
from minillava.terminal import errors_in_one_line, printable

LETTERS = "ABCDE"
# what LLaVA-1.5 was taught to obey
OPTION_LETTER = "Answer with the option's letter from the given choices directly."
ZERO_SHOT = "zero-shot"
# questions of the whole ScienceQA
SPLIT_SIZES = {
    "train": 12726, "val": 4241, "test": 4241, "trainval": 16967,
    "minitrain": 1272, "minival": 424, "minitest": 424,
}

QUESTIONS = {
    "QCM": "Question: {question}\nContext: {context}\nOptions: {options}",
    "CQM": "Context: {context}\nQuestion: {question}\nOptions: {options}",
    "QCML": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {lecture}",
    "QCME": "Question: {question}\nContext: {context}\nOptions: {options}\nBECAUSE: {solution}",
    "QCMLE": "Question: {question}\nContext: {context}\nOptions: {options}\n"
             "BECAUSE: {lecture} {solution}",
    "QCLM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture}\nOptions: {options}",
    "QCEM": "Question: {question}\nContext: {context}\nBECAUSE: {solution}\nOptions: {options}",
    "QCLEM": "Question: {question}\nContext: {context}\nBECAUSE: {lecture} {solution}\n"
             "Options: {options}",
}
ANSWERS = {
    "A": "Answer: The answer is {letter}.",
    "AL": "Answer: The answer is {letter}. BECAUSE: {solution}",  # sic: the official converter
    "AE": "Answer: The answer is {letter}. BECAUSE: {lecture}",   # mixes these two up
    "ALE": "Answer: The answer is {letter}. BECAUSE: {lecture} {solution}",
    "AEL": "Answer: The answer is {letter}. BECAUSE: {solution} {lecture}",
    "LA": "Answer: {lecture} The answer is {letter}.",
    "EA": "Answer: {solution} The answer is {letter}.",
    "LEA": "Answer: {lecture} {solution} The answer is {letter}.",
    "ELA": "Answer: {solution} {lecture} The answer is {letter}.",
    "LEPA": "{plan}###\nANSWER: {letter}.",
}


# ------------------------------------------------------------------------------ the official folder

def is_folder(path):
    """Whether a folder is ScienceQA's own, which train.py takes as --data."""
    return (Path(path) / "problems.json").exists() or (Path(path) / "pid_splits.json").exists()


def load(folder, split):
    """{id: problem} of a split, in the split's order. OSError or ValueError names what is wrong."""
    folder = Path(folder)
    for name in ("problems.json", "pid_splits.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: it is not ScienceQA's folder "
                                    "(problems.json, pid_splits.json, captions.json, images/)")
    problems = read_object(folder / "problems.json")
    ids = split_ids(folder / "pid_splits.json", split)
    for i in ids:
        check_problem(i, problems.get(i))
    return {i: problems[i] for i in ids}


def split_ids(path, split):
    splits = read_object(path)
    if split not in splits:
        raise ValueError(f"{path} has no split {split!r}, only {', '.join(splits)}")
    return splits[split]


def check_problem(i, problem):
    if not isinstance(problem, dict):
        raise ValueError(f"problems.json has no problem {i!r}, which pid_splits.json names")
    for field in ("question", "hint", "lecture", "solution", "subject", "topic", "grade", "split"):
        if not isinstance(problem.get(field), str):
            raise ValueError(f"problem {i} has no text {field!r}")

    choices, answer = problem.get("choices"), problem.get("answer")
    are_texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if not are_texts or not 1 < len(choices) <= 5:
        raise ValueError(f"problem {i} has no list of 2 to 5 choices")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"problem {i}: answer {answer!r:.40} is none of its {len(choices)} "
                         "choices, counted from 0")

    # a file name alone: "../x.png" would leave the folder
    image = problem.get("image")
    names = [str(i), str(image)]
    inside = image is None or all(re.fullmatch(r"[\w-][\w .-]*", name) for name in names)
    if "image" not in problem or not inside:
        raise ValueError(f"problem {i}: image {image!r:.80} is neither null nor the name of a file "
                         "in its own folder")


def read_captions(folder):
    """captions.json -> {id: caption of its image}."""
    path = Path(folder, "captions.json")
    captions = read_object(path).get("captions")
    if not isinstance(captions, dict) or not all(isinstance(c, str) for c in captions.values()):
        raise ValueError(f'{path} does not hold {{"captions": {{id: text}}}}')
    return captions


def image_folder(folder, split):
    """What the "image" entries of `convert` are relative to."""
    if split == "trainval":
        return Path(folder, "images")
    return Path(folder, "images", split.removeprefix("mini"))


def check_images(samples, images):
    """FileNotFoundError unless the image of every LLaVA-JSON sample lies in the folder `images`."""
    wanted = [Path(images, sample["image"]) for sample in samples if "image" in sample]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(wanted)} images are missing, such as {missing[0]}; unpack "
            "ScienceQA's images there, or leave their questions out with --text-only")


# ------------------------------------------------------------------------------------ conversations

def texts(problem, format, caption=""):
    """A problem -> (question, answer) as the official converter writes them, oddities included."""
    if format == ZERO_SHOT:
        return zero_shot_texts(problem, caption)
    asked, _, told = str(format).partition("-")
    if asked not in QUESTIONS or told not in ANSWERS:
        raise ValueError(f"there is no format {format!r}; one is made of {', '.join(QUESTIONS)}, "
                         f"a dash, and {', '.join(ANSWERS)}; or it is {ZERO_SHOT}")
    fields = problem | {  # its question, lecture and solution as they are
        "context": f"{problem['hint']} {caption}".strip() or "N/A",
        "options": options(problem),
        "plan": plan(problem),
        "letter": LETTERS[problem["answer"]],
    }
    question = tidy(QUESTIONS[asked].format(**fields), "Question: ")
    answer = tidy(ANSWERS[told].format(**fields), "Answer: ")
    return question, answer


def zero_shot_texts(problem, caption=""):
    """What is there, a line each, and nothing that says what it is -> (question, the letter)."""
    # some copies of problems.json write down here what the image shows; LLaVA-1.5's file does not
    hint = problem["hint"].partition("This Punnett square is ")[0]
    context = f"{hint} {caption}".strip()
    lines = [f"Context: {context}"] if context else []
    lines.append(problem["question"])
    lines += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem["choices"])]
    return "\n".join(lines).replace("  ", " "), LETTERS[problem["answer"]]


def options(problem):
    """(A) an ant (B) a cat"""
    return " ".join(f"({letter}) {choice}" for letter, choice in zip(LETTERS, problem["choices"]))


def plan(problem):
    """The reasoning of LEPA: lecture and solution, a line each, where the problem has them."""
    parts = {"LECTURE": problem["lecture"], "SOLUTION": problem["solution"]}
    return "".join(f"{name}: {text}\n" for name, text in parts.items() if text.strip())


def tidy(text, header):
    """What the official converter does to every text, its three oddities included."""
    # one pass makes two spaces of three: where lecture and solution are empty, one stays in front
    text = text.replace("  ", " ").strip()
    # BECAUSE: goes only where nothing follows it, not from the middle
    text = text.removesuffix("BECAUSE:").strip()
    # and the header goes from wherever else it stands in the text, too
    return text.replace(header, "") if text.startswith(header) else text


def convert(folder, split, format="QCM-LEA", use_caption=False, text_only=False):
    """The official folder -> LLaVA-JSON samples of a split; their images: see `image_folder`.

    use_caption: the image's caption goes into the context; text_only: problems with an image are
    left out.
    """
    problems = load(folder, split)
    captions = read_captions(folder) if use_caption else {}
    samples = []
    for i, problem in problems.items():
        if text_only and problem["image"] is not None:
            continue
        question, answer = texts(problem, format, captions.get(i, ""))
        sample = {"id": i}
        if problem["image"] is not None:
            question = f"<image>\n{question}" if format == ZERO_SHOT else f"{question}\n<image>"
            sample["image"] = f"{i}/{problem['image']}"
            if split == "trainval":  # two folders of images
                sample["image"] = f"{problem['split']}/{sample['image']}"
        sample["conversations"] = [
            {"from": "human", "value": question},
            {"from": "gpt", "value": answer},
        ]
        samples.append(sample)
    return samples


def questions(samples, images, option_letter=False):
    """LLaVA-JSON samples -> [{"question_id", "prompt", "image": Path or None}], to be asked."""
    asked = []
    for sample in samples:
        prompt = sample["conversations"][0]["value"].replace("<image>", "").strip()
        image = None
        if "image" in sample:
            prompt = f"<image>\n{prompt}"
            image = Path(images, sample["image"])
        if option_letter:
            prompt += f"\n{OPTION_LETTER}"
        asked.append({"question_id": sample["id"], "prompt": prompt, "image": image})
    return asked


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--data", type=Path, required=True, help="ScienceQA's folder")
    add("--split", default="train")
    add("--format", default="QCM-LEA")
    add("--use-caption", action=flag, default=False,
        help="put the images' captions into the context")
    add("--text-only", action=flag, default=False, help="leave out the questions with an image")
    add("--out", type=Path, help="default: llava_SPLIT_FORMAT.json in the folder")
    args = parser.parse_args()
    with errors_in_one_line():
        samples = convert(args.data, args.split, args.format, args.use_caption, args.text_only)
        out = args.out or args.data / f"llava_{args.split}_{args.format}.json"
        write(out, json.dumps(samples, indent=2))
        print(f"{len(samples)} samples, their images relative to "
              f"{printable(image_folder(args.data, args.split))}: {printable(out)}")


if __name__ == "__main__":
    main()
