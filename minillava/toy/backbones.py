"""What LLaVA takes ready-made, made here in miniature: a CLIP and a Vicuna for the toy world.

    python -m minillava.toy.backbones --out runs/backbones  # one core each: about half an hour

clip.py and vicuna.py say how they learn. Neither sees a held-out scene. Both are saved in the
official layouts.
"""
import random
from pathlib import Path

import torch

from minillava.terminal import command_parser, errors_in_one_line
from minillava.toy.clip import pretrain_clip
from minillava.toy.tokenizer import train_tokenizer
from minillava.toy.vicuna import pretrain_vicuna


def main():
    parser = command_parser("toy.backbones", __doc__)
    parser.add_argument("--out", type=Path, required=True, help="a folder for clip/ and vicuna/")
    parser.add_argument("--clip-steps", type=int, default=2500)
    parser.add_argument("--vicuna-steps", type=int, default=4800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with errors_in_one_line():
        tokenizer = train_tokenizer(args.out / "vicuna", random.Random(args.seed))
        side_by_side([
            (pretrain_clip, args.out / "clip", tokenizer, args.clip_steps, args.seed),
            (pretrain_vicuna, args.out / "vicuna", tokenizer, args.vicuna_steps, args.seed)])


def side_by_side(trainings):
    """Runs [(function, argument, ...)] in a process each; ValueError where one fails."""
    spawn = torch.multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=on_one_core, args=training) for training in trainings]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise ValueError("a pretraining failed, see above")


def on_one_core(train, *args):
    """Matrices this small gain little from a second core."""
    torch.set_num_threads(1)
    train(*args)


if __name__ == "__main__":
    main()
