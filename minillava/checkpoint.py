"""Weights in and out: the official layouts in, one layout out.

A folder is known by what is in its files, never by its name. Each layout has one table of prefixes, on disk -> here; a
tensor that is missing, unexpected or of another shape is an error that names it. Files are memory-mapped and their
tensors become the model's own: a 7B model needs the memory of its weights and no more.
"""
from pathlib import Path

import torch

from minillava.llama import LanguageModel
from minillava.llava import Llava
from minillava.tokenizer import Tokenizer
from minillava.vit import VisionTower
from minillava.weights.layouts import (
    _folder,
    compose,
    read_language,
    read_llava,
    read_llava_hf,
    read_vision,
)
from minillava.weights.tensors import fill, read_tensors

TOY = Path(__file__).parent / "toy" / "weights"  # the shipped miniature


def _build(cls, config, tensors, source, device, dtype):
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":  # that of the file; of the Llama, where there are several
        words = [tensor.dtype for name, tensor in tensors.items() if name.endswith("embed_tokens.weight")]
        dtype = (words or [tensor.dtype for tensor in tensors.values()])[0]
    with torch.device("meta"):
        module = cls(config)
    return fill(module, tensors, source, device, getattr(torch, dtype) if isinstance(dtype, str) else dtype)


def load_vision(path, device="auto", dtype="auto"):
    """A CLIP folder -> VisionTower."""
    return _build(VisionTower, *read_vision(path), path, device, dtype)


def load_language(path, device="auto", dtype="auto"):
    """The folder of a Vicuna or any other Llama -> (LanguageModel, Tokenizer)."""
    return _build(LanguageModel, *read_language(path), path, device, dtype), Tokenizer.load(path)


def load_llava(path=None, *, vision=None, language=None, projector=None, device="auto", dtype="auto"):
    """-> (Llava, Tokenizer). One of:

        load_llava()                               the shipped miniature
        load_llava(FOLDER)                         llava-hf/llava-1.5-7b-hf, or what save_llava wrote
        load_llava(FOLDER, vision=CLIP)            liuhaotian/llava-v1.5-7b, which has no tower of its own
        load_llava(vision=CLIP, language=LLAMA, projector=FILE)
                                                   FILE: mm_projector.bin, or "linear" or "mlp2x_gelu" for a new one

    device "auto" is the GPU if there is one, dtype "auto" is that of the file. A folder without minillava.json does not
    say its template: it is taken for vicuna_v1, that of v1.1 to v1.5, unless its tokenizer is one of v0. OSError or
    ValueError, in one line, if it cannot be had.
    """
    if language is not None or projector is not None:
        if path is not None or None in (vision, language, projector):
            raise ValueError("give either one folder, or vision=, language= and projector= together")
        config, tensors = compose(vision, language, projector)
        source = f"{vision} + {language} + {projector}"
        return _build(Llava, config, tensors, source, device, dtype), Tokenizer.load(language)
    path, data = _folder(path or TOY / "llava")
    tensors = read_tensors(path)
    if any("multi_modal_projector." in name for name in tensors):
        if vision is not None:
            raise ValueError(f"{path} has a vision tower of its own: leave vision= away")
        config, tensors = read_llava_hf(path, data, tensors)
    elif any("mm_projector." in name for name in tensors):
        config, tensors = read_llava(path, data, tensors, vision)
    else:
        raise ValueError(f"{path} has no projector: it is a {data.get('model_type', 'model')}, not a LLaVA; "
                         "give it as vision= or language=, with the other one and projector=")
    return _build(Llava, config, tensors, path, device, dtype), Tokenizer.load(path)
