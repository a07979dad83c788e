"""ScienceQA from the questions to the table (section 5.2 of the paper).

    python eval_scienceqa.py                          # the shipped miniature, on a mini ScienceQA
    python eval_scienceqa.py --model DIR --data ScienceQA --out answers.jsonl
    python eval_scienceqa.py --data ScienceQA --score-only answers.jsonl    # official results too
    python eval_scienceqa.py --data ScienceQA --score-only answers.jsonl --teacher gpt4.json
    python eval_scienceqa.py ... --teacher gpt4.json --ensemble judge --judge openai

A stopped evaluation goes on where it was. Prompt format, template and image size are the
checkpoint's own; the report states them. Decoding is greedy. With a text-only teacher's answers:
they count, and ours where it gave none (--ensemble complement), or a judge is asked where the two
differ (judge).
"""
import argparse
import json
import os
import tempfile
from pathlib import Path

from minillava.checkpoint import TOY
from minillava.evaluation import scienceqa
from minillava.evaluation.answers import answer_file
from minillava.evaluation.asking import add_model_flags, name_failures, open_model
from minillava.evaluation.questions import with_control
from minillava.evaluation.scienceqa_answers import read_results, write_results
from minillava.evaluation.scienceqa_asking import answering, make_questions, settings_of
from minillava.evaluation.scienceqa_ensemble import ask_judge, ensemble, write_verdicts
from minillava.evaluation.scienceqa_table import alone, report
from minillava.evaluation.scoring import keep_score
from minillava.files import beside
from minillava.instruct.command import add_teacher_flags, check_output, open_from_flags
from minillava.terminal import errors_in_one_line, exit_with
from minillava.toy.scienceqa import make_scienceqa

TOY_TITLE = "ScienceQA of the toy world"
STOPPED = "stopped; with the same --out the same command goes on where it was"


def main():
    args = parse_arguments()
    with errors_in_one_line(STOPPED), tempfile.TemporaryDirectory() as scratch:
        if args.out:
            check_output(args.out, args.teacher, args.requery)
        if args.results:
            read = args.out, args.score_only, args.teacher, args.requery
            check_output(args.results, *read, flag="--results")

        # the questions: ScienceQA's own, or those of a mini one that is drawn here
        drawn = args.data is None
        data = args.data or draw_questions(scratch, args.split, args.questions or 600, args.seed)
        problems = scienceqa.load(data, args.split)

        # the answers: those of a file, or a model's
        stated = {}
        control = {}
        if args.score_only:
            texts, stated, settings = read_results(args.score_only, data, args.split, problems)
            print("settings:", json.dumps(settings) if settings else "the file does not state them")
        else:
            model, tokenizer = open_model(args.model, args.vision, args.language, args.projector,
                                          args.base, args.quantize, args.device, args.dtype)
            settings = settings_of(model, args.prompt_format, args.template, args.option_letter,
                                   args.use_caption, args.max_new_tokens, args.batch)
            questions = make_questions(data, args.split, settings, args.text_only)[: args.questions]
            texts, control = ask(model, tokenizer, questions, settings,
                                 out=args.out or Path(scratch, "answers.jsonl"),
                                 name=Path(args.model or args.language).name,
                                 control=drawn or args.control)
            if args.out and any(question["image"] for question in questions):  # it is of these
                keep_score("scienceqa", args.out, labels=data, title=TOY_TITLE if drawn else None)

        # what they are worth: alone, or together with a teacher's
        if args.teacher:
            theirs = read_teacher(args.teacher, data, args.split, problems)
            judge = judge_of(args, data, problems) if args.ensemble == "judge" else None
            rows, texts, notes = ensemble(texts, theirs, problems, args.strict_official, judge)
        else:
            rows, notes = alone(texts, stated, control, problems, args.strict_official)
        report(rows, notes, problems, args.split, drawn, args.topics)
        if args.results:
            chosen = rows[args.ensemble if args.teacher else "answers"]
            write_results(args.results, chosen, texts, problems)


# ---------------------------------------------------------------------------------------- answering

def draw_questions(folder, split, count, seed):
    """A mini ScienceQA of the toy world, in the official layout -> its folder."""
    print(f"a mini ScienceQA: {count} held-out questions of the toy world")
    make_scienceqa(folder, {split: count}, seed)
    return Path(folder)


def ask(model, tokenizer, questions, settings, out, name, control=False):
    """-> {id: text}, and with `control` the same given another question's image, else {}.

    A question without an image keeps its answer there. The answers are lines of the file `out`;
    what is answered there already is not asked again.
    """
    answer = answering(model, tokenizer, settings)
    rows = answer_file(questions, out, answer, name, settings, settings["batch"])
    name_failures(rows)
    texts = {row["question_id"]: row["text"] for row in rows}
    if not control:
        return texts, {}

    shown = [question for question in questions if question["image"]]
    if len(shown) < 2:
        print("no control: there are no two pictures to swap")
        return texts, {}
    swapped = with_control(shown, "another")
    settings = settings | {"control": "another question's image"}
    out = beside(out, ".control.jsonl")
    rows = answer_file(swapped, out, answer, name, settings, settings["batch"])
    return texts, texts | {row["question_id"]: row["text"] for row in rows}


# ---------------------------------------------------------------------------------------- the judge

def read_teacher(path, data, split, problems):
    texts, _, _ = read_results(path, data, split, problems)
    if not texts:
        raise ValueError(f"{path} states choices without texts; an ensemble needs the texts")
    return texts


def judge_of(args, data, problems):
    """Who weighs what the two said: a function from {id: prompt} to {id: text}.

    The file --requery answers if it is there; else --judge does, and the file is written.
    """
    if args.requery and args.requery.exists():
        texts, _, _ = read_results(args.requery, data, args.split, problems)
        return lambda prompts: texts
    if not args.judge:
        raise ValueError("--ensemble judge needs --judge openai|FOLDER to ask, or --requery with "
                         "its answers")
    judge = open_from_flags(args.judge, args)

    def ask(prompts):
        replies = ask_judge(judge, prompts)
        print(f"judge: {judge.spending()}")
        if args.requery and replies:
            write_verdicts(args.requery, prompts, replies)
        return replies

    return ask


# ---------------------------------------------------------------------------------------- the flags

def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_flags(parser)
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=16, help="questions at a time")
    add_question_flags(parser)
    add_score_flags(parser)
    args = parser.parse_args()
    if args.model is None and args.language is None:  # the shipped miniature
        args.model = TOY / "scienceqa"
        args.dtype = "float32" if args.dtype == "auto" else args.dtype
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        exit_with("eval_scienceqa.py is one process; torchrun shares the questions of `python -m "
                  "minillava.evaluation answer scienceqa`, whose `score` reads the answers")
    counts = args.batch, args.max_new_tokens, args.questions
    if any(count is not None and count < 1 for count in counts):
        exit_with("--batch, --max-new-tokens and --questions are at least 1")
    if args.data is None and args.score_only:
        exit_with("--score-only needs --data, the folder of the questions")
    if args.score_only and (args.out or args.control or args.questions):
        exit_with("--score-only asks nothing: leave out --out, --control and --questions")
    judged = args.ensemble == "judge"
    if (judged or args.judge or args.requery) and not (judged and args.teacher):
        exit_with("a judge weighs two answers: --teacher FILE --ensemble judge")
    if args.data is not None and not (args.out or args.score_only):
        exit_with("name a file for the answers with --out; a stopped evaluation goes on from it")
    return args


def add_question_flags(parser):
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--data", type=Path, help="ScienceQA's folder (default: a mini one is drawn)")
    add("--split", default="test")
    add("--questions", type=int, help="the first so many alone (default: all; 600 are drawn)")
    add("--seed", type=int, default=0, help="of the mini ScienceQA")
    add("--prompt-format", help="such as QCM-LEA (default: the checkpoint's)")
    add("--option-letter", action=flag, default=False,
        help=f'end the prompt with "{scienceqa.OPTION_LETTER}"')
    add("--use-caption", action=flag, default=False,
        help="the image's caption goes into the context")
    add("--text-only", action=flag, default=False, help="leave out the questions with an image")
    add("--control", action=flag, default=False, help="ask again with each other's images")
    add("--out", type=Path,
        help="the answers, a line each; what is answered there is not asked again")


def add_score_flags(parser):
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--score-only", type=Path, metavar="FILE", help="score this answer file, ask nothing")
    add("--strict-official", action=flag, default=False,
        help="read answers as the official script does")
    add("--topics", action=flag, default=False, help="a table of topics too")
    add("--results", type=Path, help="write the official JSON of results and outputs")
    add("--teacher", type=Path, metavar="FILE",
        help="answers of a text-only teacher, for an ensemble")
    add("--ensemble", choices=("complement", "judge"), default="complement")
    add("--requery", type=Path, metavar="FILE", help="the judge's answers: read or written")
    # whom to ask where ours and the teacher's differ
    add_teacher_flags(parser, temperature=0.0, name="--judge")


if __name__ == "__main__":
    main()
