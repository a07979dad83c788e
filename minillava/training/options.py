"""The command line of train.py: its flags, what is made of them, and what is wrong with them.

What argparse read goes no further than this file and train.py's `main`: of it are made recipes,
Sources and a Setup.
"""
import argparse
import math
from dataclasses import fields, replace
from pathlib import Path

import torch

from minillava.conversation import TEMPLATES
from minillava.training.new_words import read_new_word
from minillava.training.recipes import changed
from minillava.training.run_folder import Setup, Sources
from minillava.weights.adapters import is_adapter

FLAG = argparse.BooleanOptionalAction


def make_parser(doc, recipes):
    parser = argparse.ArgumentParser(
        prog="train.py", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=recipes,
                        help="which training (default: the whole miniature)")
    add_sources(parser)
    add_changes(parser)
    add_setup(parser)
    add_questions(parser)
    return parser


def add_sources(parser):
    for name, text in (("vision", "folder of a CLIP"),
                       ("language", "folder of a Vicuna, of any Llama"),
                       ("init", "run of stage 1, a whole LLaVA or (without LoRA) an adapter, "
                                "to begin with"),
                       ("data", "LLaVA-JSON (.json, .jsonl), a folder of pictures with metadata, "
                                "or ScienceQA's folder"),
                       ("images", "folder of its images"),
                       ("replay-data", "LLaVA-JSON of old samples (the miniature draws its own)"),
                       ("replay-images", "folder of their images")):
        parser.add_argument(f"--{name}", type=Path, help=text)
    parser.add_argument("--val", help="samples kept apart: a file or folder as --data, or a "
                                      "share of it as 0.1")
    parser.add_argument("--replay", type=float, default=0.0,
                        help="share of old samples that is mixed in, against forgetting")
    parser.add_argument("--template", choices=TEMPLATES,
                        help="(default: that of --init, where it is whole; else the recipe's)")
    parser.add_argument("--aspect", choices=("square", "pad"), help="likewise")
    parser.add_argument("--quantize", choices=("int8", "int4"), help="the frozen base below a LoRA")
    parser.add_argument("--answer-first", action=FLAG, default=False,
                        help="ScienceQA: answer, then reason (section 5.2)")
    parser.add_argument("--text-only", action=FLAG, default=False,
                        help="ScienceQA: leave out the questions with an image")


def add_changes(parser):
    """What the command line may change in a recipe."""
    parser.add_argument("--batch", type=int,
                        help="samples per step, over all GPUs (default, as below: the recipe's)")
    parser.add_argument("--per-gpu", type=int,
                        help="samples that one GPU takes at a time; the rest is accumulated")
    parser.add_argument("--lr", type=float, help="the rate at its peak; Muon's changes with it")
    parser.add_argument("--projector-lr", type=float, help="the projector's own rate")
    parser.add_argument("--projector", choices=("linear", "mlp2x_gelu"), help="of a new one")
    parser.add_argument("--feature-layer", type=int,
                        help="of CLIP, in both stages: -1 the last, -2 the one before")
    parser.add_argument("--layers", type=int,
                        help="keep only so many blocks of the language model, in both stages")
    parser.add_argument("--tower", action=FLAG, default=None, help="stage 2: train CLIP too")
    parser.add_argument("--tower-lr", type=float, help="with --tower: CLIP's own rate")
    parser.add_argument("--lora", type=int, help="rank of LoRA: train it, not the language model")
    parser.add_argument("--lora-alpha", type=float, help="(default: twice the rank)")
    parser.add_argument("--words", action=FLAG, default=None,
                        help="with LoRA: train embeddings and head too, for words never said")
    parser.add_argument("--new-word", action="append", dest="new_words", metavar="NEW=OLD,OLD",
                        help="stage 2: a word that begins as the mean of words that are known "
                             "and like it (pink=red,purple); with LoRA it implies --words")
    parser.add_argument("--min-steps", type=int,
                        help="recipes own and own-lora: so many steps, however few samples")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--max-length", type=int,
                        help="tokens, image included, where a sample is cut")
    parser.add_argument("--loss-mean", choices=("global", "official"),
                        help="over the step's tokens, or over each micro-batch's, then over these")
    parser.add_argument("--checkpointing", action=FLAG, default=None,
                        help="compute activations again rather than keep them")


def add_setup(parser):
    parser.add_argument("--out", type=Path,
                        help="folder of the run (default: runs/RECIPE, of the miniature runs/toy)")
    parser.add_argument("--resume", action=FLAG, default=False, help="go on with the run in --out")
    parser.add_argument("--shard", action=FLAG, default=None,
                        help="FSDP2 (default: stage 2 of the real recipes), else DDP")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                        help="to compute in; weights are fp32 (auto: bfloat16, but float32 on a "
                             "CPU that is far slower in bfloat16, as many a laptop's is)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, ...")
    parser.add_argument("--workers", type=int, default=None,
                        help="processes that load data (default: 4 beside a GPU)")
    parser.add_argument("--save-every", type=int, default=500,
                        help="steps from one checkpoint to the next")
    parser.add_argument("--eval-every", type=int, default=50,
                        help="steps from one look at --val to the next")
    parser.add_argument("--patience", type=int,
                        help="end after so many looks at --val without a better loss")
    parser.add_argument("--keep", type=int, default=2, help="checkpoints kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=4800,
                        help="miniature: training scenes; more teach better")
    parser.add_argument("--heldout", type=int, default=400, help="miniature: held-out scenes")
    parser.add_argument("--per-type", type=int, default=110,
                        help="miniature: held-out questions of each type")


def add_questions(parser):
    """What can be asked before a run."""
    parser.add_argument("--print", action=FLAG, default=False,
                        help="only show what it trains, freezes, reads, writes")
    parser.add_argument("--plan", action=FLAG, default=False,
                        help="only work out memory, arithmetic and hours")
    parser.add_argument("--check-data", action=FLAG, default=False,
                        help="only read every sample and name the bad ones")
    parser.add_argument("--gpus", type=int, help="for --plan (default: 8, for the miniature 1)")
    parser.add_argument("--mfu", type=float, default=0.45,
                        help="for --plan: the part of the peak that is reached")


# ------------------------------------------------------------------------------ what was asked for

# what of a recipe is a flag; LoRA's are looked at on their own
CHANGES = ("lr", "projector_lr", "tower_lr", "batch", "per_gpu", "epochs", "min_steps",
           "max_length", "checkpointing", "loss_mean", "projector", "feature_layer", "layers",
           "tower", "words")


def read(args, official, toys, shipped):
    """-> (name of the recipe, {name: recipe} as they are asked for, Sources, Setup)

    shipped: folder of the miniature's weights, which the toy recipes and `own` start from.
    """
    refuse_wrong_numbers(args)
    refuse_alone(args)
    name = recipe_name(args)
    recipes = {known: as_asked(recipe, args) for known, recipe in (official | toys).items()}
    recipe = recipes[name]
    refuse_for_recipe(recipe, args)
    setup = setup_of(args, recipe, name in toys)
    sources = sources_of(args, recipe, name in toys, shipped)
    refuse_parts(sources, args.projector, args.feature_layer)
    refuse_upon_adapter(recipe, sources)
    return name, recipes, sources, setup


def recipe_name(args):
    """The recipe that is meant; `own` begins with the shipped miniature where --init names none."""
    name = args.recipe or "toy-finetune"  # the last stage of the whole miniature
    if name == "own" and args.lora:
        name = "own-lora"  # LoRA learns at a rate of its own
    if name.startswith("own") and args.init is None:
        name = f"toy-{name}"
    return name


def as_asked(recipe, args):
    """A recipe with what the command line changes in it."""
    if args.lora and recipe.stage == 2:
        muon_lr = recipe.muon_lr if recipe.lora else None  # chosen for whole matrices
        alpha = args.lora_alpha or 2.0 * args.lora
        recipe = replace(recipe, lora=args.lora, lora_alpha=alpha, muon_lr=muon_lr)
    if args.lr:
        muon_lr = recipe.muon_lr and recipe.muon_lr * args.lr / recipe.lr
        recipe = replace(recipe, muon_lr=muon_lr, width=0)  # it is not fitted any more
    if args.per_gpu or args.checkpointing is not None:
        recipe = replace(recipe, fits=False)  # nor is what a GPU shall hold
    if args.new_words and recipe.lora:
        recipe = replace(recipe, words=True)  # unless --no-words

    changes = {name: getattr(args, name) for name in CHANGES}
    if recipe.stage == 1:
        changes["tower"] = None  # that of stage 2 is meant
    if not recipe.min_steps:
        changes["min_steps"] = None
    return changed(recipe, **changes)


def sources_of(args, recipe, toy, shipped):
    sources = Sources(**flags_of(Sources, args))
    if recipe.min_steps and not sources.init:
        sources = replace(sources, init=shipped / "llava")
    if toy and not sources.starts_whole:
        sources = replace(sources, vision=sources.vision or shipped / "clip",
                          language=sources.language or shipped / "vicuna")
    if sources.new_words:
        sources = replace(sources, new_words=tuple(map(read_new_word, sources.new_words)))
    return sources


def setup_of(args, recipe, toy):
    given = flags_of(Setup, args)
    if args.out is None:
        given["out"] = Path("runs", args.recipe or "toy")
    if args.shard is None:
        given["shard"] = recipe.stage == 2 and not (toy or recipe.lora or recipe.min_steps)
    if args.workers is None:
        # on a CPU they would take the time of what they feed
        given["workers"] = 4 if torch.cuda.is_available() and not toy else 0
    if given["shard"] and recipe.muon_lr:
        raise ValueError("Muon needs whole matrices: the toy recipes run with --no-shard")
    return Setup(**given)


def flags_of(kind, args):
    """{name: what is typed} of the fields of a dataclass, each of which is a flag."""
    return {field.name: getattr(args, field.name) for field in fields(kind)}


# --------------------------------------------------------------------------- what is wrong with it

POSITIVE = ("batch", "per_gpu", "epochs", "max_length", "save_every", "keep", "gpus", "scenes",
            "heldout", "per_type", "lr", "projector_lr", "tower_lr", "lora", "lora_alpha",
            "min_steps", "eval_every", "patience", "layers")


def refuse_wrong_numbers(args):
    for name in POSITIVE:
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} must be positive, not {value}")
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"--workers is 0 or more, not {args.workers}")
    if not 0 < args.mfu <= 1:
        raise ValueError(f"--mfu is above 0 and at most 1, not {args.mfu}")
    if not 0 <= args.replay < 1:
        raise ValueError(f"--replay is a share from 0 to below 1, not {args.replay}")


# a flag, and the one without which it would change nothing
GO_TOGETHER = (("replay_data", "replay"), ("replay_data", "replay_images"),
               ("replay_images", "replay_data"), ("patience", "val"), ("lora_alpha", "lora"),
               ("tower_lr", "tower"))


def refuse_alone(args):
    for flag, other in GO_TOGETHER:
        if getattr(args, flag) and not getattr(args, other):
            flag, other = flag.replace("_", "-"), other.replace("_", "-")
            raise ValueError(f"--{flag} goes with --{other}, which is not given")


def refuse_missing(recipe_name, sources):
    """A recipe needs data, and CLIP and Vicuna where --init is no whole LLaVA."""
    if sources.data and not sources.data.exists():
        raise ValueError(f"there is no {sources.data}; give --data a folder or a JSON file")
    folder = sources.data and sources.data.is_dir()  # its pictures are in it
    whole = sources.starts_whole
    needed = {"--data": sources.data, "--images": sources.images or folder,
              "--vision": sources.vision or whole, "--language": sources.language or whole}
    missing = [flag for flag, given in needed.items() if not given]
    if missing:
        raise ValueError(f"--recipe {recipe_name} needs {' and '.join(missing)}")


def refuse_for_recipe(recipe, args):
    """What the recipe's stage, or its LoRA, has no use for."""
    for flag, given in (("--lora", args.lora), ("--new-word", args.new_words),
                        ("--tower", args.tower)):
        if given and recipe.stage == 1:
            raise ValueError(f"{flag} goes with a recipe of stage 2: "
                             "stage 1 trains the projector alone")
    if args.min_steps and not recipe.min_steps:
        raise ValueError("--min-steps goes with own and own-lora; others have --epochs")
    if args.layers and recipe.lora:
        raise ValueError("--layers makes a model of its own, and a LoRA belongs to its base as "
                         "that stands in its folder: leave one of them out")
    if args.quantize and not recipe.lora:
        raise ValueError("--quantize is for a base that is frozen: give --lora RANK with it")
    if recipe.words and (args.quantize or not recipe.lora):
        raise ValueError("--words, which --new-word asks for, goes with --lora, which else leaves "
                         "words alone, and not with --quantize (which takes --no-words)")
    if args.new_words and recipe.lora and not recipe.words:
        raise ValueError("--new-word has rows to be trained: with LoRA it takes --words")


def refuse_parts(sources, projector, feature_layer):
    if sources.language and sources.starts_whole and sources.init.exists():
        raise ValueError("--init is a whole LLaVA, which has a language model: leave --language "
                         "away, or give a folder that holds the mm_projector.bin alone")
    if sources.starts_whole and (projector or feature_layer is not None):
        raise ValueError("--projector and --feature-layer are for a LLaVA that is put together "
                         "from its parts, and --init is a whole one")


def refuse_upon_adapter(recipe, sources):
    if recipe.lora and sources.starts_whole and is_adapter(sources.whole_folder):
        raise ValueError(f"{sources.whole_folder} is a LoRA, and another is not trained upon it: "
                         "make a plain folder of it first (python -m minillava.weights merge)")


def refuse_data(sources):
    if sources.data or sources.images or sources.replay:
        raise ValueError("the miniature draws its own data: "
                         "--data, --images and --replay go with a --recipe")
