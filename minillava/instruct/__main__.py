"""Visual instruction data from captions and boxes (section 3): GPT-4 wrote LLaVA's, and never saw a picture.

    python -m minillava.instruct --captions captions_train2014.json --instances instances_train2014.json \\
        --kinds conversation,detail,reasoning --count 1000 --teacher openai --out llava_instruct.json
    python -m minillava.instruct --captions captions_train2014.json --kinds brief --out stage_1.json

A picture is told to the teacher as five captions and, but for conversations, a line `category: [x1, y1, x2, y2]` for
each object. Instructions and examples are the text files in prompts/. The result is the JSON that train.py takes. The
second command needs no teacher: stage 1 learns from captions alone, thinned as the paper thinned CC3M to 595,000.
"""
import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path

from minillava.files import write
from minillava.instruct.captions import brief_samples
from minillava.instruct.command import add_arguments, open_teacher, run_command
from minillava.instruct.samples import make_samples
from minillava.instruct.symbols import MIX, read_symbols, shares_of


def show(samples, rejects):
    """The table of what was made."""
    print(f"{'kind':14}{'samples':>9}{'questions':>11}{'words a question':>18}{'words an answer':>17}{'rejects':>9}")
    kind_of = lambda sample: sample["id"].rpartition("_")[2]
    for kind in dict.fromkeys([*map(kind_of, samples), *(row["kind"] for row in rejects)]):
        turns = [turn for sample in samples if kind_of(sample) == kind for turn in sample["conversations"]]
        words = {role: [len(turn["value"].replace("<image>", "").split()) for turn in turns if turn["from"] == role]
                 for role in ("human", "gpt")}
        human, gpt = (sum(counts) / max(1, len(counts)) for counts in words.values())
        print(f"{kind:14}{sum(kind_of(s) == kind for s in samples):9}{len(words['human']):11}{human:18.1f}{gpt:17.1f}"
              f"{sum(row['kind'] == kind for row in rejects):9}")


def run(args, teachers=None, questions=None):
    """-> exit code."""
    kinds, left = args.kinds.split(","), 0
    unknown = [kind for kind in kinds if kind not in MIX and kinds != ["brief"]]
    if unknown or len(set(kinds)) < len(kinds) or (args.count is not None and args.count < 1):
        raise ValueError("--kinds is brief, or some of conversation,detail,reasoning, each once; --count is at least 1")
    everything = read_symbols(args.captions, args.instances)
    if {"detail", "reasoning"} & set(kinds) and not args.instances and args.captions.suffix != ".jsonl":
        raise ValueError("detail and reasoning are made from boxes too; give --instances")
    symbols = {name: pair for name, pair in everything.items() if pair[0]}
    print(f"{len(everything)} pictures, {len(everything) - len(symbols)} of them without captions and so left out")
    if kinds == ["brief"]:
        rejects, (samples, counts) = [], brief_samples(symbols, args.seed, args.count, not args.keep_all)
        if counts:
            print("{concepts} concepts (content words), {rare} in fewer than 3 captions, {common} in more than 100"
                  .format(**counts))
    else:
        teacher = open_teacher(args, teachers)
        samples, rejects, left = make_samples(symbols, shares_of(kinds, args.count, len(symbols)), teacher, args.seed,
                                              questions if teachers and args.teacher in teachers else None)
        print(teacher.report())
        aside = args.out.with_suffix(".rejects.jsonl")
        write(aside, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rejects))
        print(f"{len(rejects)} replies were set aside in {aside}"
              + "".join(f"\n{n:8}  {why}" for why, n in Counter(row["reason"] for row in rejects).most_common(3)))
    write(args.out, json.dumps(samples, ensure_ascii=False, indent=1))
    show(samples, rejects)
    print(f"{len(samples)} samples are in {args.out}")
    if left:
        print(f"{left} samples were not asked for: the limit is near; raise it and run again to go on")
    return 1 if left else 0


def main(teachers=None, questions=None):
    parser = argparse.ArgumentParser(prog="python -m minillava.instruct", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="COCO's captions_*.json, or a jsonl")
    parser.add_argument("--instances", type=Path, help="COCO's instances_*.json")
    parser.add_argument("--kinds", default="conversation,detail,reasoning", help="or brief, for stage 1")
    parser.add_argument("--count", type=int, help="samples in all, 58 : 23 : 77 as in the paper (default: all it can)")
    parser.add_argument("--keep-all", action=argparse.BooleanOptionalAction, default=False,
                        help="brief: do not thin the captions")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    add_arguments(parser, temperature=0.7)
    parser.set_defaults(run=partial(run, teachers=teachers, questions=questions))
    run_command(parser)


if __name__ == "__main__":
    main()
