"""Visual instruction data from captions and boxes (section 3), by a teacher that sees no picture.

    python -m minillava.instruct --captions captions_train2014.json \\
        --instances instances_train2014.json --kinds conversation,detail,reasoning --count 1000 \\
        --teacher openai --out llava_instruct.json
    python -m minillava.instruct --captions captions_train2014.json --kinds brief --out stage_1.json

A picture is told to the teacher as five captions and, but for conversations, a line
`category: [x1, y1, x2, y2]` for each object. Instructions and examples are the files in prompts/.
The result is the JSON that train.py takes, or JSON lines if --out ends with .jsonl. The second
command needs no teacher: stage 1 learns from captions alone, thinned as the paper thinned CC3M
to 595,000.
"""
import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path

from minillava.files import beside, write, write_jsonl
from minillava.instruct.captions import brief_samples
from minillava.instruct.command import (
    add_teacher_flags,
    check_output,
    end_without,
    open_from_flags,
    print_dry_run,
    run_command,
)
from minillava.instruct.samples import jobs_for, make_samples, request_for
from minillava.instruct.symbols import PAPER_MIX, read_symbols, samples_per_kind
from minillava.terminal import aligned, exit_with, printable


def make_data(captions, instances, kinds, out, open_teacher, count=None, seed=0, keep_all=False,
              dry_run=False, detail_questions=None):
    """Captions and boxes -> what the teacher is told -> its replies -> LLaVA-JSON. -> exit code

    open_teacher: gives the Teacher, once all files have been read; detail_questions: what its
    descriptions answer, in place of prompts/detail/questions.txt.
    """
    check_kinds(kinds, count)
    check_output(out, captions, instances)
    symbols = read_symbols(captions, instances)
    if {"detail", "reasoning"} & set(kinds) and not (instances or is_jsonl(captions)):
        raise ValueError("detail and reasoning are made from boxes too; give --instances")
    symbols = with_captions(symbols)

    if kinds == ["brief"]:
        finish(out, make_brief(symbols, seed, count, keep_all), [])
        return 0

    counts = samples_per_kind(kinds, count, len(symbols))
    jobs = jobs_for(symbols, counts, seed)
    teacher = open_teacher()
    if dry_run:
        print_dry_run(teacher, [request_for(kind, *symbols[name]) for kind, name in jobs])
        return 0

    samples, rejects = make_samples(symbols, jobs, teacher, seed, detail_questions)
    print(teacher.spending())
    write_rejects(beside(out, ".rejects.jsonl"), rejects)
    if not samples and not rejects:
        end_without("sample", teacher)
    if not samples:
        exit_with(f"no sample was made, and no file written. {rejects[-1]['reason']}", code=1)
    finish(out, samples, rejects)
    unasked = len(jobs) - len(samples) - len(rejects)
    if unasked:
        print(f"{unasked} samples were not asked for: {teacher.why_stopped()}")
    return 1 if unasked else 0


def make_brief(symbols, seed, count, keep_all):
    samples, concepts = brief_samples(symbols, seed, count, not keep_all)
    if concepts:
        print("{concepts} concepts (content words), {rare} in fewer than 3 captions, "
              "{common} in more than 100".format(**concepts))
    if not samples:
        raise ValueError("no caption is left: each word of theirs is in fewer than 3 of them; "
                         "--keep-all does not thin them")
    return samples


def finish(out, samples, rejects):
    if is_jsonl(out):
        write_jsonl(out, samples, ensure_ascii=False)
    else:
        write(out, json.dumps(samples, ensure_ascii=False, indent=1))
    print_table(samples, rejects)
    print(f"{len(samples)} samples are in {printable(out)}")


def check_kinds(kinds, count):
    known = kinds == ["brief"] or set(kinds) <= PAPER_MIX.keys()
    if not known or len(set(kinds)) < len(kinds) or (count is not None and count < 1):
        raise ValueError("--kinds is brief, or some of conversation,detail,reasoning, each once; "
                         "--count is at least 1")


def with_captions(symbols):
    """The pictures of which something can be told."""
    told = {name: (captions, boxes) for name, (captions, boxes) in symbols.items() if any(captions)}
    print(f"{len(symbols)} pictures, {len(symbols) - len(told)} of them without captions "
          "and so left out")
    if not told:
        raise ValueError("no picture has a caption")
    return told


# ----------------------------------------------------------------------------------------- files

def is_jsonl(path):
    return path.suffix == ".jsonl"


def write_rejects(path, rejects):
    write_jsonl(path, rejects, ensure_ascii=False)
    print(f"{len(rejects)} replies were set aside in {printable(path)}")
    reasons = Counter(reject["reason"] for reject in rejects)
    for reason, count in reasons.most_common(3):
        print(f"{count:8}  {printable(reason, keep='')}")


# ------------------------------------------------------------------------------- what was made

def print_table(samples, rejects):
    """What was made: a line a kind."""
    rows = [["kind", "samples", "questions", "words a question", "words an answer", "rejects"]]
    kinds = [kind_of(sample) for sample in samples]
    set_aside = Counter(reject["kind"] for reject in rejects)
    for kind in dict.fromkeys([*kinds, *set_aside]):
        turns = [turn["value"].replace("<image>", "").split() for sample in samples
                 if kind_of(sample) == kind for turn in sample["conversations"]]
        questions, answers = turns[::2], turns[1::2]
        rows.append([kind, kinds.count(kind), len(questions), mean_length(questions),
                     mean_length(answers), set_aside[kind]])
    print(aligned(rows))


def kind_of(sample):
    return sample["id"].rpartition("_")[2]


def mean_length(turns):
    return f"{sum(map(len, turns)) / max(1, len(turns)):.1f}"


# -------------------------------------------------------------------------------- command line

def main(teachers=None, detail_questions=None):
    """teachers: {name: ask(messages) -> text}, further ones that --teacher may name;
    detail_questions: what their descriptions answer, in place of prompts/detail/questions.txt."""
    parser = argparse.ArgumentParser(prog="python -m minillava.instruct", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = argparse.BooleanOptionalAction
    add = parser.add_argument
    add("--captions", type=Path, required=True, help="COCO's captions_*.json, or a jsonl")
    add("--instances", type=Path, help="COCO's instances_*.json")
    add("--kinds", default="conversation,detail,reasoning", help="or brief, for stage 1")
    add("--count", type=int,
        help="samples in all, 58 : 23 : 77 as in the paper (default: all it can)")
    add("--keep-all", action=flag, default=False, help="brief: do not thin the captions")
    add("--seed", type=int, default=0)
    add("--out", type=Path, required=True, help=".json, or .jsonl for JSON lines")
    add("--dry-run", action=flag, default=False,
        help="ask nothing: show a request, how many there are, what they would cost")
    add_teacher_flags(parser, temperature=0.7, teachers=teachers or {})

    def run(args):
        handed_in = args.teacher in (teachers or {})  # the detail_questions are for these alone
        return make_data(args.captions, args.instances, args.kinds.split(","), args.out,
                         partial(open_from_flags, args.teacher, args, teachers), args.count,
                         args.seed, args.keep_all, args.dry_run,
                         detail_questions if handed_in else None)

    parser.set_defaults(run=run)
    run_command(parser)


if __name__ == "__main__":
    main()
