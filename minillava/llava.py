"""LLaVA: CLIP's features, through a projector, among the word embeddings of LLaMA (section 4.1).

    H_v = W Z_v                  equation 1, one matrix: LLaVA, "linear"
    H_v = W_2 GELU(W_1 Z_v)      LLaVA-1.5, two of them: "mlp2x_gelu"
    loss = -log p(X_a | X_v, X_instruct)         equation 3, the answer's tokens alone

An image is N tokens, and `input_ids` hold IMAGE_TOKEN N times where it stands. So ids, labels and
positions have their true length from the start. A picture of four patches between two words:

    input_ids     1     -200  -200  -200  -200    306     512
    embeddings   E[1]   v_1   v_2   v_3   v_4    E[306]  E[512]     E: embed_tokens, v: H_v
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

# The label of a position without loss, and the id that one row of image features replaces.
IGNORE_INDEX = -100
IMAGE_TOKEN = -200
# Supervised positions whose logits stand in memory at once: 0.4 GB at 32,000 words.
HEAD_CHUNK = 2048


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
    mm_use_im_start_end: bool | None = None  # around an image; None: where the tokenizer has them
    prompt_format: str = ""               # of ScienceQA, as "QCM-LEA", where it was trained on that

    @property
    def image_tokens(self):
        return self.vision_config.num_patches


def make_projector(kind, vision_width, language_width):
    """[..,D_vision] -> [..,D_language]; parameters are named as in mm_projector.bin."""
    if kind == "linear":
        return nn.Linear(vision_width, language_width)

    # LLaVA-1.5 has two layers with a GELU between them; some of its kin have more.
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
        vision_width = config.vision_config.hidden_size
        language_width = config.language_config.hidden_size
        self.config = config
        self.vision_tower = VisionTower(config.vision_config)
        self.mm_projector = make_projector(config.projector, vision_width, language_width)
        self.language_model = LanguageModel(config.language_config)
        # The tower is frozen in both stages of the paper; an ablation may train it.
        self.trains_tower = False

    def forward(self, input_ids, pixels=None, labels=None, divisor=None, places=None):
        """ids [B,T], images [images,3,S,S] -> logits [B,T,V]; with labels [B,T] the loss, a scalar.

        The loss is summed over the supervised tokens and divided by their number here, or by
        `divisor`. With the number in a whole global batch as divisor, the losses of its parts add
        up to that batch's mean, however it is cut (see also Recipe.loss_divisor).
        places: of `find_places`, where a batch was prepared; else they are found here.
        """
        image_at, learn_at = places or find_places(input_ids, labels)
        embeddings = self.embed(input_ids, pixels, image_at)    # [B,T,D]
        # A training batch without pictures: tower and projector get a gradient all the same.
        if labels is not None and (pixels is None or len(pixels) == 0):
            embeddings = embeddings + self.zero_from_pictures()
        hidden = self.language_model(embeddings)                # [B,T,D]
        if labels is None:
            return self.language_model.lm_head(hidden)          # [B,T,V]

        # The shift by one: what is computed at t says which token comes at t + 1.
        #     input    <s>  a   red  circle  </s>
        #     target    a  red circle  </s>
        # Logits are made only where there is something to learn.
        hidden = hidden.flatten(0, 1)[learn_at]                 # [supervised,D]
        targets = labels.flatten()[learn_at + 1]                # [supervised]

        # cross_entropy(lm_head(hidden), targets, reduction="sum"), in less memory.
        loss = chunked_cross_entropy(hidden, targets, self.language_model.lm_head)
        return loss / (divisor or max(1, len(targets)))

    def embed(self, input_ids, pixels=None, image_at=None):
        """ids [B,T], images in the order of their tokens -> embeddings [B,T,D]."""
        if image_at is None:
            image_at, _ = find_places(input_ids)
        images = 0 if pixels is None else len(pixels)
        self.check_images(images, len(image_at))

        # The words are looked up; where an image stands, any word will do for now.
        embeddings = self.language_model.embed_tokens(input_ids.clamp(min=0))
        # While it is trained the table stays in fp32, where the blocks compute in bf16.
        embeddings = embeddings.to(self.language_model.norm.weight.dtype)

        # The splice: the rows of H_v take the image's places, in order. `flatten` is a view of
        # the same memory, so that they are written into `embeddings`.
        if images:
            features = self.encode_images(pixels).flatten(0, 1)     # [images*N,D]
            embeddings.flatten(0, 1)[image_at] = features.to(embeddings.dtype)
        return embeddings

    def encode_images(self, pixels):
        """[images,3,S,S] -> H_v [images,N,D]: a word embedding for each patch."""
        # A frozen tower keeps nothing for a backward pass.
        with torch.set_grad_enabled(self.trains_tower and torch.is_grad_enabled()):
            pixels = pixels.to(self.vision_tower.pre_layrnorm.weight.dtype)
            features = self.vision_tower(pixels, self.config.vision_feature_layer)
        return self.mm_projector(features)

    def zero_from_pictures(self):
        """0, computed from every trained weight of tower and projector: their gradient is then 0.

        Without it they would have none, and ranks that do have pictures would wait for this one's.
        (The official code runs a picture of CLIP's mean colour and ignores what comes out.)
        """
        parts = (*self.vision_tower.parameters(), *self.mm_projector.parameters())
        return sum(0 * p.sum() for p in parts if p.requires_grad)

    def check_images(self, images, image_tokens):
        if image_tokens != images * self.config.image_tokens:
            seen = {0: "no images", 1: "1 image"}.get(images, f"{images} images")
            raise ValueError(f"{seen} for {image_tokens} image tokens, "
                             f"of which each image takes {self.config.image_tokens}")

    def freeze_for(self, stage):
        """Stage 1 trains the projector alone, stage 2 the language model too (section 4.2)."""
        self.vision_tower.requires_grad_(False)
        self.mm_projector.requires_grad_(True)
        self.language_model.requires_grad_(stage == 2)

    def drop_unused_blocks(self):
        """Removes CLIP's blocks above the asked layer, which never run: it is smaller on disk."""
        blocks = self.vision_tower.encoder.layers
        used = self.used_blocks
        # A tower has one at least, even where its embeddings alone are read.
        del blocks[max(used, 1) :]
        vision_config = replace(self.config.vision_config, num_hidden_layers=len(blocks))
        layer = used - len(blocks) - 1  # from the end: -1, or -2 where none is used
        self.config = replace(self.config, vision_config=vision_config, vision_feature_layer=layer)

    @property
    def used_blocks(self):
        """How many of CLIP's blocks run, the first ones."""
        return self.config.vision_feature_layer % (len(self.vision_tower.encoder.layers) + 1)

    @property
    def device(self):
        return self.language_model.embed_tokens.weight.device


def find_places(input_ids, labels=None):
    """Where images stand, and where something is learned: indices into the flattened batch [B*T].

    Of `<s> v v a red </s>`, of which "red </s>" is supervised: (1, 2) and (3, 4), the positions
    before the two. Counting on a GPU waits for all that runs there: training does it on the CPU.
    """
    image_at = (input_ids == IMAGE_TOKEN).flatten().nonzero().squeeze(1)  # [images*N]
    if labels is None:
        return image_at, None
    if labels.shape != input_ids.shape:
        raise ValueError("labels are not as many as ids; the shift by one is made here")
    next_learned = F.pad(labels[:, 1:] != IGNORE_INDEX, (0, 1))           # [B,T]
    return image_at, next_learned.flatten().nonzero().squeeze(1)          # [supervised]


def chunked_cross_entropy(hidden, targets, lm_head):
    """hidden [n,D], targets [n] -> the summed cross entropy, in fp32.

    The logits of HEAD_CHUNK positions exist at once. `checkpoint` drops them and makes them again
    on the way back, so that memory does not grow with the number of answers in the batch.
    """
    # A single chunk is kept as it is: the backward pass begins with it at once.
    if len(targets) <= HEAD_CHUNK:
        return summed_cross_entropy(hidden, targets, lm_head)

    loss = 0
    for rows, wanted in zip(hidden.split(HEAD_CHUNK), targets.split(HEAD_CHUNK)):
        loss = loss + checkpoint(summed_cross_entropy, rows, wanted, lm_head, use_reentrant=False)
    return loss


def summed_cross_entropy(hidden, targets, lm_head):
    logits = lm_head(hidden)  # [n,V]
    return F.cross_entropy(logits.float(), targets, reduction="sum")
