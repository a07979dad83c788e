"""What LLaVA takes ready-made, made here in miniature: a CLIP and a Vicuna for the toy world.

    python -m minillava.toy.backbones --out runs/backbones      # both at once, one core each: about half an hour

The toy CLIP learns by contrast between pictures and captions (Radford et al. 2021, figure 3) and never sees a question.
The toy Vicuna learns from text alone: it reads a scene in words and answers questions about it, so that it can already
look up, count and compare when LLaVA gives it eyes. Neither sees a held-out scene. Both are saved in the official layouts.
"""
import argparse
import random
import sys
from pathlib import Path

import torch

from minillava.toy.clip import pretrain_clip
from minillava.toy.tokenizer import train_tokenizer
from minillava.toy.vicuna import pretrain_vicuna


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for clip/ and vicuna/")
    parser.add_argument("--clip-steps", type=int, default=2500)
    parser.add_argument("--vicuna-steps", type=int, default=4800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    spawn = torch.multiprocessing.get_context("spawn")
    tokenizer = train_tokenizer(args.out / "vicuna", random.Random(args.seed))
    work = [spawn.Process(target=alone, args=(train, args.out / name, tokenizer, steps, args.seed)) for train, name, steps in
            ((pretrain_clip, "clip", args.clip_steps), (pretrain_vicuna, "vicuna", args.vicuna_steps))]
    for process in work:
        process.start()
    for process in work:
        process.join()
    if any(process.exitcode for process in work):
        sys.exit("error: a pretraining failed, see above")


def alone(train, *args):
    """One core for each of the two: matrices this small gain little from a second one."""
    torch.set_num_threads(1)
    train(*args)


if __name__ == "__main__":
    main()
