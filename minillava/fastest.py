"""The fastest product of a linear layer on this machine, found by timing a few of them once.

Decoding sends one row (or one for each question of a batch) through every weight. The time goes
into reading weights, and which of PyTorch's kernels reads fastest differs from processor to
processor by a factor of three. Nothing is hard-wired, therefore: before the first answer, a few
candidates are timed on real layers of the model, in tens of milliseconds.

    choose_products(model.language_model, rows=1, verbose=True)

On a CPU alone, and for answering alone: what is trained stays as it is.
"""
import copy
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from minillava.linear import Int8Linear

# So many layers are timed in turn, so that none is still in the processor's cache; so many times.
LAYERS = 3
ROUNDS = 5
# Weights of a layer up to which fp32 is tried: twice the memory, hence for a small model only.
SMALL = 2**20
# A candidate replaces what is there if it takes at most this part of its time.
GAIN = 0.9


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

    def forward(self, x):
        """[..,I] -> [..,O]"""
        few = x.shape[:-1].numel() <= self.few
        return self.product(x, self.weight) if few else F.linear(x, self.weight)


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
        scale = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12) / 127  # [rows,1]
        rounded = (x / scale).round().to(torch.int8)                          # [rows,I]
        y = self.product(rounded, self.weight)                                # int32 [rows,O]
        return (y * scale * self.scale).to(x.dtype)


def rows_times_weight(x, weight):
    return torch._int_mm(x, weight.t())


def weight_times_rows(x, weight):
    """The same from the other side: with AMX in three quarters of the time."""
    return torch._int_mm(weight, x.t()).t()


def choose_products(language_model, rows=1, verbose=False):
    """Gives the linear layers the product that is the fastest for so many rows, by a trial.

    The layers that are like those of the first blocks are replaced, the head among them. Where fp32
    wins, the whole language model is put into it: in a small one the other steps are the faster in
    it too. `verbose` prints what was found, on stderr.
    """
    if language_model.embed_tokens.weight.device.type != "cpu":
        return
    layers = [block.mlp.up_proj for block in language_model.layers[:LAYERS]]
    dtype = language_model.embed_tokens.weight.dtype
    candidates = candidates_for(layers[0], dtype, rows)

    seconds = trial({name: [make(layer) for layer in layers] for name, make in candidates.items()},
                    torch.randn(rows, language_model.config.hidden_size).to(dtype))
    best = min(seconds, key=seconds.get)
    if seconds[best] > GAIN * seconds["as it is"]:
        best = "as it is"
    if verbose:
        print(trial_lines(layers[0], rows, seconds, best), file=sys.stderr)
    if best == "in fp32":
        language_model.float()
    elif best != "as it is":
        replace_layers(language_model, type(layers[0]), candidates[best])
    # It copies weights; those of a large model stay in their file, memory-mapped.
    if type(layers[0]) is nn.Linear and layers[0].weight.numel() <= SMALL:
        join_products(language_model)


def candidates_for(layer, dtype, rows):
    """{name: a function that makes of a layer one that computes the same}"""
    candidates = {"as it is": nn.Identity()}
    if type(layer) is Int8Linear:
        for name, product in (("x W", rows_times_weight), ("W x", weight_times_rows)):
            candidates[f"x rounded too, {name}"] = partial(RoundingInt8Linear, product=product)
    if type(layer) is nn.Linear and dtype != torch.float32:
        candidates["without oneDNN"] = partial(FewRowsLinear, few=rows, product=without_onednn)
        if rows == 1:
            candidates["W x"] = partial(FewRowsLinear, few=1, product=weight_times_vector)
    if type(layer) is nn.Linear and dtype != torch.float32 and layer.weight.numel() <= SMALL:
        candidates["in fp32"] = in_fp32
    return candidates


def in_fp32(layer):
    return copy.deepcopy(layer).float()


@torch.inference_mode()
def trial(candidates, x):
    """{name: layers} -> {name: seconds for one layer}, the shortest of a few rounds in turn."""
    seconds = dict.fromkeys(candidates, float("inf"))
    for _ in range(ROUNDS):
        for name, layers in candidates.items():
            given = x.float() if name == "in fp32" else x
            for layer in layers:
                start = time.perf_counter()
                layer(given)
                seconds[name] = min(seconds[name], time.perf_counter() - start)
    return seconds


def replace_layers(language_model, kind, make):
    """Every layer of a kind becomes what `make` makes of it."""
    for name, layer in list(language_model.named_modules()):
        if type(layer) is kind:
            language_model.set_submodule(name, make(layer))


def join_products(language_model):
    """What multiplies the same x does so at once: queries, keys and values, and the MLP's two."""
    for block in language_model.layers:
        attention, mlp = block.self_attn, block.mlp
        attention.project = joint_product([attention.q_proj, attention.k_proj, attention.v_proj])
        mlp.project = joint_product([mlp.gate_proj, mlp.up_proj])


def joint_product(layers):
    """Layers without bias -> a function x -> what each of them makes of it, by one product.

    They keep their names: the weight of each becomes a part of the joint one.
    """
    sizes = [layer.out_features for layer in layers]
    weight = torch.cat([layer.weight.detach() for layer in layers])
    joint = nn.Linear(layers[0].in_features, len(weight), bias=False, device="meta")
    joint.weight = nn.Parameter(weight, requires_grad=False)
    for layer, part in zip(layers, weight.split(sizes)):
        layer.weight = nn.Parameter(part, requires_grad=False)

    if isinstance(layers[0], FewRowsLinear):
        joint = FewRowsLinear(joint, layers[0].few, layers[0].product)
    return lambda x: joint(x).split(sizes, dim=-1)


def trial_lines(layer, rows, seconds, best):
    """What was tried and how fast it was, as text."""
    shape = f"{layer.out_features} x {layer.in_features}"
    lines = [f"linear layers of {shape}, x of {rows} rows: milliseconds"]
    for name, value in seconds.items():
        chosen = "   <- taken" if name == best else ""
        lines.append(f"    {name:20} {1000 * value:8.3f}{chosen}")
    return "\n".join(lines)
