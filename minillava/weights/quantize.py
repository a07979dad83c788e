"""The language model's weights in 8 or 4 bits: see minillava/linear.py for what they mean.

A layer's `NAME.weight` becomes integers, and a `NAME.scale` stands beside it: in a folder under the
official names as in memory, so that a saved one is memory-mapped like any other. Embedding, norms,
projector and tower stay as they are; the head has 8 bits in both kinds, and if it is tied to the
embedding it stays too.
"""
import re
from collections import Counter
from itertools import zip_longest

import torch
from torch import nn

from minillava.linear import (BLOCK, Int4Linear, Int8Linear, QuantizedLinear, WidenedConv2d,
                              WidenedLinear, block_here, in_blocks, to_int4, to_int8)
from minillava.on_cpu import is_slow
from minillava.weights.filling import refuse_not_finite
from minillava.weights.folders import write_folder
from minillava.weights.layouts import LLAVA_HF
from minillava.weights.saving import llava_hf_files, refuse_projector, with_two_layers
from minillava.weights.tensors import forget_pages, read_ahead, rename

KINDS = ("int8", "int4")
LAYER = re.compile(r"(language_model\.)?layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
HEAD = re.compile(r"(language_model\.)?lm_head\.weight")
WIDENED = {nn.Linear: WidenedLinear, nn.Conv2d: WidenedConv2d}
ROWS = 64  # of a weight that are worked on at once, few enough for a cache: four times as fast


def quantized(tensors, kind, tied, source, device):
    """{name: tensor} with the layers' weights in few bits, on the device that shall have them.

    The big ones are let go one by one.
    """
    if kind not in KINDS:
        raise ValueError(f"quantize {kind!r:.40} is neither of {' and '.join(KINDS)}")
    refuse_other_kind(tensors, kind, source)

    tensors = dict(tensors)
    names_of = Counter(tensor.data_ptr() for tensor in tensors.values())  # {address: how many}
    chosen = [name for name, tensor in tensors.items()
              if rounding(name, kind, tied) and tensor.is_floating_point()]
    for name, following in zip_longest(chosen, chosen[1:]):
        if following is not None:  # the disk reads it while the processor is at work upon this one
            read_ahead(tensors[following])
        weight, scale = by_rows(tensors[name].to(device), rounding(name, kind, tied))
        refuse_not_finite(name, scale, source)  # nor is that of a weight that is not
        if names_of[tensors[name].data_ptr()] == 1:
            forget_pages(tensors[name])
        tensors[name] = weight
        tensors[name.removesuffix("weight") + "scale"] = scale
    return tensors


def rounding(name, kind, tied):
    """What puts a tensor of this name into few bits; None: it stays as it is."""
    if LAYER.fullmatch(name):
        return to_int4 if kind == "int4" else to_int8
    if HEAD.fullmatch(name) and not tied:
        return to_int8
    return None


def by_rows(weight, to_few_bits):
    """Some output channels after the others: in fp32 the whole would take five times the memory."""
    parts = [to_few_bits(rows) for rows in weight.split(ROWS)]
    weights, scales = zip(*parts)
    channels = 0 if scales[0].ndim == 1 else 1  # [O] of int8, [I/64,O,2] of int4
    return torch.cat(weights), torch.cat(scales, dim=channels)


def is_quantized(tensors):
    return any(LAYER.fullmatch(name) and not tensor.is_floating_point()
               for name, tensor in tensors.items())


def refuse_other_kind(tensors, kind, source):
    """What is saved in 8 bits cannot be read in 4, nor the other way round."""
    saved = {tensor.dtype for name, tensor in tensors.items() if LAYER.fullmatch(name)}
    other = torch.int8 if kind == "int4" else torch.uint8
    if other in saved:
        raise ValueError(f"{source} is quantised already, and not to {kind}: "
                         "leave quantize away, or give the plain folder")


def place_quantized(module, tensors):
    """Puts quantised layers where the tensors have integers, in a module on the meta device."""
    for name, layer in list(module.named_modules()):
        weight = tensors.get(f"{name}.weight")
        if isinstance(layer, nn.Linear) and f"{name}.scale" in tensors and weight is not None:
            size = layer.in_features, layer.out_features
            with torch.device("meta"):
                if weight.dtype == torch.int8:
                    module.set_submodule(name, Int8Linear(*size))
                elif weight.dtype == torch.uint8:
                    halved = weight.shape[-1] == BLOCK // 4
                    module.set_submodule(name, Int4Linear(*size, BLOCK // 2 if halved else BLOCK))


def fit_to_machine(module):
    """What the kernels of this processor want: int4 in their blocks, int8 at every 16th byte.

    What was saved on such a processor stays in the file as it is, memory-mapped. What is slow in
    bf16 is multiplied in fp32.
    """
    if next(module.parameters()).device.type != "cpu":
        return
    for layer in module.modules():
        if isinstance(layer, QuantizedLinear):
            in_file = layer.weight
            if isinstance(layer, Int4Linear):
                layer.weight = in_blocks(in_file, block_here())
            elif in_file.data_ptr() % 16:  # in a file a tensor begins at any byte
                layer.weight = in_file.clone()
            if layer.weight is not in_file:
                forget_pages(in_file)
        elif type(layer) in WIDENED and is_slow(layer.weight.dtype):
            layer.__class__ = WIDENED[type(layer)]  # the same weights by another product


def save_quantized(model, tokenizer, path, kind):
    """As save_llava, but for minillava alone: no other program knows these integers."""
    refuse_projector(model.config.projector)
    tensors = dict(model.named_parameters())
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            tensors |= {f"{name}.{part}": tensor for part, tensor in layer.named_buffers()}
    tensors = with_two_layers(tensors, model.config.projector)
    tensors = rename(tensors, {here: disk for disk, here in LLAVA_HF.items()})

    files = llava_hf_files(model.config, tokenizer, tensors)
    files["config.json"]["quantization_config"] = {"quant_method": "minillava", "kind": kind}
    write_folder(path, tensors, files, tokenizer.save)
