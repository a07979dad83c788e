"""What a training would take, from shapes alone: parameters, memory per GPU, arithmetic, hours.

Memory counts what PyTorch allocates: not the CUDA context (about 1 GB), not fragments. Arithmetic
is that of the model (Kaplan et al. 2020): 2 FLOPs per weight and token forward, 2 for the gradient
of what goes in, 2 for that of the weight. What activation checkpointing computes again is not
counted, as usual for an MFU.
"""
from dataclasses import asdict

import torch

from minillava.llava import HEAD_CHUNK, Llava
from minillava.tokenizer import Tokenizer
from minillava.training.new_words import learn_words
from minillava.training.recipes import fitted
from minillava.training.run_folder import carried_config
from minillava.training.trained_parts import choose_trained
from minillava.weights.adapters import is_adapter, read_adapted
from minillava.weights.filling import NoInitialValues
from minillava.weights.layouts import load_config, read_llava_folder, read_projector
from minillava.weights.tensors import read_tensors

# dense bf16 FLOP/s: NVIDIA's data sheets
PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}


def peak_flops(device):
    """FLOP/s of the GPU at hand, or None if it is none of PEAKS."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for gpu, flops in PEAKS.items() if gpu in name), None)


def count(module, trained=None):
    """Parameters: all of them, or those that are trained (True) or frozen (False)."""
    return sum(p.numel() for p in module.parameters() if trained in (None, p.requires_grad))


def planned_config(recipe, sources):
    """That of `init`, or of its parts, or LLaVA's own, as it will be trained."""
    words = sources.language  # the folder of the tokenizer
    if not sources.starts_whole:
        projector = recipe.projector
        if sources.init:
            projector, _ = read_projector(sources.init / "mm_projector.bin")
        config = load_config(sources.vision, words, projector, recipe.image_size)
    elif is_adapter(sources.whole_folder):
        config, _, _, words = read_adapted(sources.whole_folder, vision=sources.vision)
    else:
        words = sources.whole_folder
        config, _ = read_llava_folder(words, sources.vision)

    config = carried_config(config, recipe, sources)
    if sources.new_words and words:
        with torch.device("meta"), NoInitialValues():
            model = Llava(config)
        learn_words(model, Tokenizer.load(words), sources.new_words)
        config = model.config
    return config


def planned_bits(sources):
    """"int8", "int4" or None: as asked for, or as the weights of `init` are already."""
    if sources.quantize or not sources.starts_whole or is_adapter(sources.whole_folder):
        return sources.quantize
    stored = {tensor.dtype for tensor in read_tensors(sources.whole_folder).values()}
    # beside layers in int4 the head has 8 bits
    return "int4" if torch.uint8 in stored else "int8" if torch.int8 in stored else None


def skeleton(config, recipe):
    """The model without its weights."""
    with torch.device("meta"), NoInitialValues():
        model = Llava(config)
        choose_trained(model, recipe)
    return model


def step_flops(model, recipe, tokens, images):
    """Of one optimiser step over `tokens` tokens, those of `images` images included.

    Sequences are taken as short beside the context: attention's own part is left out. The head is
    counted on all tokens, though it runs on the supervised ones.
    """
    config, language = model.config, model.language_model
    used = model.used_blocks / len(model.vision_tower.encoder.layers)  # those above do not run

    clip = 2 * used * count(model.vision_tower.encoder) * (config.image_tokens + 1) * images
    clip *= 3 if recipe.tower else 1
    projector = 3 * 2 * count(model.mm_projector) * config.image_tokens * images
    matrices = count(language.layers) + language.lm_head.weight.numel()
    # forward, and one or both backwards: a frozen weight has no gradient of its own
    passes = 3 if recipe.stage == 2 and not recipe.lora else 2
    return clip + projector + passes * 2 * matrices * tokens


def memory(model, tokens, images, ranks, shard, checkpointing, width, accumulate=1, quantize=None):
    """{item: bytes} on one GPU, "in all" at the worst moment.

    tokens, images: of the micro-batch on this GPU; width: bytes of a number that is computed with;
    quantize: the frozen blocks of a LoRA in "int8" or "int4".
    """
    config = model.config.language_config
    trained, frozen = count(model, True), count(model, False)
    layers = config.num_hidden_layers

    kept = kept_per_token(config, width)
    inputs = layers * config.hidden_size * width
    kept_by_all = inputs + kept if checkpointing else layers * kept
    logits = 12 if width == 4 else 14  # bytes: 3 copies in fp32
    frozen_bytes = width * frozen - saved_by(quantize, model, width)
    items = {
        "weights": 4 * trained + frozen_bytes,
        "optimizer": 8 * trained,
        "gradients": 4 * trained,
        "activations": tokens * kept_by_all + images * kept_by_tower(model, width),
        "logits": min(HEAD_CHUNK, tokens) * config.vocab_size * logits,
    }

    if shard:
        # FSDP2 gathers what is no block's for the whole step; of the blocks, this one and the next
        block = count(model.language_model.layers[0], trained=True)
        root = trained - layers * block
        items["weights"] = 4 * trained / ranks + width * (root + 2 * block) + frozen_bytes
        items["gradients"] = 4 * trained / ranks + width * root
        items["optimizer"] /= ranks
    elif width < 4:
        items["weights"] += width * (trained - looked_up(model))  # the copies computed with

    # logits are gone before there are gradients, but for those of earlier micro-batches
    never_together = min(items["logits"], items["gradients"]) if accumulate == 1 else 0
    items["in all"] = sum(items.values()) - never_together
    return items


def looked_up(model):
    """Numbers of a trained table of words, of which there is no copy unless it is the head too."""
    table = model.language_model.embed_tokens.weight
    tied = table is model.language_model.lm_head.weight
    return 0 if tied or not table.requires_grad else table.numel()


def saved_by(quantize, model, width):
    """Bytes that int8 (a scale a channel) or int4 (scale and zero for 64) saves in the blocks."""
    if quantize is None:
        return 0
    blocks = count(model.language_model.layers, trained=False)
    return blocks * (width - {"int8": 1.0, "int4": 0.5 + 4 / 64}[quantize])


def kept_per_token(config, width):
    """Bytes that a block keeps for its backward: norms (fp32), q k v before and after RoPE, MLP."""
    D, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    norms = 2 * (2 * D * width + 4 * D)
    attention = (3 * heads + 4 * kv) * width
    mlp = (4 * inner + D) * width
    return norms + attention + mlp


def kept_by_tower(model, width):
    """Bytes that a picture leaves in CLIP for its backward, where it is trained."""
    if not model.trains_tower:
        return 0
    config = model.config.vision_config
    # what norms, q k v, attention and its output get and give; of the MLP three times its width
    per_token = (8 * config.hidden_size + 3 * config.intermediate_size) * width
    return model.used_blocks * (config.num_patches + 1) * per_token


def plan_lines(config, recipe, ranks, shard, dtype, mfu, quantize=None):
    """The plan as text."""
    recipe = fitted(recipe, recipe.samples, config.language_config.hidden_size, ranks)
    model = skeleton(config, recipe)
    accumulate = recipe.accumulation(ranks)
    width = 4 if dtype == "float32" else 2
    items = memory(model, recipe.per_gpu * recipe.max_length, recipe.per_gpu, ranks, shard,
                   recipe.checkpointing, width, accumulate, quantize)
    steps = -(-recipe.samples // recipe.batch) * recipe.epochs
    flops = step_flops(model, recipe, recipe.batch * recipe.mean, recipe.batch)

    how = "FSDP2" if shard else "DDP"
    if recipe.checkpointing:
        how += ", activation checkpointing"
    lines = [
        f"trained     {count(model, True):>16,} parameters",
        f"frozen      {count(model, False):>16,} parameters",
        f"memory per GPU, {ranks} of them, {recipe.per_gpu} samples of {recipe.max_length} tokens "
        f"each, {how}:",
    ]
    lines += [f"  {name:<12}{size / 2**30:>8.1f} GiB" for name, size in items.items()]
    lines += [
        f"steps       {steps:>16,}  ({recipe.samples:,} samples x {recipe.epochs} / "
        f"{recipe.batch}, accumulating {accumulate}x)",
        f"per step    {flops:>16.3g}  FLOPs ({recipe.mean} tokens a sample)",
    ]
    for name in ("A100", "H100"):
        hours = steps * flops / (mfu * PEAKS[name] * ranks) / 3600
        lines.append(f"on {ranks} {name:<8}{hours:>12.1f}  hours at an MFU of {mfu:.0%}")
    return "\n".join(lines)


def description(config, recipe, sources, out):
    """What a recipe would train, freeze, read and write, as text."""
    model = skeleton(config, recipe)
    parts = {"CLIP": model.vision_tower, "projector": model.mm_projector,
             "language model": model.language_model}
    lines = []
    for name, part in parts.items():
        trained, whole = count(part, trained=True), count(part)
        how = "trained" if trained else "frozen"
        of_it = f", {trained:,} of it" if 0 < trained < whole else ""  # LoRA
        lines.append(f"{how:8} {name:15} {whole:>15,}{of_it}")
    for name in ("vision", "language", "init", "data", "images"):
        lines.append(f"{'reads':8} --{name:13} {getattr(sources, name)}")
    lines.append(f"{'writes':8} {out}/: config.json, metrics.jsonl, loss.png, checkpoint-N, "
                 f"{recipe.result}")
    lines += [f"{name:24} {value}" for name, value in asdict(recipe).items()]
    return "\n".join(lines)
