"""The front door of weights: a folder, or three, becomes a model; a model becomes a folder.

A folder is known by what is in its files, never by its name. Its tensors are memory-mapped and
become the model's own: a 7B model needs the memory of its weights and no more. How each official
layout names them, and what its config says, stands in weights/.
"""
from dataclasses import replace
from pathlib import Path

import torch

from minillava.llama import LanguageModel
from minillava.llava import Llava
from minillava.tokenizer import Tokenizer
from minillava.vit import VisionTower
from minillava.weights.adapters import attach, is_adapter, merged, read_adapted
from minillava.weights.devices import choose_dtype, find_device
from minillava.weights.filling import NoInitialValues, check_depth, fill
from minillava.weights.layouts import compose, read_language, read_llava_folder, read_vision
from minillava.weights.quantize import fit_to_machine, is_quantized, place_quantized, quantized
from minillava.weights.saving import save_llava  # noqa: F401: out by the same door

TOY = Path(__file__).parent / "toy" / "weights"  # the shipped miniature


def load_llava(path=None, *, vision=None, language=None, projector=None, base=None,
               device="auto", dtype="auto", quantize=None):
    """-> (Llava, Tokenizer). One of:

        load_llava()                     the shipped miniature
        load_llava(FOLDER)               llava-hf/llava-1.5-7b-hf, or what save_llava wrote
        load_llava(FOLDER, vision=CLIP)  liuhaotian/llava-v1.5-7b, without a tower of its own
        load_llava(vision=CLIP, language=LLAMA, projector=FILE)
                                         FILE: mm_projector.bin, or the kind of a new one,
                                         "linear" or "mlp2x_gelu"
        load_llava(ADAPTER, base=FOLDER) a LoRA upon the LLaVA (or with vision=, the Vicuna) that it
                                         was trained on

    device "auto" is the GPU if there is one (CUDA, then MPS). dtype "auto" is that of the file,
    "fast" the one of 16 bits that the device is good at. quantize "int8" or "int4" makes the
    language model smaller (a folder that was saved quantised needs no quantize=).

    A folder without minillava.json does not say its template: it is taken for vicuna_v1, that of
    v1.1 to v1.5, unless its tokenizer is one of v0. OSError or ValueError, in one line, if it
    cannot be had.
    """
    if base is not None and (path is None or not is_adapter(path)):
        raise ValueError(f"base= (--base) goes with an adapter, and {path or 'the model'} is none")
    if language is None and projector is None:
        source = TOY / "llava" if path is None else Path(path)
        if is_adapter(source):
            return load_adapted(source, base, vision, device, dtype, quantize)
        config, tensors = read_llava_folder(source, vision)
        tokenizer_folder = source
    else:
        if path is not None or None in (vision, language, projector):
            raise ValueError("give either one folder, "
                             "or vision=, language= and projector= together")
        source = f"{vision} + {language} + {projector}"
        config, tensors = compose(vision, language, projector)
        tokenizer_folder = language
    model = build(Llava, config, tensors, source, device, dtype, quantize)
    return model, load_tokenizer(tokenizer_folder, model)


def load_adapted(path, base, vision, device, dtype, quantize):
    """A LoRA upon its base: added to its weights, or beside them where they have few bits."""
    config, tensors, adapter, tokenizer_folder = read_adapted(path, base, vision)
    rounded = quantize is not None or is_quantized(tensors)
    if not rounded:
        tensors = merged(adapter, tensors, dtype)
    model = build(Llava, config, tensors, path, device, dtype, quantize)
    if rounded:
        attach(adapter, model)
    return model, load_tokenizer(tokenizer_folder, model)


def load_tokenizer(folder, model):
    """Its <im_start> and <im_end> stand around an image where the config does not say no."""
    tokenizer = Tokenizer.load(folder)
    wanted = model.config.mm_use_im_start_end
    tokenizer.use_im_start_end = wanted is not False
    used = tokenizer.image_ends is not None
    if wanted and not used:
        raise ValueError(f"{folder}: mm_use_im_start_end is true, but the tokenizer has not both "
                         "<im_start> and <im_end>; copy its added_tokens.json there")
    model.config = replace(model.config, mm_use_im_start_end=used)
    check_words(tokenizer, model.language_model, folder)
    return tokenizer


def check_words(tokenizer, language_model, folder):
    """The model has a row for each id that is used.

    Some control tokens, and the padding of some Llamas, officially have none.
    """
    rows = len(language_model.embed_tokens.weight)
    used = {tokenizer.bos_id, tokenizer.eos_id, *(tokenizer.image_ends or ())}
    for i in range(rows, tokenizer.vocab_size):
        if i in used or i != tokenizer.pad_id and tokenizer.decode([i]):
            token = tokenizer.spell([i])
            raise ValueError(f"{folder}: the tokenizer's {token!r:.40} is id {i}, but the model "
                             f"has {rows} words; copy the tokenizer that belongs to it")


def load_language(path, device="auto", dtype="auto", quantize=None):
    """The folder of a Vicuna or any other Llama -> (LanguageModel, Tokenizer)."""
    config, tensors = read_language(path)
    model = build(LanguageModel, config, tensors, path, device, dtype, quantize)
    tokenizer = Tokenizer.load(path)
    check_words(tokenizer, model, path)
    return model, tokenizer


def load_vision(path, device="auto", dtype="auto"):
    """A CLIP folder -> VisionTower."""
    config, tensors = read_vision(path)
    return build(VisionTower, config, tensors, path, device, dtype)


def build(cls, config, tensors, source, device, dtype, quantize=None):
    """A module around these tensors: made on the meta device, without memory, then filled."""
    device = find_device(device)
    dtype = choose_dtype(dtype, dtype_of(tensors), device)
    check_depth(config, tensors, source)
    if quantize is not None:
        language_config = config.language_config if cls is Llava else config
        tied = language_config.tie_word_embeddings
        tensors = quantized(tensors, quantize, tied, source, device)

    try:
        with torch.device("meta"), NoInitialValues():
            module = cls(config)
    except RuntimeError as error:
        raise ValueError(f"{source}: the config describes no model ({error})") from None
    place_quantized(module, tensors)
    fill(module, tensors, source, device, dtype)
    fit_to_machine(module)
    return module


def dtype_of(tensors):
    """That of the file; that of the Llama, where a tower stands beside it in another."""
    for name, tensor in tensors.items():
        if name.endswith("embed_tokens.weight"):
            return tensor.dtype
    return next(iter(tensors.values())).dtype
