"""The toy CLIP: pictures and captions of the toy world, made to find each other.

It learns by contrast between the two (Radford et al. 2021, figure 3) and never sees a question.
"""
import random
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from minillava.images import preprocess
from minillava.llava import LlavaConfig
from minillava.toy.annotations import as_fractions
from minillava.toy.objects import captions_of
from minillava.toy.world import (COLORS, SHAPES, draw, make_box, make_scene, place_of,
                                 split_of)
from minillava.training.optimizer import (forward_backward_in, make_optimizers, set_lr,
                                          take_step)
from minillava.vit import Encoder, VisionConfig, VisionTower
from minillava.weights.devices import training_dtype
from minillava.weights.saving import save_clip

VISION = VisionConfig(hidden_size=96, intermediate_size=384, num_hidden_layers=4,
                      num_attention_heads=3, image_size=96, patch_size=16)
TEXT = dict(hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3,
            layer_norm_eps=1e-5, max_position_embeddings=80, hidden_act="quick_gelu")
CHANGES = ("color", "shape", "shape", "shape", "size", "place", "swap", "drop")


# ----------------------------------------------------------------------------------- the model

class TextTower(nn.Module):
    """CLIP's text transformer: causal; a sentence is what stands at its end token.

    The end token is the highest id, as in CLIP, and pads the rows.
    """

    def __init__(self, vocab_size):
        super().__init__()
        D = TEXT["hidden_size"]
        length = TEXT["max_position_embeddings"]
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(vocab_size, D)
        self.embeddings.position_embedding = nn.Embedding(length, D)
        self.encoder = Encoder(SimpleNamespace(**TEXT))
        self.final_layer_norm = nn.LayerNorm(D)
        self.end = vocab_size - 1

    def forward(self, ids):
        """[B,T] -> what stands at every token [B,T,D], and at the end of the sentence [B,D]."""
        places = self.embeddings.position_embedding.weight[: ids.shape[1]]  # [T,D]
        x = self.embeddings.token_embedding(ids) + places
        for block in self.encoder.layers:
            x = block(x, is_causal=True)
        x = self.final_layer_norm(x)
        ends = (ids == self.end).int().argmax(1)  # [B], the first end token of each row
        return x, x[torch.arange(len(x)), ends]


class Clip(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        D = VISION.hidden_size
        self.vision_model = VisionTower(VISION)
        self.text_model = TextTower(vocab_size)
        self.visual_projection = nn.Linear(D, D, bias=False)
        self.text_projection = nn.Linear(D, D, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))  # ln(1 / 0.07)
        self.fine_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, pixels, ids):
        """Pictures [B,3,S,S], their captions [B,T] -> the contrastive loss, CLIP's and FILIP's."""
        pixels = pixels.to(self.visual_projection.weight.dtype)
        hidden = self.vision_model.hidden_state(pixels, -1)
        grid = self.visual_projection(self.vision_model.post_layernorm(hidden))
        words, ends = self.text_model(ids)
        grid = F.normalize(grid, dim=-1)                         # [B,1+N,D]
        words = F.normalize(self.text_projection(words), dim=-1)  # [B,T,D]
        ends = F.normalize(self.text_projection(ends), dim=-1)    # [B,D]

        # CLIP: the class token against the end of the sentence, each with each
        loss = contrast(self.logit_scale, grid[:, 0] @ ends.T)
        return loss + self.fine_loss(grid[:, 1:], words, ids != self.text_model.end)

    def fine_loss(self, patches, words, real, chunk=64):
        """FILIP (Yao et al. 2021): every word against the patch that fits it best.

        So the grid says what is where. patches [B,N,D], words [B,T,D], real [B,T]: no padding.
        """
        B, N = patches.shape[:2]
        real = real.float()
        loss = 0
        for start in range(0, B, chunk):  # each chunk has contrasts of its own: memory
            here = slice(start, start + chunk)
            size, T = real[here].shape
            fits = patches[here].flatten(0, 1) @ words[here].flatten(0, 1).T  # [size*N,size*T]
            fits = fits.view(size, N, size, T).amax(1)                        # [size,size,T]
            fits = (fits.float() * real[here]).sum(-1) / real[here].sum(-1)   # [size,size]
            loss = loss + contrast(self.fine_scale, fits) * size / B
        return loss


def contrast(scale, similarity):
    """Each picture is to find its caption and each caption its picture: similarity [B,B]."""
    logits = scale.float().exp().clamp(max=100) * similarity.float()
    pairs = torch.arange(len(similarity))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


# ------------------------------------------------------------------------------------ the data

def relatives(rng, count):
    """A scene and others that differ from one of them in one thing: a contrast worth learning."""
    scenes = [make_scene(rng, "train")]
    while len(scenes) < count:
        scene = changed(rng.choice(scenes), rng)
        if split_of([name for name, _ in scene]) == "train":
            scenes.append(scene)
    return scenes


def changed(scene, rng):
    """The scene with one thing recoloured, moved, ... or dropped."""
    scene = list(scene)
    i = rng.randrange(len(scene))
    change = rng.choice(CHANGES)
    name, box = scene[i]
    places = [place_of(box) for _, box in scene]
    color, shape = name.split()
    if change == "color":
        name = f"{rng.choice(list(COLORS))} {shape}"
    elif change == "shape":
        name = f"{color} {rng.choice(SHAPES)}"
    elif change == "size":
        box = make_box(places[i], rng)
    elif change == "place":
        free = [place for place in range(9) if place not in places]
        box = make_box(rng.choice(free), rng)
    elif change == "swap":
        j = rng.randrange(len(scene))
        other_name, other_box = scene[j]
        scene[j] = name, other_box
        name = other_name
    scene[i] = name, box
    if change == "drop" and len(scene) > 1:
        del scene[i]
    return scene


def pictures_and_captions(tokenizer, rng, groups, group):
    """-> pixels [groups*group,3,S,S] and as many pairs of captions, ids with their end token."""
    pixels, captions = [], []
    for _ in tqdm(range(groups), desc="toy CLIP: pictures", position=0):
        for scene in relatives(rng, group):
            picture = draw(scene, rng)
            pixels.append(preprocess([picture], LlavaConfig(VISION))[0].bfloat16())
            whole = captions_of(as_fractions(scene), rng)[:2]  # the others fit relatives as well
            captions.append([torch.tensor(tokenizer.encode(text) + [tokenizer.vocab_size])
                             for text in whole])
    return torch.stack(pixels), captions


# --------------------------------------------------------------------------------- pretraining

def new_model(vocab_size):
    model = Clip(vocab_size)
    for name, weight in model.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(weight, std=0.3)
        elif "position_embedding" in name and "vision" in name:
            # as strong as the patches (std 2), or what is where is lost
            nn.init.normal_(weight, std=1.0)
        elif "position_embedding" in name:
            nn.init.normal_(weight, std=0.1)
        elif weight.ndim == 2 and ".layers." in name:
            nn.init.normal_(weight, std=0.7 * weight.shape[1] ** -0.5)
    return model


def train(model, next_batch, steps, lr, muon_lr, desc, position):
    """`steps` steps; next_batch(step) -> what the model takes, of which it makes its loss.

    position: of the progress bar; two models are trained side by side.
    """
    optimizers = make_optimizers(model, lr, muon_lr)
    dtype = training_dtype("auto", torch.device("cpu"))
    bar = tqdm(range(steps), desc=desc, position=position)
    for step in bar:
        set_lr(optimizers, step, steps)
        loss = forward_backward_in(dtype, model, **next_batch(step))
        take_step(optimizers)
        bar.set_postfix(loss=f"{loss.item():.3f}")


def pretrain_clip(out, tokenizer, steps, seed, groups=12000, group=4, batch=256):
    """Trains on batches of whole groups of relatives and saves a folder in CLIP's layout."""
    rng = random.Random(seed)
    end = tokenizer.vocab_size
    torch.manual_seed(seed)
    model = new_model(end + 1)
    pixels, captions = pictures_and_captions(tokenizer, rng, groups, group)

    def next_batch(step):
        drawn = rng.choices(range(groups), k=batch // group)
        chosen = [group * number + k for number in drawn for k in range(group)]
        ids = [rng.choice(captions[i]) for i in chosen]
        return {"pixels": pixels[chosen],
                "ids": pad_sequence(ids, batch_first=True, padding_value=end)}

    train(model, next_batch, steps, lr=1e-3, muon_lr=0.02, desc="toy CLIP", position=0)
    save(model, tokenizer, out)


def save(model, tokenizer, out):
    end = tokenizer.vocab_size
    text = TEXT | {"vocab_size": end + 1, "bos_token_id": tokenizer.bos_id,
                   "eos_token_id": end, "pad_token_id": end}
    tensors = {name: weight.detach().bfloat16() for name, weight in model.named_parameters()
               if name != "fine_scale"}  # which CLIP has not
    save_clip(tensors, LlavaConfig(VISION), text, VISION.hidden_size, out)
    tokenizer.save(out)
