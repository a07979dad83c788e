"""The toy CLIP and its pretraining."""
import random
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from minillava.images import preprocess
from minillava.llava import LlavaConfig
from minillava.toy import annotations, objects, world
from minillava.training.optimizer import forward_backward_in, make_optimizers, set_lr, take_step
from minillava.vit import Encoder, VisionConfig, VisionTower
from minillava.weights.saving import save_clip

VISION = VisionConfig(hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=3, image_size=96,
                      patch_size=16)
TEXT = dict(hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, layer_norm_eps=1e-5,
            max_position_embeddings=80, hidden_act="quick_gelu")


class TextTower(nn.Module):
    """CLIP's text transformer: causal, its sentence is what stands at the end token (the highest id, as in CLIP)."""

    def __init__(self, vocab_size):
        super().__init__()
        D = TEXT["hidden_size"]
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(vocab_size, D)
        self.embeddings.position_embedding = nn.Embedding(TEXT["max_position_embeddings"], D)
        self.encoder = Encoder(SimpleNamespace(**TEXT))
        self.final_layer_norm = nn.LayerNorm(D)
        self.end = vocab_size - 1

    def forward(self, ids):
        """[B,T], padded with the end token -> what stands at every token [B,T,D], and at the end [B,D]."""
        x = self.embeddings.token_embedding(ids) + self.embeddings.position_embedding.weight[: ids.shape[1]]
        for block in self.encoder.layers:
            x = block(x, is_causal=True)
        ends = (ids == self.end).int().argmax(1)  # the first one
        x = self.final_layer_norm(x)
        return x, x[torch.arange(len(x)), ends]


class Clip(nn.Module):
    def __init__(self, vocab_size):
        super().__init__()
        D = VISION.hidden_size
        self.vision_model, self.text_model = VisionTower(VISION), TextTower(vocab_size)
        self.visual_projection, self.text_projection = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        self.logit_scale, self.fine_scale = (nn.Parameter(torch.tensor(2.6592)) for _ in range(2))  # ln(1 / 0.07)

    def forward(self, pixels, ids, chunk=64):
        """B pictures and their B captions -> the contrastive loss, CLIP's and FILIP's."""
        grid = self.visual_projection(self.vision_model.post_layernorm(self.vision_model.hidden_state(pixels, -1)))
        words, ends = self.text_model(ids)
        grid, words, ends = (F.normalize(x, dim=-1) for x in (grid, self.text_projection(words), self.text_projection(ends)))
        # CLIP: the class token against the end of the sentence, each with each.
        loss = contrast(self.logit_scale, grid[:, 0] @ ends.T)
        # FILIP (Yao et al. 2021): every word against the patch that fits it best, so that the grid says what is where.
        real = (ids != self.text_model.end).float()
        for i in range(0, len(ids), chunk):
            here = slice(i, i + chunk)
            patches, N = grid[here, 1:].flatten(0, 1), grid.shape[1] - 1
            fits = (patches @ words[here].flatten(0, 1).T).view(-1, N, *ids[here].shape).amax(1)  # [pictures,captions,T]
            fits = (fits.float() * real[here]).sum(-1) / real[here].sum(-1)
            loss = loss + contrast(self.fine_scale, fits) * chunk / len(ids)
        return loss


def contrast(scale, similarity):
    """Each picture is to find its caption and each caption its picture: similarity [B,B]."""
    logits, pairs = scale.float().exp().clamp(max=100) * similarity.float(), torch.arange(len(similarity))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def relatives(rng, count):
    """A scene and others that differ from one of them in a single thing: the contrast is then worth learning from."""
    scenes = [world.make_scene(rng, "train")]
    while len(scenes) < count:
        scene = list(rng.choice(scenes))
        i = rng.randrange(len(scene))
        change = rng.choice(("color", "shape", "shape", "shape", "size", "place", "swap", "drop"))
        name, box = scene[i]
        places = [world.place_of(other) for _, other in scene]
        if change == "color":
            name = f"{rng.choice(list(world.COLORS))} {name.split()[1]}"
        elif change == "shape":
            name = f"{name.split()[0]} {rng.choice(world.SHAPES)}"
        elif change == "size":
            box = world.make_box(places[i], rng)
        elif change == "place":
            box = world.make_box(rng.choice([place for place in range(9) if place not in places]), rng)
        elif change == "swap":
            j = rng.randrange(len(scene))
            name, scene[j] = scene[j][0], (name, scene[j][1])
        scene[i] = (name, box)
        if change == "drop" and len(scene) > 1:
            del scene[i]
        if world.split_of([name for name, _ in scene]) == "train":
            scenes.append(scene)
    return scenes


def pretrain_clip(out, tokenizer, steps, seed, groups=12000, group=4, batch=256):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = Clip(tokenizer.vocab_size + 1)
    for name, p in model.named_parameters():
        if "token_embedding" in name:
            nn.init.normal_(p, std=0.3)
        elif "position_embedding" in name:  # pictures: as strong as the patches (std 2), or what is where is lost for good
            nn.init.normal_(p, std=1.0 if "vision" in name else 0.1)
        elif p.ndim == 2 and ".layers." in name:
            nn.init.normal_(p, std=0.7 * p.shape[1] ** -0.5)
    pixels, captions = [], []
    for _ in tqdm(range(groups), desc="toy CLIP: pictures", position=0):
        for scene in relatives(rng, group):
            pixels.append(preprocess([world.draw(scene, rng)], LlavaConfig(VISION))[0].bfloat16())
            whole = objects.captions_of(annotations.as_fractions(scene), rng)[:2]  # the others fit relatives as well
            captions.append([torch.tensor(tokenizer.encode(text) + [tokenizer.vocab_size]) for text in whole])
    pixels = torch.stack(pixels)
    optimizers, bar = make_optimizers(model, lr=1e-3, muon_lr=0.02), tqdm(range(steps), desc="toy CLIP", position=0)
    for step in bar:
        set_lr(optimizers, step, steps)
        chosen = [group * g + k for g in rng.choices(range(groups), k=batch // group) for k in range(group)]
        ids = pad_sequence([rng.choice(captions[i]) for i in chosen], batch_first=True, padding_value=tokenizer.vocab_size)
        loss = forward_backward_in(torch.bfloat16, model, pixels[chosen], ids)
        take_step(optimizers)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    end = tokenizer.vocab_size
    text = TEXT | {"vocab_size": end + 1, "bos_token_id": tokenizer.bos_id, "eos_token_id": end, "pad_token_id": end}
    tensors = {name: p.detach().bfloat16() for name, p in model.named_parameters() if name != "fine_scale"}
    save_clip(tensors, LlavaConfig(VISION), text, VISION.hidden_size, out)
    tokenizer.save(out)
