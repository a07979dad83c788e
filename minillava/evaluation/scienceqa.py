"""ScienceQA (Lu et al. 2022; section 5.2 of the paper): its problems become conversations, its answers a table.

    python -m minillava.evaluation.scienceqa --data ScienceQA --split train --format QCM-LEA      # writes llava_train_QCM-LEA.json

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

from minillava.files import read_object

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
