"""The benchmarks: from answers to the number, or to the file that a server takes; real files where they are."""
import csv
import json
import random
import re
import sys
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from minillava.evaluation import __main__ as evaluation
from minillava.evaluation.__main__ import main
from minillava.evaluation.benchmarks import BENCHMARKS
from minillava.evaluation.mmbench import is_right
from minillava.evaluation.questions import FORMS, options_of
from minillava.evaluation.scores import mme_says, pope_says_yes, soft_accuracy
from minillava.evaluation.scoring import score_file
from minillava.evaluation.vqa_text import MISSPELLINGS, normalize
from minillava.evaluation.xlsx import column_name
from minillava.toy import pope as toy_pope
from minillava.toy.pope import pope_rows
from tests.comparing import write_jsonl, write_tsv

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared/data/eval"
real = pytest.mark.skipif(not REAL.exists(), reason="the real files of the benchmarks are not here")
SHORT = FORMS["short_answer"]


def answers(path, rows):
    """[(question_id, prompt, text), ...] as an answer file."""
    names = "question_id", "prompt", "text"
    return write_jsonl(path, [dict(zip(names, row)) | {"model_id": "m", "metadata": {}} for row in rows])


def score_of(path):
    return json.loads(path.read_text())


def scored(run, tmp_path, name, said, *typed):
    """`score NAME --answers SAID ...` -> what the score file says."""
    done = run("score", name, "--answers", said, "--out", tmp_path / "s.score.json", *typed)
    assert done.returncode == 0, done.err
    return score_of(tmp_path / "s.score.json")


# ----------------------------------------------------------------------------------------------- short answers

@pytest.mark.parametrize("text, expected", [
    ("The two dogs, isnt it?", "2 dogs isn't it"),
    ("Black-and-white", "black and white"), ("black - white-ish", "black whiteish"),  # one mark decides for all
    ("3.5", "3.5"), ("No.", "no"), ("a.b", "ab"), ("... 5.", "5"), ("none", "0"), ("somebody'd", "somebodyd"),
    ("dog's", "dog 's"), ("1,000", "1000"), ("An apple\nand\ta pear", "apple and pear"), ("A", ""),
    ("couldntve couldnt've couldn'tve", "couldntve couldn't've couldn't've"),
    ("." * 40, "." * 8), ("İ", "i̇"), ("someonell", "someone'll"),
])
def test_an_answer_is_normalised_as_evalai_does(text, expected):
    assert normalize(text) == expected


def test_the_contractions_are_the_official_ones():
    assert len(MISSPELLINGS) == 114
    assert MISSPELLINGS["y'alld've"] == "y'all'd've" and MISSPELLINGS["'ow'sat"] == "'ow's'at"


def test_soft_accuracy_leaves_each_person_out_in_turn():
    people = ["yes"] * 3 + ["no"] * 6 + ["maybe"]
    assert soft_accuracy("Yes.", people) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert soft_accuracy("no", people) == 1.0
    assert soft_accuracy("maybe", people) == pytest.approx(9 / 30)
    assert soft_accuracy("what", people) == 0.0


# -------------------------------------------------------------------------------------------------------- POPE

@pytest.fixture
def pope(tmp_path):
    """Four questions of one category and one of another; a label less, and another order of the labels."""
    things = ["cat", "dog", "cup", "car"] * 5
    questions = [{"question_id": i, "image": f"{i // 4}.jpg", "text": f"Is there a {thing} in the image?\n{SHORT}",
                  "category": "popular" if i == 19 else "adversarial"} for i, thing in enumerate(things)]
    labels = [{"question_id": 100 + i, "image": f"{i // 4}.jpg", "text": f"Is there a {thing} in the image?",
               "label": "yes" if i % 2 else "no"} for i, thing in enumerate(things)]
    write_jsonl(tmp_path / "coco/coco_pope_adversarial.json", labels[18:0:-1])  # that of question 0 is missing
    write_jsonl(tmp_path / "coco/coco_pope_popular.json", labels[19:])
    write_jsonl(tmp_path / "q.jsonl", questions)
    said = ["Yes" if i % 2 or i == 2 else "No, there is none." for i in range(20)]
    answers(tmp_path / "a.jsonl", [(q["question_id"], q["text"], text) for q, text in zip(questions, said)])
    return ["score", "pope", "--questions", tmp_path / "q.jsonl", "--labels", tmp_path / "coco",
            "--answers", tmp_path / "a.jsonl"]


def test_pope_joins_by_image_and_question_and_names_what_has_no_label(tmp_path, run, pope):
    done = run(*pope)
    assert done.returncode == 0, done.err
    assert "1 have no label and are not scored: 0" in done.out and "19 of 20 answers are scored" in done.out
    found = score_of(tmp_path / "a.score.json")
    assert found["rows"]["adversarial"] == {"accuracy": 17 / 18, "precision": 9 / 10, "recall": 1.0,
                                            "F1": 2 * 0.9 / 1.9, "yes": 10 / 18, "questions": 18}
    assert found["score"] == pytest.approx(100 * (1.8 / 1.9 + 1) / 2)


def test_popes_own_file_is_questions_and_labels_at_once(tmp_path, run, pope):
    own = tmp_path / "coco/coco_pope_popular.json"
    answers(tmp_path / "own.jsonl", [(119, "Is there a car in the image?", "Yes")])
    found = scored(run, tmp_path, "pope", tmp_path / "own.jsonl", "--questions", own, "--labels", own)
    assert found["rows"]["all"]["F1"] == 1.0


@pytest.mark.parametrize("text, yes", [
    ("Yes", True), ("No", False), ("no, it is not", False), ("There is not. Yes", False), ("Nothing", True),
    ("Yes. No", True), ("", True), ("It is,not", True), ("NO", True),
])
def test_pope_reads_as_officially(text, yes):
    assert pope_says_yes(text) == yes


@real
def test_pope_of_the_published_answers(tmp_path, run):
    done = run("score", "pope", "--questions", REAL / "pope/llava_pope_test.jsonl", "--labels", REAL / "pope/coco",
               "--answers", REAL / "pope/answers_adversarial_llava-v1.5-13b.jsonl", "--out", tmp_path / "s.score.json")
    assert done.returncode == 0, done.err
    assert "0.84497" in done.out and "0.85656" in done.out and "0.43032" in done.out
    assert "58 have no label and are not scored: 11, 63, 147" in done.out
    assert "LLaVA-1.5 7B 85.9, 13B 85.9" in done.out


# --------------------------------------------------------------------------------------------------------- MME

@pytest.mark.parametrize("text, said", [("Yes", "yes"), ("no, it", "no"), ("It is", "other"), ("Nope", "no"),
                                        ("yes/no", "yes"), ("", "other"), (" Yes", "yes"), ("well yes", "other"), ("It yes", "other"), ("abyes", "other")])
def test_mme_reads_the_first_four_characters(text, said):
    assert mme_says(text) == said


def test_mme_counts_questions_and_images(tmp_path, run):
    release = tmp_path / "release"
    (release / "count").mkdir(parents=True)
    (release / "scene/questions_answers_YN").mkdir(parents=True)
    (release / "count/1.txt").write_text("Two?  Please answer yes or no.\tYes\nThree? Please answer yes or no.\tNo\n")
    (release / "count/2.txt").write_text("Two? Please answer yes or no.\tYes\nThree? Please answer yes or no.\tNo\n")
    (release / "scene/questions_answers_YN/7.txt").write_text("A bar? Please answer yes or no.\tNo\n"
                                                              "A pub? Please answer yes or no.\tYes\n")
    rows = [("count/1.png", f"Two?\n{SHORT}", "Yes"), ("count/1.png", f"Three?\n{SHORT}", "no."),
            ("count/2.png", f"Two?\n{SHORT}", "No"), ("count/2.png", f"Three?\n{SHORT}", "No"),
            ("scene/7.jpg", f"A bar?\n{SHORT}", "Perhaps"), ("scene/7.jpg", f"A pub?\n{SHORT}", "Yes")]
    questions = write_jsonl(tmp_path / "q.jsonl", [dict(zip(("question_id", "text"), row)) for row in rows])
    done = run("score", "mme", "--labels", release, "--answers", answers(tmp_path / "a.jsonl", rows),
               "--questions", questions)
    assert done.returncode == 0 and "6 of 6 answers are scored" in done.out, done.err
    found = score_of(tmp_path / "a.score.json")
    assert found["rows"]["count"] == {"accuracy": 75, "accuracy+": 50, "score": 125}
    assert found["rows"]["scene"] == {"accuracy": 50, "accuracy+": 0, "score": 50}
    assert found["score"] == 175 and found["rows"]["cognition"]["score"] == 0


@real
def test_mme_of_lavins_answers_through_their_folder_and_through_ours(tmp_path, run):
    rows = []
    for path in sorted((REAL / "mme/lavin").glob("*.txt")):
        for line in path.read_text().splitlines():
            image, question, _, text = line.split("\t")
            prompt = f"{question.removesuffix(' Please answer yes or no.').strip()}\n{SHORT}"
            rows.append((f"{path.stem}/{image}", prompt, text))
    ours = answers(tmp_path / "a.jsonl", rows[::-1])
    for said in (REAL / "mme/lavin", ours):
        found = scored(run, tmp_path, "mme", said, "--labels", REAL / "mme/release")
        assert (round(found["score"], 2), round(found["rows"]["cognition"]["score"], 2)) == (963.61, 249.64)
        assert found["answers"] == 2374


# ------------------------------------------------------------------------------------------ the others with labels

def test_textvqa_is_joined_by_image_and_question(tmp_path, run):
    labels = {"data": [{"image_id": "x", "question": "What brand?", "answers": ["the Nokia"] * 4 + ["nokla"] * 6},
                       {"image_id": "x", "question": "What colour?", "answers": ["red"] * 10}]}
    (tmp_path / "TextVQA.json").write_text(json.dumps(labels))
    rows = [("x", f"what colour?\nReference OCR token: A, B\n{SHORT}", "Red."),
            ("x", f"Reference OCR token: A\nWhat brand?\n{SHORT}", "Nokia")]
    found = scored(run, tmp_path, "textvqa", answers(tmp_path / "a.jsonl", rows), "--labels", tmp_path / "TextVQA.json")
    assert found["score"] == 100 and found["answers"] == 2 and not found["unlabelled"]


def test_gqa_and_seed_count_what_is_equal(tmp_path, run):
    (tmp_path / "gqa.json").write_text(json.dumps({"20": {"answer": "yes"}, "21": {"answer": "red car"}}))
    said = answers(tmp_path / "g.jsonl", [("20", "?", "Yes."), ("21", "?", "car")])
    assert scored(run, tmp_path, "gqa", said, "--labels", tmp_path / "gqa.json")["score"] == 50
    questions = [{"question_id": "5", "question_type_id": 1, "data_type": "image", "answer": "A"},
                 {"question_id": "v9", "question_type_id": 2, "data_type": "video", "answer": "B"}]
    (tmp_path / "seed.json").write_text(json.dumps({"question_type": {"Scene": 1, "Action": 2}, "questions": questions}))
    said = answers(tmp_path / "s.jsonl", [(5, "?", "A"), ("v9", "?", "B.")])
    rows = scored(run, tmp_path, "seed", said, "--labels", tmp_path / "seed.json")["rows"]
    assert {name: row["accuracy"] for name, row in rows.items()} == {
        "Scene": 100, "Action": 0, "image": 100, "video": 0, "all": 50}


def test_scienceqa_is_scored_as_its_script_does(tmp_path, run):
    problem = {"question": "Q?", "choices": ["x", "y"], "answer": 1, "hint": "", "image": None, "lecture": "",
               "solution": "", "subject": "natural science", "grade": "grade2", "topic": "t", "split": "val"}
    folder = tmp_path / "ScienceQA"
    folder.mkdir()
    (folder / "problems.json").write_text(json.dumps({"1": problem, "2": problem | {"image": "image.png", "split": "train"}}))
    said = answers(tmp_path / "a.jsonl", [("1", "?", "B"), ("2", "?", "(B)")])
    found = scored(run, tmp_path, "scienceqa", said, "--labels", folder)  # "(B)" is no answer to the official script
    assert found["score"] == 0 and found["rows"]["all"]["Avg"] == 50 and found["unit"] == "accuracy, IMG"
    done = run("score", "scienceqa", "--labels", folder, "--answers", answers(tmp_path / "b.jsonl", [("1", "?", "B")]))
    assert done.returncode == 2 and "no answered question has an image" in done.err


# ------------------------------------------------------------------------------------------------------- MMBench

def mmbench(path):
    columns = "index question hint A B C D answer category image source l2-category comment split".split()
    rows = [{"index": "241", "question": "Which?", "hint": "=1+1", "A": "one", "B": "<two>", "C": "nan", "answer": "A"},
            {"index": "1000241", "question": "Which?", "A": "<two>", "B": "one", "answer": "B"},
            {"index": "242", "question": "Who\x07 & why?", "A": " a", "B": "b", "C": "c", "D": "d", "answer": "D"}]
    common = dict.fromkeys(columns, "") | {"l2-category": "logic", "split": "dev", "image": "x"}
    return write_tsv(path, [common | row for row in rows])


def test_mmbench_counts_questions_and_whole_circles(tmp_path, run):
    rows = [(241, "Which?", "A"), (1000241, "Which?", "A"), (242, "Who\x07 & why?", "D. d")]
    found = scored(run, tmp_path, "mmbench", answers(tmp_path / "a.jsonl", rows), "--questions", mmbench(tmp_path / "dev.tsv"))
    assert found["rows"]["all"] == {"plain": 100, "circular": 50, "questions": 2}


def test_a_part_of_mmbench_is_scored_where_its_circles_are_whole(tmp_path, run):
    typed = ["score", "mmbench", "--questions", mmbench(tmp_path / "dev.tsv"), "--answers", tmp_path / "a.jsonl"]
    answers(tmp_path / "a.jsonl", [(241, "Which?", "A"), (242, "Who\x07 & why?", "A")])
    done = run(*typed)
    assert done.returncode == 0 and "2 of 3 answers" in done.out and "0.00, of these alone" in done.out, done.err
    assert score_of(tmp_path / "a.score.json")["rows"]["all"] == {"plain": 50, "circular": 0, "questions": 1}
    answers(tmp_path / "a.jsonl", [(241, "Which?", "A")])
    done = run(*typed)
    assert done.returncode == 2 and "no question is answered in every order of its options" in done.err


def test_a_question_file_of_another_kind_is_told(tmp_path, run):
    said = answers(tmp_path / "a.jsonl", [(241, "Which?", "A")])
    questions = write_jsonl(tmp_path / "q.jsonl", [{"question_id": 241, "text": "Which?"}])
    done = run("upload", "mmbench", "--questions", questions, "--answers", said, "--out", tmp_path / "up.xlsx")
    assert done.returncode == 2 and "q.jsonl is no question file of MMBench, such as mmbench_dev" in done.err
    done = run("upload", "vqav2", "--questions", mmbench(tmp_path / "t.tsv"), "--answers", said, "--out", tmp_path / "u.json")
    assert done.returncode == 2 and "t.tsv is no question file of VQAv2, such as llava_vqav2_mscoco_test2015" in done.err


def test_an_option_of_mmbench_may_be_sodium():
    assert options_of({"A": "Na", "B": "K", "C": "NA", "D": "Cl"}) == ["Na", "K"]


def test_a_round_of_mmbench_is_read_among_the_options_as_they_stood():
    row = {"text": "A", "option_char": ["B", "C", "A"]}
    assert is_right(row, "B") and not is_right(row, "A")
    assert not is_right({"text": "D", "option_char": ["A", "B"]}, "D")


def cells_of(path):
    """What a spreadsheet program sees: {place: text or number}."""
    space = {"x": "http://schemas.openxmlformats.org/spreadsheetml/2006/main"}
    with zipfile.ZipFile(path) as file:
        sheet = ElementTree.fromstring(file.read("xl/worksheets/sheet1.xml"))
        for name in file.namelist():
            ElementTree.fromstring(file.read(name))
    return {cell.get("r"): "".join(cell.itertext()) for cell in sheet.iterfind(".//x:c", space)}


def test_mmbenchs_upload_is_a_spreadsheet_with_the_predictions_in_their_place(tmp_path, run):
    rows = [(242, "Who\x07 & why?", "D"), ("241", "=1+1\nWhich?", "A")]
    typed = ["upload", "mmbench", "--questions", mmbench(tmp_path / "t.tsv"), "--answers", answers(tmp_path / "a.jsonl", rows)]
    done = run(*typed, "--out", tmp_path / "up.xlsx")
    assert done.returncode == 0 and "1 of 3 questions have no answer: 1000241" in done.out, done.err
    cells = cells_of(tmp_path / "up.xlsx")
    assert [cells[f"{letter}1"] for letter in "ABCDEFGHI"] == [
        "index", "question", "A", "B", "C", "D", "prediction", "answer", "split"]
    assert cells["A2"] == "241" and cells["D2"] == "<two>" and "E2" not in cells and cells["G2"] == "A"
    assert "G3" not in cells and cells["B4"] == "Who & why?" and cells["C4"] == " a" and cells["G4"] == "D"
    assert run(*typed, "--out", tmp_path / "up.tsv").returncode == 0
    with open(tmp_path / "up.tsv", newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file, delimiter="\t")] == ["A", "", "D"]
    assert run(*typed, "--out", tmp_path / "up.doc").returncode == 2


def test_columns_are_named_as_in_a_spreadsheet():
    assert [column_name(at) for at in (0, 25, 26, 51, 52, 701, 702)] == ["A", "Z", "AA", "AZ", "BA", "ZZ", "AAA"]


# ------------------------------------------------------------------------------------------------------- uploads

def test_each_server_gets_its_own_file(tmp_path, run):
    questions = write_jsonl(tmp_path / "q.jsonl",
                            [{"question_id": i, "image": f"{i}.jpg", "text": f"Q{i}?"} for i in (3, 1, 2)])
    some = answers(tmp_path / "a.jsonl", [(2, "Q2?", "Two."), (3, "Q3?", "A Cat")])
    out = tmp_path / "made/up.json"
    typed = ["--questions", questions, "--answers", some, "--out", out]
    assert run("upload", "vqav2", *typed).returncode == 0
    assert out.read_text() == ('[{"question_id": 3, "answer": "cat"}, {"question_id": 1, "answer": ""}, '
                               '{"question_id": 2, "answer": "2"}]')
    done = run("upload", "vqav2", *typed[2:])  # its server wants more than was asked
    assert done.returncode == 2 and "--questions: llava_vqav2_mscoco_test2015.jsonl" in done.err
    done = run("upload", "vizwiz", *typed)  # takes whole files alone
    assert done.returncode == 2 and "1 of 3 questions have no answer, such as '1'" in done.err
    assert run("upload", "gqa", *typed).returncode == 0
    assert json.loads(out.read_text()) == [{"questionId": 2, "prediction": "two"}, {"questionId": 3, "prediction": "a cat"}]
    assert run("upload", "mm-vet", *typed).returncode == 0
    assert out.read_text() == '{\n  "v1_2": "Two.",\n  "v1_3": "A Cat"\n}'
    whole = answers(tmp_path / "b.jsonl", [(2, "Q2?", "A"), (3, "Q3?", "B"), (1, "Q1?", "C")])
    assert run("upload", "seed", "--questions", questions, "--answers", whole, "--out", out).returncode == 0
    assert out.read_text().splitlines()[0] == '{"question_id": "3", "prediction": "B"}'


@real
def test_the_published_uploads_come_out_byte_for_byte(tmp_path, run):
    for name, questions, said, expected in (
            ("vizwiz", "llava_test_first1500.jsonl", "answers_first1500_llava-v1.5-13b.jsonl",
             "upload_first1500_llava-v1.5-13b.json"),
            ("mm-vet", "llava-mm-vet.jsonl", "answers_llava-v1.5-7b.jsonl", "results_llava-v1.5-7b.json")):
        done = run("upload", name, "--questions", REAL / name / questions, "--answers", REAL / name / said,
                   "--out", tmp_path / "up.json")
        assert done.returncode == 0, done.err
        assert (tmp_path / "up.json").read_bytes() == (REAL / name / expected).read_bytes()


@real
def test_llava_bench_of_a_published_review(tmp_path, run):
    reviews = REAL / "llava-bench-in-the-wild/reviews_llava-v1.5-7b-eval1.jsonl"
    assert scored(run, tmp_path, "llava-bench", reviews)["score"] == 64.7


def test_reviews_that_name_their_scores_as_the_oldest_files_do_are_scored(tmp_path, run):
    reviews = write_jsonl(tmp_path / "r.jsonl", [{"category": name, "score": [8, 6]} for name in ("conv", "detail")])
    assert scored(run, tmp_path, "llava-bench", reviews)["rows"]["all"] == {
        "relative": 75.0, "reference": 80.0, "candidate": 60.0, "reviews": 2}


# --------------------------------------------------------------------------------------------------------- table

def test_the_table_stands_beside_the_papers(tmp_path, run, pope):
    assert run(*pope).returncode == 0
    reviews = [{"question_id": i, "category": "conv", "content": "8 6", "tuple": [8, 6]} for i in range(3)]
    assert run("score", "llava-bench", "--answers", write_jsonl(tmp_path / "deep/r.jsonl", reviews)).returncode == 0
    lines = run("table", tmp_path).out.splitlines()
    assert lines[1].split()[:4] == ["POPE", "97.4", "85.9", "85.9"] and "19 of 20" in lines[1]
    assert lines[2].startswith("LLaVA-Bench (in the wild)   75.0          63.4  70.7")
    blind = score_of(tmp_path / "a.score.json") | {"metadata": {"control": "none"}}
    (tmp_path / "blind.score.json").write_text(json.dumps(blind))
    assert run("table", tmp_path).out.splitlines()[2].endswith("m, control: none")
    empty = run("table", tmp_path / "coco")
    assert empty.returncode == 2 and "holds no scores" in empty.err


@pytest.mark.parametrize("answers_file, expected", [
    ("a.jsonl", "a.score.json"), ("a.json", "a.json.score.json"),  # two files: two scores
    ("llava-v1.5-7b", "llava-v1.5-7b.score.json"), ("llava-v1.5-7b/", "llava-v1.5-7b.score.json"),
])
def test_every_answer_file_has_a_score_file_of_its_own(answers_file, expected):
    assert score_file(answers_file) == expected


def test_no_command_writes_over_the_answers(tmp_path, run, pope):
    said = (tmp_path / "a.jsonl").read_bytes()
    for typed in (pope, ["upload", "mm-vet", "--answers", tmp_path / "a.jsonl"]):
        done = run(*typed, "--out", tmp_path / "coco/../a.jsonl")
        assert done.returncode == 2 and "a.jsonl is what is read" in done.err
    assert (tmp_path / "a.jsonl").read_bytes() == said


def test_every_benchmark_is_whole():
    assert len(BENCHMARKS) == 12
    for name, benchmark in BENCHMARKS.items():
        assert len(benchmark.published) == 2 and benchmark.source and benchmark.size > 0
        assert benchmark.score or benchmark.upload, name
        assert benchmark.wish is None or benchmark.wish in FORMS


# ----------------------------------------------------------------------------------------------------- bad input

def other_answers(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text)


@pytest.mark.parametrize("spoil, message", [
    (lambda folder: other_answers(folder, ""), "holds no answers"),
    (lambda folder: other_answers(folder, '{"question_id": 1, "prom'), "line 1 of"),
    (lambda folder: other_answers(folder, '{"question_id": 1}\n'), "line 1 of .* is no answer"),
    (lambda folder: other_answers(folder, '{"question_id": 1, "prompt": "?", "text": 5}\n'), "is no answer"),
    (lambda folder: other_answers(folder, '{"question_id": 77, "prompt": "?", "text": "Yes"}\n'), "answers other questions"),
    (lambda folder: other_answers(folder, '{"question_id": 1, "prompt": "Is it red?", "text": "Yes"}\n'),
     "answers other questions, such as 1, 'Is it red\\?'"),
    (lambda folder: other_answers(folder, (folder / "a.jsonl").read_text() * 2), "has question 0 twice"),
    (lambda folder: other_answers(folder, '{"question_id": 1, "prompt": "?", "text": "Y", "metadata": {"benchmark": "gqa"}}\n'),
     "holds answers to gqa, not to pope"),
    (lambda folder: other_answers(folder, (folder / "q.jsonl").read_text()), "is no answer: its prompt is None"),
    (lambda folder: (folder / "coco/coco_pope_popular.json").unlink(), "has no file coco_pope_popular.json"),
    (lambda folder: write_jsonl(folder / "coco/coco_pope_adversarial.json",
                                [{"image": "9.jpg", "text": "?", "label": "no"}]),
     "the labels are those of other questions"),
    (lambda folder: (folder / "q.jsonl").write_text("\x1b[2J\n"), "line 1 of"),
    (lambda folder: (folder / "q.jsonl").unlink(), "No such file"),
])
def test_what_does_not_belong_together_is_one_line(tmp_path, run, pope, spoil, message):
    spoil(tmp_path)
    done = run(*pope)
    assert done.returncode == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1
    assert re.search(message, done.err), done.err
    assert not (tmp_path / "a.score.json").exists()


# -------------------------------------------------------------------------------------------- POPE of the toy world

def test_the_toy_worlds_pope_asks_for_what_is_there_and_for_what_is_likeliest_not():
    scenes = {"1": ["red circle", "red square"], "2": ["red circle", "red square"], "3": ["red circle", "red circle"],
              "4": ["blue star"], "5": ["blue star"], "6": ["blue star"]}
    rows = pope_rows(scenes, random.Random(0))
    for category in ("adversarial", "popular", "random"):
        members = [row for row in rows if row["category"] == category]
        for image, things in scenes.items():
            asked = [(row["text"], row["label"]) for row in members if row["image"] == image]
            assert {text for text, label in asked if label == "yes"} == {f"Is there a {thing}?" for thing in set(things)}
            assert sum(label == "no" for _, label in asked) == len(set(things))
            assert not {f"Is there a {thing}?" for thing in things} & {text for text, label in asked if label == "no"}
    absent = {(row["category"], row["image"]): row["text"] for row in rows if row["label"] == "no"}
    assert absent["popular", "3"] == "Is there a blue star?"
    assert absent["adversarial", "3"] == "Is there a red square?"  # rarer, but seen beside a red circle
    assert len({row["question_id"] for row in rows}) == len(rows)


def test_the_toy_worlds_pope_is_scored_by_the_same_code_and_has_no_published_figures(tmp_path, run, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "main", toy_pope.main)
    done = run("--out", tmp_path, "--scenes", 2)
    assert done.returncode == 0 and "POPE of the toy world" in done.out, done.err
    monkeypatch.setattr(sys.modules[__name__], "main", evaluation.main)
    lines = run("table", tmp_path).out.splitlines()
    assert lines[1].startswith("POPE of the toy world") and lines[1].split()[6:8] == ["-", "-"]
