"""What a training would take, worked out from shapes alone: parameters, memory per GPU, arithmetic, hours.

Memory counts what PyTorch allocates: not the CUDA context (about 1 GB), not fragments. Arithmetic is that of the model
(Kaplan et al. 2020: 2 FLOPs per weight and token forward, 2 for the gradient of what goes in, 2 for that of the weight,
and attention); what activation checkpointing computes again is not counted, as usual for an MFU.
"""
import torch

from minillava.llava import HEAD_CHUNK, Llava

PEAKS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bf16 FLOP/s: NVIDIA's data sheets


def count(module, trained=None):
    return sum(p.numel() for p in module.parameters() if trained is None or p.requires_grad == trained)


def skeleton(config, stage):
    """The model without its weights."""
    with torch.device("meta"):
        model = Llava(config)
    model.freeze_for(stage)
    return model


def step_flops(model, stage, tokens, images):
    """Of one optimiser step over `tokens` tokens, those of `images` images included; sequences short of the context."""
    config, language = model.config, model.language_model
    back = 3 if stage == 2 else 2  # forward and one or both backwards
    towers = len(model.vision_tower.encoder.layers)
    used = config.vision_feature_layer % (towers + 1) / towers  # blocks above the asked layer do not run
    tower = 2 * used * count(model.vision_tower.encoder) * (config.image_tokens + 1) * images
    projector = 3 * 2 * count(model.mm_projector) * config.image_tokens * images
    matrices = count(language.layers) + language.lm_head.weight.numel()
    return tower + projector + back * 2 * matrices * tokens


def memory(model, tokens, ranks, shard, checkpointing, width, accumulate=1):
    """{item: bytes} on one GPU, "in all" at the worst moment. tokens: of the micro-batch on this GPU; width: bytes of a
    number computed with. Logits are gone before gradients are there, unless those of earlier micro-batches are."""
    config, language = model.config, model.language_model
    trained, frozen = count(model, True), count(model, False)
    block = count(language.layers[0])
    root = trained - len(language.layers) * block if language.embed_tokens.weight.requires_grad else 0
    c = config.language_config
    D, inner, heads = c.hidden_size, c.intermediate_size, c.num_attention_heads * c.head_dim
    kv = c.num_key_value_heads * c.head_dim
    # What a block keeps for its backward, per token: norms (in, fp32), q k v before and after RoPE, attention, MLP.
    kept = 2 * (2 * D * width + 4 * D) + (3 * heads + 4 * kv) * width + (4 * inner + D) * width
    layers = len(language.layers)
    items = {"weights": 4 * trained + width * frozen, "optimizer": 8 * trained, "gradients": 4 * trained,
             "activations": tokens * (layers * D * width + kept if checkpointing else layers * kept),
             "logits": min(HEAD_CHUNK, tokens) * c.vocab_size * (12 if width == 4 else 14)}  # fp32: 3 copies
    if shard:  # FSDP2 gathers what is no block's for the whole step, and a block and the next when they are computed
        items["weights"] = 4 * trained / ranks + width * (frozen + root + 2 * block)
        items["gradients"] = 4 * trained / ranks + width * root
        items["optimizer"] /= ranks
    elif width < 4:
        items["weights"] += width * trained  # the copies that are computed with
    later = items["logits"], items["gradients"]
    items["in all"] = sum(items.values()) - (min(later) if accumulate == 1 else 0)
    return items


def report(config, recipe, samples, tokens, ranks, per_gpu, shard, checkpointing, width, mfu):
    """The plan as lines of text; samples and tokens: how many, and the mean of one with its image."""
    model, stage = skeleton(config, recipe["stage"]), recipe["stage"]
    accumulate = recipe["batch"] // (per_gpu * ranks)
    items = memory(model, per_gpu * recipe["max_length"], ranks, shard, checkpointing, width, accumulate)
    steps = -(-samples // recipe["batch"]) * recipe["epochs"]
    flops = step_flops(model, stage, recipe["batch"] * tokens, recipe["batch"])
    lines = [f"trained     {count(model, True):>16,} parameters", f"frozen      {count(model, False):>16,} parameters",
             f"memory per GPU, {ranks} of them, {per_gpu} samples of {recipe['max_length']} tokens each, "
             f"{'FSDP2' if shard else 'DDP'}{', activation checkpointing' if checkpointing else ''}:"]
    lines += [f"  {name:<12}{size / 2**30:>8.1f} GiB" for name, size in items.items()]
    lines += [f"steps       {steps:>16,}  ({samples:,} samples x {recipe['epochs']} / {recipe['batch']}, "
              f"accumulating {accumulate}x)",
              f"per step    {flops:>16.3g}  FLOPs ({tokens} tokens a sample)"]
    for name in ("A100", "H100"):
        hours = steps * flops / (mfu * PEAKS[name] * ranks) / 3600
        lines.append(f"on {ranks} {name:<8}{hours:>12.1f}  hours at an MFU of {mfu:.0%}")
    return "\n".join(lines)
