"""The benchmarks of LLaVA-1.5 (its tables 3 and 4): one entry says all that is known here of each.

A new one is an entry, and a function of a few lines that scores its answers.
"""
from dataclasses import dataclass

from minillava.evaluation import scores, uploads
from minillava.evaluation.answers import read_answers
from minillava.evaluation.mmbench import score_mmbench, upload_mmbench
from minillava.evaluation.report import read_reviews
from minillava.evaluation.scienceqa_table import read_scienceqa_answers, score_scienceqa

LETTER, SHORT = "option_letter", "short_answer"


@dataclass(frozen=True)
class Benchmark:
    title: str
    questions: str                  # LLaVA-1.5's question file
    size: int                       # questions in it
    published: tuple                # LLaVA-1.5 7B and 13B
    unit: str                       # what these figures are
    wish: str | None = None         # a key of FORMS, for question files without it in their text
    reads: str = "as it is"         # how an answer is read
    max_new_tokens: int = 128       # of model_vqa_loader.py; the others allow 1,024
    answers: object = read_answers  # an answer file -> rows
    score: object = None            # (answers, questions, labels) -> Score
    labels: str = ""                # what --labels is; "" where the score needs none
    upload: object = None           # (answers, questions, out): writes the server's file
    upload_questions: str = ""      # the question file of the upload, where it is another
    upload_whole: bool = False      # the server takes an answer to every question, or nothing
    needs_questions: tuple = ()            # the commands that need the question file
    source: str = "Liu et al. 2023, Improved Baselines with Visual Instruction Tuning, table 4"


TABLE_3 = "Liu et al. 2023, Improved Baselines with Visual Instruction Tuning, table 3"
BENCHMARKS = {
    "vqav2": Benchmark(
        "VQAv2", "llava_vqav2_mscoco_test-dev2015.jsonl", 107394, (78.5, 80.0), "accuracy", SHORT,
        reads="normalised as EvalAI does", upload=uploads.upload_vqav2,
        upload_questions="llava_vqav2_mscoco_test2015.jsonl", needs_questions=("upload",),
        source=TABLE_3),
    "gqa": Benchmark(
        "GQA", "llava_gqa_testdev_balanced.jsonl", 12578, (62.0, 63.3), "accuracy", SHORT,
        reads="lower case, without a full stop", score=scores.score_gqa,
        labels="testdev_balanced_questions.json", upload=uploads.upload_gqa, source=TABLE_3),
    "vizwiz": Benchmark(
        "VizWiz", "llava_test.jsonl", 8000, (50.0, 53.6), "accuracy", SHORT,
        reads="normalised as EvalAI does", upload=uploads.upload_vizwiz, upload_whole=True,
        needs_questions=("upload",), source=TABLE_3),
    "scienceqa": Benchmark(
        "ScienceQA", "llava_test_CQM-A.json", 4241, (66.8, 71.6), "accuracy, IMG", LETTER,
        reads="the letter", max_new_tokens=1024, answers=read_scienceqa_answers,
        score=score_scienceqa, labels="ScienceQA's folder", source=TABLE_3),
    "textvqa": Benchmark(
        "TextVQA", "llava_textvqa_val_v051_ocr.jsonl", 5000, (58.2, 61.3), "soft accuracy", SHORT,
        reads="normalised as EvalAI does", score=scores.score_textvqa,
        labels="TextVQA_0.5.1_val.json", source=TABLE_3),
    "pope": Benchmark(
        "POPE", "llava_pope_test.jsonl", 8910, (85.9, 85.9), "mean F1", SHORT,
        reads='"no" or "not" in the first sentence, else yes', score=scores.score_pope,
        labels="the folder of coco_pope_adversarial.json, _popular.json, _random.json",
        needs_questions=("score",)),
    "mme": Benchmark(
        "MME", "llava_mme.jsonl", 2374, (1510.7, 1531.3), "perception", SHORT,
        reads='"yes" or "no" within the first four characters', answers=scores.read_mme_answers,
        score=scores.score_mme, labels="MME_Benchmark_release_version"),
    "mmbench": Benchmark(
        "MMBench", "mmbench_dev_20230712.tsv", 4377, (64.3, 67.7), "circular accuracy", LETTER,
        reads="the letter", max_new_tokens=1024, score=score_mmbench, upload=upload_mmbench,
        needs_questions=("score", "upload")),
    "mmbench-cn": Benchmark(
        "MMBench-CN", "mmbench_dev_cn_20231003.tsv", 4329, (58.3, 63.6), "circular accuracy",
        "option_letter_cn", reads="the letter", max_new_tokens=1024, score=score_mmbench,
        upload=upload_mmbench, needs_questions=("score", "upload")),
    "seed": Benchmark(
        "SEED-Bench", "llava-seed-bench.jsonl", 19242, (58.6, 61.6), "accuracy", LETTER,
        reads="exactly the letter", score=scores.score_seed, labels="SEED-Bench.json",
        upload=uploads.upload_seed, upload_whole=True, needs_questions=("upload",)),
    "llava-bench": Benchmark(
        "LLaVA-Bench (in the wild)", "questions.jsonl", 60, (63.4, 70.7), "relative score",
        reads="by the judge; what is scored here are its reviews", max_new_tokens=1024,
        answers=read_reviews, score=scores.score_llava_bench),
    "mm-vet": Benchmark(
        "MM-Vet", "llava-mm-vet.jsonl", 218, (30.5, 35.4), "GPT-4's score",
        reads="by GPT-4", max_new_tokens=1024, upload=uploads.upload_mmvet),
}
