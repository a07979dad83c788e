"""The fastest product of a linear layer on this machine, found by timing a few of them once.

Decoding sends one row (or one for each question of a batch) through every weight. The time goes
into reading weights, and which of PyTorch's kernels reads fastest differs from processor to
processor by a factor of three. Nothing is hard-wired, therefore: before the first answer, a few
candidates are timed on real layers of the model, in half a second at 1.4B and less in a small one.

    choose_products(model.language_model, rows=1, verbose=True)

Between the products a token passes some thirty small operations in each block, and the weights that
were read meanwhile have pushed all else out of the caches. So one row gets by with fewer of them:
layers of one input share its product or its rounding, and a norm takes five.

On a CPU alone, and for answering alone: what is trained stays as it is.
"""
import copy
import math
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from minillava.linear import (
    SMALL,
    Int8Linear,
    LoraLinear,
    PrepackedLinear,
    WidenedLinear,
    prepacked_product,
)
from minillava.llama import RMSNorm

# Layers of so many bytes are timed in turn: more than a processor's cache keeps until the next one.
BYTES = 2**29
# Walks of each candidate through them, of which the fastest counts: what comes between costs time.
WALKS = 3
# A candidate replaces what is there if it takes at most this part of its time.
GAIN = 0.95


class FewRowsLinear(nn.Module):
    """A linear layer without bias that makes few rows by another product than F.linear.

    The weight is the layer's own: nothing is copied, and what lies in a file, memory-mapped, stays
    there.
    """

    def __init__(self, layer, few, product):
        super().__init__()
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.weight = layer.weight
        self.few = few
        self.product = product
        self.prepacked = getattr(layer, "prepacked", None)

    def forward(self, x):
        """[..,I] -> [..,O]"""
        if x.shape[:-1].numel() <= self.few:
            return self.product(x, self.weight)
        return prepacked_product(x, self.weight, self.prepacked)


def without_onednn(x, weight):
    """By PyTorch's own loops. oneDNN, which multiplies bf16 on a CPU, lays a weight out anew before
    it begins: that pays for many rows; one alone is done twice as fast without, on an EPYC.
    """
    before = torch.backends.mkldnn.enabled  # oneDNN by its old name
    torch.backends.mkldnn.enabled = False
    try:
        return F.linear(x, weight)
    finally:
        torch.backends.mkldnn.enabled = before


def weight_times_vector(x, weight):
    """One row [..,I]: W x, not x W^T. oneDNN then reads the weight as it lies; on a Xeon with AMX
    that takes two thirds of the time.
    """
    return torch.mv(weight, x.flatten()).view(*x.shape[:-1], -1)


class RoundingInt8Linear(Int8Linear):
    """Int8Linear that rounds few rows of x too: to 8 bits, with one scale for each row."""

    def __init__(self, layer, product):
        nn.Module.__init__(self)
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.register_buffer("weight", layer.weight)
        self.register_buffer("scale", layer.scale)
        self.product = product

    def few_rows(self, x):
        rounded, scale = in_8_bits(x)
        return scaled(self.product(rounded, self.weight), scale, self.scale).to(x.dtype)


def in_8_bits(x):
    """[rows,I] -> int8 [rows,I] and the scale of each row, [rows,1]"""
    largest = torch.linalg.vector_norm(x, math.inf, 1, keepdim=True, dtype=torch.float32)
    scale = largest / 127
    # A row of zeros is divided by zero; its scale then makes zeros of whatever comes out.
    return (x / scale).round_().to(torch.int8), scale


def scaled(y, scale, of_outputs):
    """int32 [rows,O] -> fp32: times the scale of each row [rows,1] and of each output [O]"""
    return (y * scale).mul_(of_outputs)


def rows_times_weight(x, weight):
    return torch._int_mm(x, weight.t())


def weight_times_rows(x, weight):
    """The same from the other side: with AMX in three quarters of the time."""
    return torch._int_mm(weight, x.t()).t()


def choose_products(language_model, rows=1, verbose=False):
    """Gives the linear layers the product that is the fastest for so many rows, by a trial.

    Layers of a kind are replaced together; the head is of another kind than the blocks where it
    alone has 8 bits. Where fp32 wins, the whole language model is put into it: in a small one the
    other steps are the faster in it too. `verbose` prints what was found, on stderr.

    Layers that are prepacked are timed as such, and stay so for more rows.

    A model stays as it is on a GPU, or where a LoRA stands beside its weights of few bits.
    """
    weights = language_model.embed_tokens.weight
    has_lora = any(isinstance(module, LoraLinear) for module in language_model.modules())
    if weights.device.type != "cpu" or has_lora:
        return
    layers = timed_layers(language_model)
    head = language_model.lm_head
    enough = 1 + BYTES // layers[0].weight.nbytes
    makers = {type(layer): candidates_for(layer, weights.dtype, rows) for layer in (head, layers[0])}

    x = torch.randn(rows, language_model.config.hidden_size).to(weights.dtype)
    for kind, seconds in trial([*layers[:enough], head], makers, x).items():
        best = fastest_of(seconds)
        if verbose:
            print(trial_lines(kind, rows, seconds, best), file=sys.stderr)
        if best == "in fp32":
            language_model.float()
        elif best != "as it is":
            replace_layers(language_model, kind, makers[kind][best])

    # A joint product copies weights; those of a large model stay in their file, memory-mapped.
    if isinstance(layers[0], nn.Linear) and layers[0].weight.numel() <= SMALL:
        share_inputs(language_model, joint_product)
    elif type(language_model.layers[0].mlp.up_proj) is RoundingInt8Linear:
        share_inputs(language_model, rounded_once)
    for module in language_model.modules():
        if isinstance(module, RMSNorm):
            module.forward = norm_of_one(module)


def timed_layers(language_model):
    """Two to a block, alike, and more bytes of them than a large cache keeps."""
    return [layer for block in language_model.layers
            for layer in (block.mlp.gate_proj, block.mlp.up_proj)]


def candidates_for(layer, dtype, rows):
    """{name: a function that makes of a layer one that computes the same}"""
    candidates = {"as it is": nn.Identity()}
    if type(layer) is Int8Linear:
        for name, product in (("x W", rows_times_weight), ("W x", weight_times_rows)):
            candidates[f"x rounded too, {name}"] = partial(RoundingInt8Linear, product=product)
    if type(layer) in (nn.Linear, PrepackedLinear) and dtype != torch.float32:
        candidates["without oneDNN"] = partial(FewRowsLinear, few=rows, product=without_onednn)
        if rows == 1:
            candidates["W x"] = partial(FewRowsLinear, few=1, product=weight_times_vector)
    if isinstance(layer, nn.Linear) and dtype != torch.float32 and layer.weight.numel() <= SMALL:
        candidates["in fp32"] = in_fp32  # twice the memory, hence for a small model only
    return candidates


def in_fp32(layer):
    return copy.deepcopy(layer).float()


@torch.inference_mode()
def trial(layers, makers, x):
    """{kind of layer: {name: seconds for a weight}}

    Each candidate walks through all layers, in the place of those of its kind. A token does the
    same: nobody may find a weight in a cache here that no token would find there.
    """
    walks = {(kind, name): {n: make(layer) for n, layer in enumerate(layers) if type(layer) is kind}
             for kind, names in makers.items() for name, make in names.items()}
    seconds = {kind: dict.fromkeys(names, math.inf) for kind, names in makers.items()}
    for _ in range(WALKS):
        for (kind, name), candidates in walks.items():
            given = x.float() if name == "in fp32" else x
            taken = walk(layers, candidates, x, given)
            seconds[kind][name] = min(seconds[kind][name], taken)
    return seconds


def walk(layers, candidates, x, given):
    """Runs all layers upon x, {place: candidate} upon `given` -> seconds for a weight of these."""
    taken = weights = 0
    for n, layer in enumerate(layers):
        if n in candidates:
            start = time.perf_counter()
            candidates[n](given)
            taken += time.perf_counter() - start
            weights += layer.in_features * layer.out_features
        else:
            layer(x)
    return taken / weights


def fastest_of(seconds):
    best = min(seconds, key=seconds.get)
    return best if seconds[best] <= GAIN * seconds["as it is"] else "as it is"


def replace_layers(language_model, kind, make):
    """Every layer of a kind becomes what `make` makes of it."""
    for name, layer in list(language_model.named_modules()):
        if type(layer) is kind:
            language_model.set_submodule(name, make(layer))


def share_inputs(language_model, share):
    """What multiplies the same x does so at once: queries, keys and values, and the MLP's two."""
    for block in language_model.layers:
        attention, mlp = block.self_attn, block.mlp
        attention.project = share([attention.q_proj, attention.k_proj, attention.v_proj])
        mlp.project = share([mlp.gate_proj, mlp.up_proj])


def joint_product(layers):
    """Layers without bias -> a function x -> what each of them makes of it, by one product.

    They keep their names: the weight of each becomes a part of the joint one.
    """
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    kind = WidenedLinear if isinstance(layers[0], WidenedLinear) else nn.Linear
    joint = kind(layers[0].in_features, len(weight), bias=False, device="meta")
    joint.weight = nn.Parameter(weight, requires_grad=False)
    for layer, part in zip(layers, weight.split(sizes)):
        layer.weight = nn.Parameter(part, requires_grad=False)

    if isinstance(layers[0], FewRowsLinear):
        joint = FewRowsLinear(joint, layers[0].few, layers[0].product)
    return lambda x: joint(x).split(sizes, dim=-1)


def rounded_once(layers):
    """Layers that round x -> a function x -> what each of them makes of it: rounded once, and
    scaled together.
    """
    sizes = [layer.out_features for layer in layers]
    scales = torch.cat([layer.scale for layer in layers])

    def project(x):
        if not layers[0].takes(x):
            return [layer(x) for layer in layers]
        rounded, scale = in_8_bits(x.reshape(-1, x.shape[-1]))
        parts = [layer.product(rounded, layer.weight) for layer in layers]
        joint = torch.cat(parts, dim=-1)  # int32 [rows, O of all]
        y = scaled(joint, scale, scales).to(x.dtype)
        return y.view(*x.shape[:-1], -1).split(sizes, dim=-1)

    return project


def norm_of_one(norm):
    """RMSNorm -> a function that makes one row of it in five small operations.

    F.rms_norm takes nine on a CPU. Between two products, which leave nothing else in the caches,
    one row of 2048 takes 0.07 instead of 0.15 ms on a Xeon.
    """
    width = norm.weight.numel()
    least = torch.tensor(math.sqrt(norm.eps))

    def forward(x):
        if x.numel() > width:
            return RMSNorm.forward(norm, x)
        # A number in fp32, which x in bf16 is divided by without being laid out in fp32.
        length = torch.linalg.vector_norm(x, dtype=torch.float32)
        return x / torch.hypot(length * width**-0.5, least) * norm.weight

    return forward


def trial_lines(kind, rows, seconds, best):
    """What was tried and how fast it was, as text."""
    lines = [f"{kind.__name__}, x of {rows} rows: microseconds for a million weights"]
    for name, value in seconds.items():
        chosen = "   <- taken" if name == best else ""
        lines.append(f"    {name:20} {1e12 * value:8.3f}{chosen}")
    return "\n".join(lines)
