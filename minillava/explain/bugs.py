"""Famous bugs of VLM code, each by one small change to the real pipeline.

    with labels_shifted_twice():  # replaces a function of the core, by unittest.mock
        ...                       # training and evaluation have the bug
                                  # and here it is gone again

A change replaces a function or an attribute of the core where that is looked up; the core itself
has no switch for any of this. exhibits.py tells what became of people who met these bugs.
"""
from contextlib import contextmanager
from unittest.mock import patch

import torch

from minillava import checkpoint, data, images, llama
from minillava import generate as generation
from minillava.checkpoint import compose, read_llava_folder
from minillava.conversation import render
from minillava.images import normalize
from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN, Llava, LlavaConfig


# ------------------------------------------------------------------------- what is learned: labels

def every_label_masked():
    """Lengths are compared with those of the parts, tokenized again; they differ, so: masked."""
    def render_and_compare(turns, tokenizer, template, image_tokens):
        ids, labels = render(turns, tokenizer, template, image_tokens)
        again = sum(len(tokenizer.encode(text)) for _, text in turns)
        if again != len(ids):
            labels = [IGNORE_INDEX] * len(ids)
        return ids, labels

    return patch.object(data, "render", render_and_compare)


def labels_not_shifted():
    """Each position learns the token that stands there, which it sees, not the one that follows."""
    def render_one_late(*args):
        ids, labels = render(*args)
        # The model compares position t with the label of t + 1: now that is the token of t.
        return ids, [IGNORE_INDEX, *labels[:-1]]

    return patch.object(data, "render", render_one_late)


def labels_shifted_twice():
    """The data shifts the labels, and the model does it again: who sees t learns t + 2."""
    def render_one_early(*args):
        ids, labels = render(*args)
        return ids, [*labels[1:], IGNORE_INDEX]

    return patch.object(data, "render", render_one_early)


def prompt_trained():
    """Labels are a copy of the ids: system text, question and answer are all learned."""
    def render_unmasked(*args):
        ids, _ = render(*args)
        return ids, [IGNORE_INDEX if i == IMAGE_TOKEN else i for i in ids]

    return patch.object(data, "render", render_unmasked)


# --------------------------------------------------------------------- what it starts from: weights

def weights_not_loaded():
    """A file whose names do not fit, and strict=False, which says nothing about it."""
    def compose_loosely(vision, language, projector):
        config, tensors = compose(vision, language, projector)
        model = Llava(config)
        misnamed = {name.replace("language_model.", "model."): x for name, x in tensors.items()}
        model.load_state_dict(misnamed, strict=False)
        return config, model.state_dict()

    return patch.object(checkpoint, "compose", compose_loosely)


def no_stage_1():
    """Stage 2 begins with a new projector: nobody gave it the one of stage 1."""
    def compose_anew(vision, language, projector):
        return compose(vision, language, "mlp2x_gelu")

    return patch.object(checkpoint, "compose", compose_anew)


def projector_of_another_base():
    """Its shapes fit, so it loads; but it was aligned with another language model.

    Two Vicunas of different seeds mean the same by different channels. The nearest such Vicuna is
    this one with its channels in another order, and this is the projector that belongs to that.
    """
    def read_with_other_projector(path, vision=None):
        config, tensors = read_llava_folder(path, vision)
        width = config.language_config.hidden_size
        order = torch.randperm(width, generator=torch.Generator().manual_seed(0))
        for name in ("mm_projector.2.weight", "mm_projector.2.bias"):
            tensors[name] = tensors[name][order]
        return config, tensors

    return patch.object(checkpoint, "read_llava_folder", read_with_other_projector)


# ------------------------------------------------------------------- what the model is given to see

@contextmanager
def one_row_of_patches_short():
    """The prompt has a row too few of image tokens, and features are dealt out as they come.

    So the second picture of a batch begins with the last row of the first, the third with two rows
    of the second: masked_scatter takes as many as there are places.
    """
    def without_a_row(config):
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side * (side - 1)

    def embed_by_scatter(model, input_ids, pixels=None, image_at=None):
        embeddings = model.language_model.embed_tokens(input_ids.clamp(min=0))
        if pixels is None or len(pixels) == 0:
            return embeddings
        places = (input_ids == IMAGE_TOKEN).unsqueeze(-1)
        return embeddings.masked_scatter(places, model.encode_images(pixels).to(embeddings.dtype))

    with (patch.object(LlavaConfig, "image_tokens", property(without_a_row)),
          patch.object(Llava, "embed", embed_by_scatter)):
        yield


def wrong_mean():
    """Pixels are scaled as another tower wants them: to -1 ... 1, as SigLIP, not by CLIP's mean."""
    def normalize_for_siglip(image, mean, std):
        return normalize(image, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

    return patch.object(images, "normalize", normalize_for_siglip)


def blue_for_red():
    """A library that reads pictures as BGR, and nobody turns them."""
    def normalize_bgr(image, mean, std):
        return normalize(image, mean, std).flip(0)

    return patch.object(images, "normalize", normalize_bgr)


def wrong_template():
    """It was trained on USER: and ASSISTANT:, and is asked with ###Human: and ###Assistant:."""
    def render_in_v0(turns, tokenizer, template, image_tokens):
        return render(turns, tokenizer, "llava_v0", image_tokens)

    return patch.object(generation, "render", render_in_v0)


# ----------------------------------------------------------------------------- how it computes

def rope_interleaved():
    """Channel 2i is turned with 2i + 1, as in Meta's files; the weights want i with i + C/2."""
    def rotate_neighbours(x, rope):
        cos, sin = (half.chunk(2, dim=-1)[1].repeat_interleave(2, dim=-1) for half in rope)
        even, odd = x[..., 0::2], x[..., 1::2]
        exchanged = torch.stack([-odd, even], dim=-1).flatten(-2)
        return x * cos + exchanged * sin

    return patch.object(llama, "rotate", rotate_neighbours)
