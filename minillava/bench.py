"""How fast is it, against what this machine can do and against transformers?

    python -m minillava.bench                    all of it: about a quarter of an hour on two cores
    python -m minillava.bench --quick            the miniature and a training step: two minutes
    python -m minillava.bench --shapes 1.4B --json    a line of JSON for each figure

The ceilings are measured in the same run: how fast all cores together read memory, and how fast
they multiply matrices. A figure is stated as the fraction of its ceiling that it reaches (bytes of
weights for decoding, arithmetic for the rest), and as a ratio to transformers on the same weights,
batch and dtype, where that can be imported; it is never needed. The programs take turns, and their
medians are compared. But for the miniature's, weights are random: nothing is downloaded.
"""
import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from minillava.checkpoint import TOY, load_llava, save_llava
from minillava.fastest import choose_products, timed_layers
from minillava.generate import logits_after, new_cache, next_logits, next_tokens, sample_token
from minillava.linear import Int4Linear, block_here, prepack_layers
from minillava.llama import KVCache, LanguageConfig, LanguageModel
from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN, Llava, LlavaConfig
from minillava.terminal import errors_in_one_line
from minillava.theirs import has_transformers, open_in_transformers, their_steps, their_training
from minillava.tokenizer import Tokenizer
from minillava.training import distributed, plan
from minillava.training.optimizer import forward_backward_in, make_optimizers, take_step
from minillava.training.recipes import RECIPES
from minillava.training.records import peak_memory
from minillava.vit import VisionConfig
from minillava.weights.allocator import keep_freed_memory
from minillava.weights.devices import find_device, training_dtype

VIT_L = VisionConfig(1024, 4096, 24, 16, 336, 14)
VIT_B = VisionConfig(768, 3072, 12, 12, 224, 14)  # 256 image tokens
LLAMA_1B = LanguageConfig(32064, 2048, 5632, 22, 32, 4, rms_norm_eps=1e-5)
LLAMA_7B = LanguageConfig(32064, max_position_embeddings=4096)
LLAMA_140M = LanguageConfig(32064, 768, 2048, 12, 12)

SHAPES = ("miniature", "1.4B", "7B", "140M")
STAGES = {1: RECIPES["v1.5-pretrain"], 2: RECIPES["v1.5-finetune"]}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
PICTURE = 576  # image tokens of LLaVA-1.5
TEXT = 64      # tokens of a prompt, beside its image
ANSWER = 32    # tokens that are decoded
TURN = 20      # tokens of a second question


def main():
    args = arguments()
    with errors_in_one_line():
        device = find_device(args.device)
        if args.rounds < 1:
            raise ValueError(f"--rounds is 1 or more, not {args.rounds}")
    shapes = ["miniature", "140M"] if args.quick else args.shapes
    rounds = 3 if args.quick else args.rounds
    limits = ceilings(device)
    print(json.dumps(limits) if args.json else ceiling_line(limits), flush=True)
    for figure in all_parts(shapes, limits, device, rounds, args.quick):
        print(json.dumps(figure) if args.json else figure_line(figure), flush=True)


def arguments():
    parser = argparse.ArgumentParser(
        prog="python -m minillava.bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=SHAPES)
    parser.add_argument("--quick", action=argparse.BooleanOptionalAction, default=False,
                        help="the miniature and a training step, under two minutes")
    parser.add_argument("--json", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


def all_parts(shapes, limits, device, rounds, quick):
    """Yields a row for each figure, as soon as it is there."""
    with tempfile.TemporaryDirectory() as folder:
        if "miniature" in shapes:
            for dtype in ("bf16", "fp32"):
                yield from answering("miniature", TOY / "llava", dtype, [None], limits, device,
                                     4 * rounds)
        if "1.4B" in shapes:
            write_random(LlavaConfig(VIT_L, LLAMA_1B), folder)
            kinds = [None, "int8", "int4"]
            yield from answering("1.4B", folder, "bf16", kinds, limits, device, rounds)
    if "7B" in shapes:
        yield decoding_7b(limits, device, rounds)
    if "140M" in shapes:
        dtypes = DTYPES
        if quick:  # the one that train.py takes here
            fast = training_dtype("auto", device)
            dtypes = [name for name, dtype in DTYPES.items() if dtype == fast]
        for stage in (2, 1):
            for dtype in dtypes:
                yield training(stage, dtype, limits, device, rounds)


# ---- time, and what the machine can do ----


def seconds(function):
    """Of one call; a function may return them itself, where only a part of it counts."""
    start = time.perf_counter()
    result = function()
    # A GPU works on while Python goes on.
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    whole = time.perf_counter() - start
    return result if isinstance(result, float) else whole


def race(runners, rounds):
    """{name: function} -> {name: median seconds}. They take turns, after one turn for nothing."""
    taken = {name: [] for name in runners}
    for turn in range(rounds + 1):
        for name, function in runners.items():
            taken[name].append(seconds(function))
    return {name: statistics.median(values[1:]) for name, values in taken.items()}


def ceilings(device):
    """{"read": bytes/s with all cores, "bf16" and "fp32": FLOP/s of a large product}"""
    # A GPU has enough to do that its start does not count.
    bytes_, rows = (2**29, 640) if device.type == "cpu" else (2**31, 2**14)
    # Larger than any cache, and the maximum of integers is next to no arithmetic.
    big = torch.ones(bytes_ // 8, dtype=torch.int64, device=device)
    found = {"read": big.nbytes / min(seconds(big.amax) for _ in range(10))}
    for name, dtype in DTYPES.items():
        x = torch.randn(rows, 2048, device=device, dtype=dtype)
        weight = torch.randn(5632, 2048, device=device, dtype=dtype)
        best = min(seconds(lambda: F.linear(x, weight)) for _ in range(10))
        found[name] = 2 * len(x) * weight.numel() / best
    return found


# ---- answering: loading, ViT, prefill, decoding, a second turn ----


def answering(shape, folder, dtype, kinds, limits, device, rounds):
    """A row for each step on the way to an answer; kinds: None, or in how few bits the weights are.

    Transformers has its weights in `dtype` all the while.
    """
    files = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    theirs = None
    if has_transformers():
        theirs = open_in_transformers(folder, DTYPES[dtype], device)

    for kind in kinds:
        name = f"{shape} {kind or dtype}"
        loaders = {"minillava": lambda: load_llava(folder, device=device, dtype=DTYPES[dtype],
                                                   quantize=kind)}
        if theirs is not None and kind is None:
            loaders["transformers"] = lambda: open_in_transformers(folder, DTYPES[dtype], device)
        yield row(name, "loading", race(loaders, 1), files / limits["read"])

        # The floor is of the weights as they lie on disk, before the fastest product is chosen.
        model, _ = loaders["minillava"]()
        floor = floors(model, limits, max(limits[dtype], limits["fp32"]))
        # As chat.py does; in one process with it, transformers gains by what is freed too.
        keep_freed_memory()
        prepack_layers(model.requires_grad_(False))
        choose_products(model.language_model)
        runners = {"minillava": our_steps(model)}
        if theirs is not None:
            runners["transformers"] = their_steps(theirs, *prompt(model), ANSWER)
        steps = floor if kind is None else ["prefill", "decode"]  # the rest is as in `dtype`
        for step in steps:
            of_step = {who: functions[step] for who, functions in runners.items()
                       if step in functions}
            with torch.inference_mode():
                taken = race(of_step, rounds)
            figure = row(name, step, taken, floor[step])
            if step == "decode":
                figure["of_kernel"] = kernel_floor(model.language_model) / figure["seconds"]
            yield figure


def write_random(config, folder):
    """A folder of weights of these shapes, in bf16."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Llava(config).to(torch.bfloat16)
    model.to_empty(device="cpu").requires_grad_(False)
    for name, p in model.named_parameters():
        p.fill_(1) if "norm" in name else p.normal_(0, 0.02)
    save_llava(model, Tokenizer.load(TOY / "vicuna"), folder)


def prompt(model):
    """-> ids [1,T], one image among them, and pixels [1,3,S,S]."""
    config = model.config
    S = config.vision_config.image_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, config.language_config.vocab_size - 1, (1, config.image_tokens + TEXT),
                        generator=generator)
    ids[:, 4 : 4 + config.image_tokens] = IMAGE_TOKEN
    pixels = torch.randn(1, 3, S, S, generator=generator)
    return ids.to(model.device), pixels.to(model.device)


def floors(model, limits, multiply):
    """{step: seconds} that its arithmetic, or the bytes of its weights, take at the ceiling."""
    vision, language = model.vision_tower.encoder, model.language_model
    used = model.used_blocks / len(vision.layers)
    head = language.lm_head.weight
    per_token = 2 * matrices(language.layers)
    read = read_bytes(language)
    patches = model.config.image_tokens
    vit = 2 * (used * plan.count(vision) * (patches + 1) + plan.count(model.mm_projector) * patches)
    return {
        "ViT": vit / multiply,
        "prefill": (vit + per_token * (patches + TEXT) + 2 * head.numel()) / multiply,
        "decode": read / limits["read"],
        "second turn": max((per_token * TURN + 2 * head.numel()) / multiply, read / limits["read"]),
    }


@torch.inference_mode()
def kernel_floor(language_model):
    """Seconds for all weights of a token at the speed of the MLPs' first two products alone."""
    layers = timed_layers(language_model)
    x = language_model.embed_tokens.weight[:1]
    alone = min(seconds(lambda: [layer(x) for layer in layers]) for _ in range(5))
    return alone * read_bytes(language_model) / sum(map(bytes_of, layers))


def read_bytes(language_model):
    """Bytes of weights that a token reads: all but the embedding."""
    return bytes_of(language_model.layers) + bytes_of(language_model.lm_head)


def bytes_of(module):
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def matrices(module):
    """Numbers in all linear layers, whatever they are kept in."""
    total = 0
    for layer in module.modules():
        if hasattr(layer, "in_features"):
            outputs = getattr(layer, "out_features", None) or len(layer.weight)
            total += layer.in_features * outputs
    return total


def our_steps(model):
    """{step: function}"""
    ids, pixels = prompt(model)
    cache = new_cache(model)

    def decode():
        tokens = next_tokens(model, ids, pixels, new_cache(model), sample_token)
        next(tokens).tolist()
        # Each token is waited for, as a terminal would.
        return seconds(lambda: [next(tokens).tolist() for _ in range(ANSWER)]) / ANSWER

    def second_turn():
        cache.length = 0
        next_logits(model, ids, pixels, cache)
        return seconds(lambda: next_logits(model, ids[:, -TURN:], None, cache))

    return {
        "ViT": lambda: model.encode_images(pixels),
        "prefill": lambda: next_logits(model, ids, pixels, new_cache(model)),
        "decode": decode,
        "second turn": second_turn,
    }


# ---- training ----


def training(stage, dtype, limits, device, rounds):
    """A training step of four samples: 256 image tokens, 128 of text, of which 80 are learned."""
    config = LlavaConfig(VIT_B, LLAMA_140M)
    runners = {"minillava": Apart(our_training, config, stage, DTYPES[dtype], device)}
    if has_transformers():
        runners["transformers"] = Apart(training_of_theirs, config, stage, DTYPES[dtype], device)

    taken = race(runners, rounds)
    skeleton = plan.skeleton(config, STAGES[stage])
    floor = plan.step_flops(skeleton, STAGES[stage], 4 * 384, 4) / limits[dtype]
    figure = row(f"140M {dtype}", f"training step, stage {stage}", taken, floor)
    figure |= {f"{who}_peak_gib": runner.end() for who, runner in runners.items()}
    return figure


class Apart:
    """A step in a process of its own: what memory it takes, and how it is managed, is its alone."""

    def __init__(self, make_step, *args):
        context = multiprocessing.get_context("spawn")
        self.pipe, other_end = context.Pipe()
        process = context.Process(
            target=take_steps, args=(other_end, make_step, *args), daemon=True)
        process.start()

    def __call__(self):
        """One step there -> its seconds."""
        self.pipe.send("step")
        return self.pipe.recv()

    def end(self):
        """-> GiB of memory at the worst moment"""
        self.pipe.send("end")
        return self.pipe.recv()


def take_steps(pipe, make_step, *args):
    step = make_step(*args)
    while pipe.recv() == "step":
        pipe.send(seconds(step))
    *_, device = args
    pipe.send(peak_memory(torch.device(device)))


def model_and_batch(config, stage, device):
    torch.manual_seed(0)
    model = Llava(config).to(device)
    model.freeze_for(stage)
    ids = torch.randint(3, 32000, (4, 384), device=device)
    ids[:, 4:260] = IMAGE_TOKEN
    labels = ids.clone()
    labels[:, :-80] = IGNORE_INDEX
    pixels = torch.randn(4, 3, 224, 224, device=device)
    return model, ids, pixels, labels


def our_training(config, stage, dtype, device):
    """A step as train.py takes it, its memory settings included."""
    keep_freed_memory()
    model, ids, pixels, labels = model_and_batch(config, stage, device)
    model = distributed.wrap(model, device, shard=False, dtype=dtype)
    optimizers = make_optimizers(model, 1e-5)

    def step():
        forward_backward_in(dtype, model, ids, pixels, labels=labels)
        take_step(optimizers)

    return step


def training_of_theirs(config, stage, dtype, device):
    model, ids, pixels, labels = model_and_batch(config, stage, device)
    return their_training(model, stage, dtype, ids, pixels, labels)


def decoding_7b(limits, device, rounds):
    """A Vicuna-7B of random 4-bit weights, which never stands in 16 bits: decoding alone."""
    # Layers are exchanged while nothing has memory yet.
    with torch.device("meta"):
        model = LanguageModel(LLAMA_7B).to(torch.bfloat16)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, nn.Linear):
                new = Int4Linear(layer.in_features, layer.out_features, block_here())
                model.set_submodule(name, new.to(torch.bfloat16))
    model.to_empty(device=device)
    for tensor in model.state_dict().values():
        tensor.random_(0, 255) if tensor.dtype == torch.uint8 else tensor.fill_(0.001)
    weights, read = bytes_of(model), read_bytes(model)

    # Every step runs one token more, as in an answer to a question about a picture.
    cache = KVCache(LLAMA_7B, 1, device, torch.bfloat16)
    cache.make_room(PICTURE + TEXT)
    cache.length = PICTURE + TEXT
    token = torch.ones(1, 1, dtype=torch.int64, device=device)

    def step():
        return logits_after(model, token, cache).argmax(-1).item()

    with torch.inference_mode():
        taken = race({"minillava": step}, 4 * rounds)
    return row("7B int4", "decode", taken, read / limits["read"]) | {"weights_gb": weights / 1e9}


# ---- what is shown ----


def row(name, step, taken, floor):
    """A figure: seconds, the fraction of the ceiling, and the ratio where there is one."""
    ours = taken["minillava"]
    figure = {"model": name, "step": step, "seconds": ours, "of_ceiling": floor / ours}
    if "transformers" in taken:
        figure["transformers_seconds"] = taken["transformers"]
        figure["ratio"] = taken["transformers"] / ours
    return figure


def ceiling_line(limits):
    return (f"{torch.get_num_threads()} threads, torch {torch.__version__}: "
            f"read {limits['read'] / 1e9:.1f} GB/s, multiply {limits['bf16'] / 1e9:,.0f} (bf16), "
            f"{limits['fp32'] / 1e9:,.0f} (fp32) GFLOP/s")


def figure_line(figure):
    line = (f"{figure['model']:16} {figure['step']:24} {1000 * figure['seconds']:10.2f} ms"
            f"{100 * figure['of_ceiling']:8.1f} % of the ceiling")
    if "of_kernel" in figure:
        line += f"{100 * figure['of_kernel']:8.1f} % of its best product"
    if "ratio" in figure:
        line += f"{figure['ratio']:8.2f} x transformers"
    if figure.get("transformers_peak_gib"):
        part = figure["minillava_peak_gib"] / figure["transformers_peak_gib"]
        line += f", {part:.2f} x its peak memory"
    return line


if __name__ == "__main__":
    main()
