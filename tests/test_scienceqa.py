"""ScienceQA: texts as the official converter writes them, answers read as meant, figures that can be checked."""
import dataclasses
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import eval_scienceqa
from minillava.checkpoint import TOY, load_llava
from minillava.evaluation import scienceqa, scienceqa_asking, scienceqa_table
from minillava.evaluation.scienceqa_answers import choice_of, official_choice_of
from minillava.evaluation.scienceqa_ensemble import disagree
from minillava.toy.scienceqa import make_problem, make_scienceqa
from minillava.weights.saving import save_llava
from tests.comparing import write_jsonl
from tests.servers import serving

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared/data/scienceqa"
COLUMNS = ["NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg"]

PROBLEMS = {
    "7": {"question": "Which is bigger?", "choices": ["an ant", "a  cat"], "answer": 1, "hint": "Look at\nthe picture.",
          "image": "image.png", "lecture": "L1.\nL2.", "solution": "S1.", "subject": "natural science",
          "grade": "grade2"},
    "8": {"question": "Q8?", "choices": ["x", "y", "z"], "answer": 2, "hint": "", "image": None, "lecture": "",
          "solution": "", "subject": "language science", "grade": "grade7"},
    "9": {"question": "Q9?", "choices": ["x", "y"], "answer": 0, "hint": "h", "image": None, "lecture": "",
          "solution": "S only.", "subject": "social science", "grade": "grade12"},
    "10": {"question": "Q10?", "choices": ["x", "y", "z", "w", "v"], "answer": 0, "hint": "", "image": None,
           "lecture": "L only.", "solution": "", "subject": "social science", "grade": "grade6"},
}


@pytest.fixture
def folder(tmp_path):
    """The problems above in the official layout: 7, 8 and 9 in test, 10 in val."""
    path = tmp_path / "ScienceQA"
    (path / "images/test/7").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path / "images/test/7/image.png")
    problems = {i: p | {"split": "val" if i == "10" else "test", "topic": f"about {i}"} for i, p in PROBLEMS.items()}
    (path / "problems.json").write_text(json.dumps(problems))
    (path / "pid_splits.json").write_text(json.dumps({"test": ["7", "8", "9"], "minitest": ["9", "7"], "val": ["10"],
                                                      "trainval": ["10", "7"]}))
    (path / "captions.json").write_text(json.dumps({"captions": {"7": "A pet."}}))
    return path


def texts_of(samples):
    return {sample["id"]: [turn["value"] for turn in sample["conversations"]] for sample in samples}


# ------------------------------------------------------------------------------------------------------- conversion

OPTIONS = "Options: (A) an ant (B) a cat"


@pytest.mark.parametrize("format, question, answer", [
    ("QCM-LEA", f"Which is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}", "L1.\nL2. S1. The answer is B."),
    ("QCM-LEPA", f"Which is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}",
     "LECTURE: L1.\nL2.\nSOLUTION: S1.\n###\nANSWER: B."),
    ("QCM-ALE", f"Which is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}",
     "The answer is B. BECAUSE: L1.\nL2. S1."),
    ("QCM-AL", f"Which is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}", "The answer is B. BECAUSE: S1."),
    ("QCM-AE", f"Which is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}", "The answer is B. BECAUSE: L1.\nL2."),
    ("CQM-A", f"Context: Look at\nthe picture.\nQuestion: Which is bigger?\n{OPTIONS}", "The answer is B."),
    ("QCLEM-ELA", f"Which is bigger?\nContext: Look at\nthe picture.\nBECAUSE: L1.\nL2. S1.\n{OPTIONS}",
     "S1. L1.\nL2. The answer is B."),
    ("QCME-EA", f"Which is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}\nBECAUSE: S1.", "S1. The answer is B."),
])
def test_a_problem_becomes_the_official_texts(folder, format, question, answer):
    assert texts_of(scienceqa.convert(folder, "test", format))["7"] == [question + "\n<image>", answer]


def test_what_is_empty_leaves_the_official_traces(folder):
    lea, ale = (texts_of(scienceqa.convert(folder, "test", format)) for format in ("QCM-LEA", "QCM-ALE"))
    assert lea["8"] == ["Q8?\nContext: N/A\nOptions: (A) x (B) y (C) z", " The answer is C."]  # sic, the space
    assert lea["9"][1] == "S only. The answer is A."
    assert ale["8"][1] == "The answer is C."
    assert texts_of(scienceqa.convert(folder, "test", "QCM-LEPA"))["8"][1] == "###\nANSWER: C."
    assert texts_of(scienceqa.convert(folder, "test", "QCML-A"))["8"][0].endswith("(C) z")


def test_captions_images_and_splits(folder):
    samples = scienceqa.convert(folder, "test", use_caption=True)
    assert "Context: Look at\nthe picture. A pet.\n" in samples[0]["conversations"][0]["value"]
    assert [sample.get("image") for sample in samples] == ["7/image.png", None, None]
    assert [sample["id"] for sample in scienceqa.convert(folder, "test", text_only=True)] == ["8", "9"]
    for split in ("test", "minitest", "val"):
        scienceqa.check_images(scienceqa.convert(folder, split), scienceqa.image_folder(folder, split))
    assert scienceqa.convert(folder, "trainval")[1]["image"] == "test/7/image.png"


def test_texts_equal_the_official_converters():
    golden = ROOT.parent / "shared/data/llava_golden.json"
    if not golden.exists():
        pytest.skip("the texts that the official converter wrote are not here")
    golden = json.loads(golden.read_text())["scienceqa_text"]
    for format, expected in golden["formats"].items():
        for i, (question, answer) in expected.items():
            problem = golden["problems"][i]
            ours = scienceqa.texts(problem, format)
            assert (ours[0] + "\n<image>" * (problem["image"] is not None), ours[1]) == (question, answer)


@pytest.mark.skipif(not REAL.exists(), reason="the real questions are not here")
def test_the_zero_shot_questions_are_those_of_llavas_own_file():
    official = json.loads((REAL / "llava_test_CQM-A.json").read_text())
    assert len(official) == 185 and scienceqa.convert(REAL, "test", "zero-shot") == official


def test_zero_shot_questions_say_nothing_of_what_is_not_there(folder):
    seven, eight, _ = scienceqa.convert(folder, "test", "zero-shot")
    assert [turn["value"] for turn in seven["conversations"]] == [
        "<image>\nContext: Look at\nthe picture.\nWhich is bigger?\nA. an ant\nB. a cat", "B"]
    assert [turn["value"] for turn in eight["conversations"]] == ["Q8?\nA. x\nB. y\nC. z", "C"]


def test_the_command_writes_llava_json(folder):
    done = run("-m", "minillava.evaluation.scienceqa", "--data", folder, "--split", "test", "--format", "QCM-ALE")
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "llava_test_QCM-ALE.json").read_text()) == scienceqa.convert(folder, "test", "QCM-ALE")


# ---------------------------------------------------------------------------------------------------------- scoring

@pytest.mark.parametrize("text, ours, official", [
    ("B", 1, 1), ("B. 12 cm", 1, 1), ("A cat purrs. The answer is B.", 1, 1), ("FAILED", -1, -1), ("", -1, -1),
    ("The answer is C.", -1, -1),                                   # there are two choices
    ("The answer is A. No, the answer is B.", -1, 0),               # official: a lower-case "the" is not seen
    ("The answer is A. The answer is B.", -1, -1),
    ("The answer is B. So The answer is B.", 1, -1),                # twice the same
    ("The answer is Bees", -1, 1), ("The answer is B", 1, -1),      # official: one more character, any
    ("B.", 1, -1), ("(B)", 1, -1), (" B\n", 1, -1), ("B: because", 1, -1), ("the answer is (B).", 1, -1),
    ("Some plan\n###\nANSWER: B.", 1, -1),
])
def test_an_answer_is_read_as_meant_and_strictly_as_the_official_script_does(text, ours, official):
    assert choice_of(text, 2) == ours
    assert official_choice_of(text, 2) == official


def test_the_ensembles_scripts_know_no_shortcut():
    assert official_choice_of("B", 2, shortcuts=False) == -1


def test_the_table_counts_each_group(folder):
    problems = scienceqa.load(folder, "test")
    lines = scienceqa_table.table(problems, {"ours": {"7": 1, "8": 1, "9": 0}}).splitlines()
    assert lines[0].split() == COLUMNS
    assert lines[1].split()[1:] == ["1", "1", "1", "2", "1", "1", "1", "2", "3"]
    assert lines[2].split()[1:] == ["100.00", "0.00", "100.00", "50.00", "100.00", "100.00", "100.00", "50.00", "66.67"]
    topics = scienceqa_table.topics_table(problems, {"ours": {"7": 1, "8": 1, "9": 0}}).splitlines()
    assert [line.split() for line in topics[1:]] == [["about", "7", "1", "100.00"], ["about", "8", "1", "100.00"],
                                                     ["about", "9", "1", "0.00"]]
    assert "-" in scienceqa_table.table(scienceqa.load(folder, "val"), {"ours": {"10": 1}}).splitlines()[2].split()


def run(*command):
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)


def evaluate(capsys, *arguments):
    """eval_scienceqa.py in this process -> its row of figures by name, and all that it printed."""
    sys.argv = ["eval_scienceqa.py", *map(str, arguments)]
    eval_scienceqa.main()
    printed = capsys.readouterr().out
    rows = [re.split(r"\s{2,}", line) for line in printed.splitlines()]
    return {row[0]: row[1:] for row in rows if len(row) == 10 and row[0]}, printed


def jsonl(path, texts, **more):
    return write_jsonl(path, [{"question_id": i, "text": text, **more} for i, text in texts.items()])


# Per cent right of 185 questions, by the official scripts.
EXPECTED = {
    "llava13b_v13_test": ["94.85", "94.74", "86.00", "94.25", "92.13", "89.23", "92.00", "93.33", "92.43"],
    "gpt3_test": ["73.20", "63.16", "68.00", "73.56", "59.55", "72.31", "70.40", "68.33", "69.73"],
    "gpt3_test, its guesses wrong": ["71.13", "63.16", "64.00", "71.26", "58.43", "69.23", "67.20", "68.33", "67.57"],
    "complement": ["75.26", "63.16", "70.00", "74.71", "60.67", "73.85", "72.80", "68.33", "71.35"],
    "upper bound": ["94.85", "94.74", "88.00", "94.25", "92.13", "90.77", "92.80", "93.33", "92.97"],
}


@pytest.mark.skipif(not REAL.exists(), reason="the real questions and results are not here")
def test_official_result_files_score_as_with_the_official_scripts(capsys, tmp_path):
    for strict in ([], ["--strict-official"]):
        for name in ("llava13b_v13_test", "gpt3_test"):
            rows, printed = evaluate(capsys, "--data", REAL, "--score-only", REAL / f"{name}.json", *strict)
            assert rows["answers"] == EXPECTED[name] and rows["questions"] == "97 38 50 87 89 65 125 60 185".split()
            assert "185 of 185 questions of split test (ScienceQA's own test has 4241)" in printed
            texts = json.loads((REAL / f"{name}.json").read_text())["outputs"]
            rows, _ = evaluate(capsys, "--data", REAL, "--score-only", jsonl(tmp_path / "a.jsonl", texts), *strict)
            assert rows["answers"] == EXPECTED[name + ", its guesses wrong" * (name == "gpt3_test")]
        rows, printed = evaluate(capsys, "--data", REAL, "--score-only", REAL / "llava13b_v13_test.json",
                                 "--teacher", REAL / "gpt3_test.json", "--results", tmp_path / "both.json", *strict)
        assert rows["ours"] == EXPECTED["llava13b_v13_test"]
        assert [rows["complement"], rows["upper bound"]] == [EXPECTED["complement"], EXPECTED["upper bound"]]
        assert "from the teacher: 10 of 185" in printed
        rows, _ = evaluate(capsys, "--data", REAL, "--score-only", tmp_path / "both.json", *strict)
        assert rows["answers"] == EXPECTED["complement"]
    assert "Total: 185, Correct: 132" in _  # of the strict report


def test_a_part_of_a_split_is_scored_and_said_to_be_one(capsys, folder, tmp_path):
    answers = jsonl(tmp_path / "a.jsonl", {"7": "The answer is B.", "9": "?"}, metadata={"prompt_format": "QCM-A"})
    rows, printed = evaluate(capsys, "--data", folder, "--score-only", answers)
    assert "2 of 3 questions of split test" in printed and rows["answers"][-1] == "50.00"
    assert "unparsable: 1 of 2" in printed and '{"prompt_format": "QCM-A"}' in printed
    rows, printed = evaluate(capsys, "--data", folder, "--score-only", answers, "--strict-official")
    assert rows["answers"][-1] == "33.33" and "Total: 3, Correct: 1, Accuracy: 33.33%, IMG-Accuracy: 100.00%" in printed


# ----------------------------------------------------------------------------------------------------- the ensembles

def judge_that_is_busy_once(server, request):
    """Busy, then B each time, and nothing of use about Q9."""
    if len(server.requests) == 1:
        return 429, {"Retry-After": "0"}, b""
    return "Hm." if "Q9?" in request["messages"][-1]["content"] else "Answer 2 is right. The answer is B."


def test_the_judge_is_also_asked_where_neither_gave_an_answer():
    ours, teacher = {"1": -1, "2": 0, "3": 1, "4": -1}, {"1": -1, "2": 0, "3": 2, "4": 0}
    assert disagree(ours, teacher) == ["1", "3", "4"]


def test_the_judge_is_asked_where_the_two_differ_and_a_rerun_asks_nobody(capsys, folder, tmp_path, monkeypatch):
    said = {"7": "Ants. The answer is A.", "8": "The answer is C.", "9": "The answer is A."}
    ours = jsonl(tmp_path / "ours.jsonl", said)
    teacher = jsonl(tmp_path / "gpt4.jsonl", said | {"7": "Cats. The answer is B.", "9": "I cannot see."})
    command = ["--data", folder, "--score-only", ours, "--teacher", teacher, "--ensemble", "judge", "--judge", "openai",
               "--cache", tmp_path / "cache", "--concurrency", 1]
    again = command[:-6] + ["--requery", tmp_path / "second.jsonl"]
    with serving(judge_that_is_busy_once) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_MODEL", "judge-1")
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
        rows, printed = evaluate(capsys, *command, "--requery", tmp_path / "second.jsonl")
        prompts = [request["messages"][-1]["content"] for request in server.requests]
        assert evaluate(capsys, *command)[0] == rows         # all in the cache
        assert evaluate(capsys, *again)[0] == rows           # from the official file
        assert len(server.requests) == len(prompts) == 3     # the busy server was asked again
    assert [rows[name][-1] for name in ("ours", "teacher", "complement", "judge", "upper bound")] == [
        "66.67", "66.67", "100.00", "100.00", "100.00"]
    assert "asked 2 questions and gave no answer to 1" in printed and "1 of 3 (33.33 %)" in printed
    assert not any("Q8?" in prompt for prompt in prompts)
    for part in ("Which is bigger?", "(B) a cat", "Ants. The answer is A.", "Cats. The answer is B.", "not shown"):
        assert part in prompts[0]


def test_a_judge_that_had_nothing_to_say_is_asked_again(capsys, folder, tmp_path):
    said = jsonl(tmp_path / "ours.jsonl", {"7": "The answer is B.", "8": "The answer is C."})
    command = ["--data", folder, "--score-only", said, "--teacher", said, "--ensemble", "judge", "--judge", TOY / "vicuna",
               "--cache", tmp_path / "cache", "--requery", tmp_path / "second.jsonl"]
    for _ in range(2):
        rows, printed = evaluate(capsys, *command)
        assert rows["judge"] == rows["ours"] and "asked 0 questions" in printed


# ------------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("answers, message", [
    ('{"question_id": "10", "text": "B"}', "question 10, which is of split val, not test"),
    ('{"question_id": "77", "text": "B"}', "does not know"),
    ('{"question_id": "8", "text": "B"}\n{"question_id": "8", "text": "A"}', "question 8 twice"),
    ('{"question_id": "8"}', "is None, not str"),
    ('{"question_id": "8", "text": 5}', "is 5, not str"),
    ('{"question_id": "8", "text": "B"}\nnonsense', "line 2"),
    ("", "holds no answers"),
    ('{"results": {"8": "B"}}', "is 'B', not int"),
    ('{"question_id": "8", "text": "B", "metadata": {"a": 1}}\n{"question_id": "9", "text": "B", "metadata": {"a": 2}}',
     "different settings"),
])
def test_a_wrong_answer_file_is_one_clear_line(capsys, folder, tmp_path, answers, message):
    (tmp_path / "a.jsonl").write_text(answers)
    with pytest.raises(SystemExit) as leave:
        evaluate(capsys, "--data", folder, "--score-only", tmp_path / "a.jsonl")
    error = capsys.readouterr().err
    assert leave.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_answers_do_not_take_the_place_of_another_file(capsys, folder):
    (folder / "problems.json").write_text((folder / "problems.json").read_text().strip())
    before = (folder / "problems.json").read_bytes()
    with pytest.raises(SystemExit) as leave:
        evaluate(capsys, "--data", folder, "--out", folder / "problems.json", "--device", "cpu")
    assert leave.value.code == 2 and (folder / "problems.json").read_bytes() == before
    assert "problems.json is no answer file" in capsys.readouterr().err


def test_results_do_not_take_the_place_of_the_answers(capsys, folder, tmp_path):
    answers = tmp_path / "a.jsonl"
    answers.write_text("{}")
    with pytest.raises(SystemExit) as leave:
        evaluate(capsys, "--data", folder, "--score-only", answers, "--results", tmp_path / ".." / tmp_path.name / "a.jsonl")
    assert leave.value.code == 2 and "--results" in capsys.readouterr().err and answers.read_text() == "{}"


@pytest.mark.parametrize("typed, message", [
    (["--ensemble", "judge"], "--teacher FILE --ensemble judge"),
    (["--teacher", "t.jsonl", "--judge", "openai"], "--teacher FILE --ensemble judge"),
    (["--requery", "second.jsonl"], "--teacher FILE --ensemble judge"),
    (["--out", "b.jsonl"], "leave out --out, --control"),
    (["--control"], "leave out --out, --control"),
])
def test_what_would_not_be_read_is_refused(capsys, folder, typed, message):
    with pytest.raises(SystemExit) as leave:
        evaluate(capsys, "--data", folder, "--score-only", "a.jsonl", *typed)
    assert leave.value.code == 2 and message in capsys.readouterr().err


def break_json(path):
    path.write_text("{")


def change(i, **fields):
    def apply(path):
        data = json.loads(path.read_text())
        data[i].update(fields)
        path.write_text(json.dumps(data))
    return apply


@pytest.mark.parametrize("file, damage, message", [
    ("problems.json", Path.unlink, "has no problems.json"),
    ("pid_splits.json", break_json, "is not JSON"),
    ("problems.json", change("8", answer=3), "none of its 3 choices"),
    ("problems.json", change("8", choices=["x"]), "2 to 5 choices"),
    ("problems.json", change("8", hint=None), "no text 'hint'"),
    ("problems.json", change("7", image="../../x.png"), "neither null nor the name"),
])
def test_a_broken_folder_is_one_clear_line(folder, file, damage, message):
    damage(folder / file)
    with pytest.raises((ValueError, OSError), match=message):
        scienceqa.convert(folder, "test")


def test_missing_images_splits_and_formats_are_named(folder):
    (folder / "images/test/7/image.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 1 images are missing.*--text-only"):
        scienceqa.check_images(scienceqa.convert(folder, "test"), scienceqa.image_folder(folder, "test"))
    with pytest.raises(ValueError, match="no split 'tets'"):
        scienceqa.load(folder, "tets")
    with pytest.raises(ValueError, match="no format 'QCM'"):
        scienceqa.convert(folder, "test", "QCM")


# ------------------------------------------------------------------------------------------- the toy world's questions

def test_the_mini_scienceqa_is_in_the_official_layout_and_its_solutions_name_the_answer(tmp_path):
    make_scienceqa(tmp_path, {"train": 150, "test": 150}, seed=0)
    problems = json.loads((tmp_path / "problems.json").read_text())
    for split in ("train", "test"):
        samples = scienceqa.convert(tmp_path, split)
        assert len(samples) == 150
        scienceqa.check_images(samples, scienceqa.image_folder(tmp_path, split))
    for problem in problems.values():
        choices, letter = problem["choices"], "ABCDE"[problem["answer"]]
        assert 2 <= len(choices) == len(set(choices)) <= 5
        assert problem["solution"].endswith(f"Among the options, {choices[problem['answer']]} is ({letter}).")
        told = problem["solution"].split(" Among")[0].lower()
        rest = told.replace(choices[problem["answer"]].lower(), "", 1)
        assert rest != told
    for belongs in scienceqa_table.GROUPS.values():
        assert any(map(belongs, problems.values()))
    kinds = {(problem["image"] is None, bool(problem["hint"])) for problem in problems.values()}
    assert kinds == {(True, True), (True, False), (False, True), (False, False)}


def test_the_hint_of_a_text_only_problem_tells_what_its_question_asks():
    rng = random.Random(0)
    for _ in range(300):
        problem, scene = make_problem(rng, "train")
        assert (scene is None) == (problem["category"] != "picture")
        if problem["category"] == "text" and problem["topic"] == "position":
            name = re.search(r"the ((?:small |large )?\w+ \w+)\?", problem["question"])[1]
            place = problem["choices"][problem["answer"]]
            assert re.search(rf"{name} {place}|{place} an? (\w+ )?{name}", problem["hint"])


# ------------------------------------------------------------------------------------------------------- answering

@pytest.fixture(scope="module")
def toy():
    return load_llava(device="cpu", dtype=torch.float32)


def questions_of(folder, format="QCM-LEA", **more):
    return scienceqa.questions(scienceqa.convert(folder, "test", format), scienceqa.image_folder(folder, "test"), **more)


def test_prompts_are_the_official_ones(folder):
    first, second, _ = questions_of(folder)
    assert first["prompt"] == f"<image>\nWhich is bigger?\nContext: Look at\nthe picture.\n{OPTIONS}"
    assert first["image"] == folder / "images/test/7/image.png" and second["image"] is None
    letter = questions_of(folder, "CQM-A", option_letter=True)[1]["prompt"]
    assert letter == ("Context: N/A\nQuestion: Q8?\nOptions: (A) x (B) y (C) z\n"
                      "Answer with the option's letter from the given choices directly.")


def test_batched_answers_equal_single_ones_in_one_pass_and_in_two(toy, tmp_path):
    make_scienceqa(tmp_path, {"test": 5}, seed=3)
    for format in ("QCM-LEA", "QCM-LEPA"):
        asked = scienceqa_asking.answering(*toy, {"prompt_format": format, "max_new_tokens": 24})
        questions = questions_of(tmp_path, format)
        assert asked(questions) == [asked([question])[0] for question in questions]


def test_the_second_pass_goes_on_from_the_reasoning(toy, folder, monkeypatch):
    asked = []

    def fake(model, tokenizer, prompts, images, max_new_tokens, answer_prefix=None):
        asked.append((max_new_tokens, answer_prefix))
        return [" B.### x" if answer_prefix else f"LECTURE: no. {i} ### y" for i in range(len(prompts))]

    monkeypatch.setattr(scienceqa_asking, "generate", fake)
    answer = scienceqa_asking.answering(*toy, {"prompt_format": "QCM-LEPA", "max_new_tokens": 1024})
    assert answer(questions_of(folder))[1] == "LECTURE: no. 1\n The answer is B."
    assert asked == [(1024, None), (64, [f"LECTURE: no. {i} ###\nANSWER:" for i in range(3)])]


def test_the_prompt_format_travels_with_the_checkpoint(toy, folder, tmp_path, capsys):
    model, tokenizer = toy
    before, model.config = model.config, dataclasses.replace(model.config, prompt_format="QCM-ALE", template="llava_v1")
    try:
        save_llava(model, tokenizer, tmp_path / "model")
    finally:
        model.config = before
    command = ["--model", tmp_path / "model", "--data", folder, "--max-new-tokens", 4, "--device", "cpu"]
    _, printed = evaluate(capsys, *command, "--out", tmp_path / "first.jsonl", "--questions", 2)
    assert "scored: 2 of 3 questions" in printed
    _, printed = evaluate(capsys, *command, "--out", tmp_path / "a.jsonl")
    assert re.search(r"prompt_format +QCM-ALE +the checkpoint's", printed)
    assert re.search(r"template +llava_v1 +the checkpoint's", printed)
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert set(row) == {"question_id", "prompt", "text", "answer_id", "model_id", "metadata"}
    assert row["metadata"]["prompt_format"] == "QCM-ALE"
    _, printed = evaluate(capsys, *command, "--out", tmp_path / "b.jsonl", "--prompt-format", "QCM-A",
                          "--template", "vicuna_v1")
    assert re.search(r"prompt_format +QCM-A +--prompt-format; the checkpoint says QCM-ALE", printed)
    assert re.search(r"template +vicuna_v1 +--template; the checkpoint says llava_v1", printed)
    with pytest.raises(SystemExit):  # answers of other settings are not mixed with these
        evaluate(capsys, *command, "--out", tmp_path / "a.jsonl", "--prompt-format", "QCM-A")
    assert "name another file" in capsys.readouterr().err
    short = (tmp_path / "a.jsonl").read_text().splitlines()[:2]
    (tmp_path / "a.jsonl").write_text("\n".join(short) + "\n")  # stopped after two of three
    evaluate(capsys, *command, "--out", tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert len(lines) == 3 and lines[:2] == short


def test_without_data_a_mini_scienceqa_is_drawn_and_scored_beside_its_controls(capsys):
    rows, printed = evaluate(capsys, "--model", TOY / "llava", "--questions", 12, "--max-new-tokens", 8, "--device", "cpu")
    assert "12 of 12 questions of split test" in printed and rows["questions"][-1] == "12"
    assert set(rows) == {"questions", "answers", "another image", "guessing"}
    assert "the checkpoint says nothing: as LLaVA-1.5" in printed and re.search(r"prompt_format +zero-shot", printed)


def test_a_single_question_is_scored_without_a_control(capsys):
    rows, printed = evaluate(capsys, "--model", TOY / "llava", "--questions", 1, "--max-new-tokens", 8, "--device", "cpu")
    assert set(rows) == {"questions", "answers", "guessing"} and "no control" in printed


@pytest.mark.skipif(not (TOY / "scienceqa").exists(), reason="the miniature for ScienceQA is not here")
def test_the_shipped_miniature_answers_and_needs_its_picture(capsys):
    assert sum(file.stat().st_size for file in (TOY / "scienceqa").rglob("*")) <= 3e6
    rows, printed = evaluate(capsys, "--questions", 120, "--seed", 5, "--device", "cpu")
    picture = COLUMNS.index("IMG")
    assert float(rows["answers"][-1]) >= 80 and float(rows["answers"][picture]) >= float(rows["another image"][picture]) + 20
    assert re.search(r"prompt_format +QCM-LEA +the checkpoint's", printed)
