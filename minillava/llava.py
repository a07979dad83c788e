"""LLaVA itself: CLIP features through a projector into the word embeddings of LLaMA (section 4.1, equation 1).

    H_v = W Z_v  (v1: one matrix)      H_v = W_2 GELU(W_1 Z_v)  (v1.5: two, "mlp2x_gelu")

An image is N tokens. `input_ids` hold IMAGE_TOKEN N times where it stands, so ids, labels and positions have their true
length from the start, and splicing is one indexed assignment.
"""
import re
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from minillava.images import IMAGE_MEAN, IMAGE_STD
from minillava.llama import LanguageConfig, LanguageModel
from minillava.vit import VisionConfig, VisionTower

IGNORE_INDEX = -100  # label of a position without loss
IMAGE_TOKEN = -200   # id that one row of image features replaces
HEAD_CHUNK = 2048    # supervised positions whose logits stand in memory at once: 0.4 GB at 32,000 words


@dataclass(frozen=True)
class LlavaConfig:
    vision_config: VisionConfig = field(default_factory=VisionConfig)
    language_config: LanguageConfig = field(default_factory=LanguageConfig)
    projector: str = "mlp2x_gelu"         # or "linear", or another number of layers
    vision_feature_layer: int = -2
    image_aspect_ratio: str = "square"    # or "pad"
    image_mean: tuple = IMAGE_MEAN
    image_std: tuple = IMAGE_STD
    template: str = "vicuna_v1"           # of conversation.TEMPLATES
    mm_use_im_start_end: bool = False     # <im_start> and <im_end> around every image, in LLaVA-v0 and v1.1
    prompt_format: str = ""               # of ScienceQA, such as "QCM-LEA", where it was trained on that

    @property
    def image_tokens(self):
        return self.vision_config.num_patches


def make_projector(kind, vision_width, language_width):
    """[.., D_vision] -> [.., D_language]; parameters are named as in mm_projector.bin."""
    if kind == "linear":
        return nn.Linear(vision_width, language_width)
    depth = re.fullmatch(r"mlp([1-9])x_gelu", kind)
    if not depth:
        raise ValueError(f"projector {kind!r} is neither 'linear' nor 'mlp2x_gelu'")
    layers = [nn.Linear(vision_width, language_width)]
    for _ in range(int(depth[1]) - 1):
        layers += [nn.GELU(), nn.Linear(language_width, language_width)]
    return nn.Sequential(*layers)


class Llava(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.vision_tower = VisionTower(config.vision_config)
        self.mm_projector = make_projector(config.projector, config.vision_config.hidden_size, config.language_config.hidden_size)
        self.language_model = LanguageModel(config.language_config)

    @property
    def device(self):
        return self.language_model.embed_tokens.weight.device

    def freeze_for(self, stage):
        """Stage 1 trains the projector alone, stage 2 the language model too; CLIP stays as it is (section 4.2)."""
        self.vision_tower.requires_grad_(False)
        self.mm_projector.requires_grad_(True)
        self.language_model.requires_grad_(stage == 2)

    def drop_unused_blocks(self):
        """Removes CLIP's blocks above the asked layer, which never run: the same model, smaller on the disk."""
        blocks = self.vision_tower.encoder.layers
        del blocks[self.config.vision_feature_layer % (len(blocks) + 1) :]
        vision_config = replace(self.config.vision_config, num_hidden_layers=len(blocks))
        self.config = replace(self.config, vision_config=vision_config, vision_feature_layer=-1)

    def encode_images(self, pixels):
        """[images,3,S,S] -> [images,N,D], as many word embeddings as an image has tokens."""
        with torch.no_grad():
            pixels = pixels.to(self.vision_tower.pre_layrnorm.weight.dtype)
            features = self.vision_tower(pixels, self.config.vision_feature_layer)
        return self.mm_projector(features)

    def embed(self, input_ids, pixels=None):
        """[B,T] ids, images in the order in which they appear -> [B,T,D] embeddings."""
        embeddings = self.language_model.embed_tokens(input_ids.clamp(min=0))
        slots = input_ids == IMAGE_TOKEN
        images, places = 0 if pixels is None else len(pixels), int(slots.sum())
        if places != images * self.config.image_tokens:
            raise ValueError(f"{images or 'no'} image{'s' * (images != 1)} for {places} image tokens, "
                             f"of which each image takes {self.config.image_tokens}")
        if images:
            embeddings[slots] = self.encode_images(pixels).flatten(0, 1).to(embeddings.dtype)  # [images*N,D]
        return embeddings

    def forward(self, input_ids, pixels=None, labels=None, supervised=None):
        """Logits [B,T,V]; with labels [B,T] the loss in fp32, a scalar.

        The loss is the mean over the supervised tokens of this batch, or their sum over `supervised`, the number in the
        global batch, so that neither accumulation nor the number of GPUs changes the result.
        """
        embeddings = self.embed(input_ids, pixels)
        if labels is not None and (pixels is None or not len(pixels)):  # as officially: text alone runs the tower too,
            S = self.config.vision_config.image_size                           # or the other ranks would wait for this one
            embeddings = embeddings + 0 * self.encode_images(torch.zeros(1, 3, S, S, device=embeddings.device)).sum()
        hidden = self.language_model(embeddings)
        if labels is None:
            return self.language_model.lm_head(hidden)
        targets = labels[:, 1:]
        learn = targets != IGNORE_INDEX
        hidden, targets = hidden[:, :-1][learn], targets[learn]  # [supervised,D], [supervised]
        total = hidden.sum() * 0.0  # zero with a gradient where nothing is to be learned
        for rows, wanted in zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK)):
            total = total + checkpoint(summed_loss, rows, wanted, self.language_model.lm_head.weight, use_reentrant=False)
        return total / (learn.sum().clamp(min=1) if supervised is None else supervised)


def summed_loss(hidden, targets, weight):
    """hidden [n,D] -> the summed cross entropy; in a checkpoint, so that logits [n,V] live only within it."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
