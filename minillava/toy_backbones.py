"""What LLaVA takes ready-made, made here in miniature: a CLIP and a Vicuna for the toy world.

    python -m minillava.toy_backbones --out runs/backbones      # both at once, one core each: about half an hour

The toy CLIP learns by contrast between pictures and captions (Radford et al. 2021, figure 3) and never sees a question.
The toy Vicuna learns from text alone: it reads a scene in words and answers questions about it, so that it can already
look up, count and compare when LLaVA gives it eyes. Neither sees a held-out scene. Both are saved in the official layouts.
"""
import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import tokenizers
import torch
import torch.nn.functional as F
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from minillava import toy_world
from minillava.checkpoint import save_clip, save_language
from minillava.conversation import TEMPLATES, render
from minillava.data import collate
from minillava.language import LanguageConfig
from minillava.model import IGNORE_INDEX, Llava, LlavaConfig
from minillava.optim import forward_backward_in, make_optimizers, set_lr, take_step
from minillava.tokenizer import Tokenizer
from minillava.vision import Encoder, VisionConfig, VisionTower, preprocess

VISION = VisionConfig(hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=3, image_size=96,
                      patch_size=16)
TEXT = dict(hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, layer_norm_eps=1e-5,
            max_position_embeddings=80, hidden_act="quick_gelu")


def language_config(vocab_size):
    return LanguageConfig(vocab_size=vocab_size, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
                          num_attention_heads=4, max_position_embeddings=1024, rms_norm_eps=1e-5)


# ----------------------------------------------------------------------------------------------------------- tokenizer

def symbols(rng):
    """A new training scene -> its captions and boxes."""
    boxes = toy_world.as_fractions(toy_world.make_scene(rng, "train"))
    return toy_world.captions_of(boxes, rng), boxes


def train_tokenizer(folder, rng):
    """Writes tokenizer.json: a BPE as LLaMA's (`▁` for a space, bytes for what has no piece; <unk>, <s>, </s> first).

    Pieces may span words that make one phrase, "small red circle" or "at the top-left" (superwords, Liu et al. 2025): text
    is then a third as long, and a thing in a text is one vector with all its properties, as it is in a picture.
    """
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    thing = f"(▁(small|large))?▁({'|'.join(toy_world.COLORS)})▁({'|'.join(toy_world.SHAPES)})(?![a-z])"
    fixed = [sentence.strip().replace(" ", "▁") for sentence in TEMPLATES["vicuna_v1"].system.rstrip(".").split(".")]
    fixed = "|".join("▁" + sentence for sentence in fixed)
    phrase = f"{thing}|▁at▁the▁[a-z-]+|▁\\([A-E]\\)|{fixed}|▁?[\\w-]+|[^\\w▁]|▁"
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(phrase), "isolated")
    texts = []
    for _ in range(3000):
        captions, boxes = symbols(rng)
        pairs = [toy_world.small_talk(rng)]
        for kind in ("brief", "conversation", "detail", "reasoning"):
            pairs += toy_world.teach(kind, captions, boxes, rng)
        texts += captions + [TEMPLATES["vicuna_v1"].system, "Context: N/A"]
        texts += [f"USER: {question}\n{question} ASSISTANT: {answer}" for question, answer in pairs]
        told, deck = options(rng)
        texts += [told] + [f"{front} {back} The answer is {back[1]}." for front, back in deck]
    control = ["<unk>", "<s>", "</s>"]
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=1024, min_frequency=20, show_progress=False,
                                                        special_tokens=control + [f"<0x{i:02X}>" for i in range(256)]))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                      decoders.Strip(" ", 1, 0)])
    parsed = json.loads(core.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] in control]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(parsed, ensure_ascii=False, indent=1), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"legacy": True, "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}))
    return Tokenizer.load(folder)


# ------------------------------------------------------------------------------------------------------------ toy CLIP

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
    scenes = [toy_world.make_scene(rng, "train")]
    while len(scenes) < count:
        scene = list(rng.choice(scenes))
        i = rng.randrange(len(scene))
        change = rng.choice(("color", "shape", "shape", "shape", "size", "place", "swap", "drop"))
        name, box = scene[i]
        places = [toy_world.place_of(other) for _, other in scene]
        if change == "color":
            name = f"{rng.choice(list(toy_world.COLORS))} {name.split()[1]}"
        elif change == "shape":
            name = f"{name.split()[0]} {rng.choice(toy_world.SHAPES)}"
        elif change == "size":
            box = toy_world.make_box(places[i], rng)
        elif change == "place":
            box = toy_world.make_box(rng.choice([place for place in range(9) if place not in places]), rng)
        elif change == "swap":
            j = rng.randrange(len(scene))
            name, scene[j] = scene[j][0], (name, scene[j][1])
        scene[i] = (name, box)
        if change == "drop" and len(scene) > 1:
            del scene[i]
        if toy_world.split_of([name for name, _ in scene]) == "train":
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
            pixels.append(preprocess([toy_world.draw(scene, rng)], LlavaConfig(VISION))[0].bfloat16())
            whole = toy_world.captions_of(toy_world.as_fractions(scene), rng)[:2]  # the others fit relatives as well
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


# ---------------------------------------------------------------------------------------------------------- toy Vicuna

def in_words(captions, boxes, rng):
    """A scene told in one of four ways, each with all that there is to know."""
    things = toy_world.read(boxes)
    return rng.choice((captions[0] + ".", captions[1] + ".", toy_world.teach("detail", captions, boxes, rng)[0][1],
                       "; ".join(f"{thing.place}: {thing}" for thing in rng.sample(things, len(things))) + "."))


def cards(boxes, rng, count=10):
    """Flash cards about a scene, [(front, back)]: its facts at their tersest, many in few words."""
    things, deck = toy_world.read(boxes), []
    for thing in rng.choices(things, k=count):
        name, short = toy_world.name_of(thing, things), f"{thing.color} {thing.shape}"
        noun = rng.choice((thing.shape, f"{thing.color} shape", f"{thing.size} shape"))
        many = sum(noun in (other.shape, f"{other.color} shape", f"{other.size} shape") for other in things)
        near = sorted((toy_world.distance(thing, other), str(other)) for other in things if other is not thing)
        clear = len(near) > 1 and near[1][0] >= 2 * near[0][0]
        of = rng.choice(("color", "shape"))
        ranked = Counter(getattr(other, of) for other in things).most_common(2)
        other, across = rng.choice(things), rng.random() < 0.5
        low, high = ("to the left of", "to the right of") if across else ("above", "below")
        difference = other.column - thing.column if across else other.row - thing.row
        both = name and difference and toy_world.name_of(other, things)
        deck.append(rng.choice(
            [(f"at the {thing.place}", str(thing)), (f"How many {noun}s", toy_world.NUMBERS[many])]
            + [(f"nearest to {name}", close) for _, close in near[:1]] * 4 * bool(name and clear)
            + [(f"Is {name} {low} or {high} {both}", low if difference > 0 else high)] * 4 * bool(both)
            + [(f"Which {of} most", ranked[0][0])] * (len(ranked) > 1 and ranked[0][1] > ranked[1][1])
            + [(f"Where {name}", f"at the {thing.place}")] * 3 * bool(name)
            + [(f"How big {short}", thing.size)] * (name == short)
            + [(f"What color {thing.shape}", thing.color)] * (sum(other.shape == thing.shape for other in things) == 1)
            + [(f"What shape {thing.color}", thing.shape)] * (sum(other.color == thing.color for other in things) == 1)))
    return deck


def options(rng, count=6):
    """The choices of a question as ScienceQA writes them, and flash cards: which letter is which?"""
    things = toy_world.read(symbols(rng)[1])
    pool = rng.choice((list(toy_world.COLORS), toy_world.SHAPES, toy_world.NUMBERS,
                       [f"at the {place}" for place in toy_world.PLACES],
                       sorted({str(thing) for thing in things} | {f"{thing.color} {thing.shape}" for thing in things})))
    choices = rng.sample(pool, min(len(pool), rng.randint(2, 5)))
    letters = dict(zip(choices, "ABCDE"))
    told = "Options: " + " ".join(f"({letter}) {choice}" for choice, letter in letters.items())
    return told, [(f"Among the options, {choice} is", f"({letters[choice]}).") for choice in rng.choices(choices, k=count)]


def text_sample(rng, tokenizer, shares):
    """-> {"input_ids", "labels"}. A scene told in words, and a chat, flash cards or a caption about it; or options.

    shares: of cards, caption, detail, reasoning, conversation, small talk, options.
    """
    captions, boxes = symbols(rng)
    told = in_words(captions, boxes, rng)
    kind = rng.choices(("cards", "caption", "detail", "reasoning", "conversation", "talk", "options"), shares)[0]
    if kind in ("cards", "caption", "options"):  # as stage 1 will show it pictures: the scene, then what there is to say
        if kind == "options":
            told, deck = options(rng)
        else:
            deck = cards(boxes, rng) if kind == "cards" else [("", rng.choice(captions) + "\n")]
        ids = tokenizer.encode(told)
        labels = [IGNORE_INDEX] * len(ids)
        for front, back in deck:
            front, back = tokenizer.segment(front), tokenizer.segment(back)
            ids, labels = ids + front + back, labels + [IGNORE_INDEX] * len(front) + back
    else:
        pairs = [toy_world.small_talk(rng)] if kind == "talk" else toy_world.teach(kind, captions, boxes, rng)
        turns = [turn for question, answer in pairs for turn in (("human", question), ("gpt", answer))]
        if kind != "talk":
            turns[0] = "human", f"{told}\n{turns[0][1]}"
        ids, labels = render(turns, tokenizer, "vicuna_v1", 0)
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels), "pixels": torch.empty(0)}


def pretrain_vicuna(out, tokenizer, steps, seed, batch=32):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = Llava(LlavaConfig(VISION, language_config(tokenizer.vocab_size)))  # never shown a picture
    for name, p in model.language_model.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=0.3 if "embed" in name else 0.02 if "head" in name else 0.5 * p.shape[1] ** -0.5)
    with torch.no_grad():  # what all words share: something that attention by distance alone can hold on to
        model.language_model.embed_tokens.weight += 0.3 * torch.randn(model.config.language.hidden_size)
    model.vision_tower.requires_grad_(False)
    model.mm_projector.requires_grad_(False)
    optimizers, ready = make_optimizers(model, lr=2e-3, muon_lr=0.008), []
    bar = tqdm(range(steps), desc="toy Vicuna", position=1)
    for step in bar:
        set_lr(optimizers, step, steps)
        if not ready:  # batches of like length: less padding
            # Looking things up is learned late and suddenly, and from many short questions first: with chats alone
            # it had not begun after 2,000 steps, with cards it had after 900.
            shares = (66, 9, 2, 8, 9, 1, 5) if step < steps / 3 else (39, 4, 12, 22, 18, 2, 3)
            samples = [text_sample(rng, tokenizer, shares) for _ in range(8 * batch)]
            samples.sort(key=lambda sample: len(sample["input_ids"]))
            ready = [collate(samples[i : i + batch]) for i in range(0, len(samples), batch)]
            rng.shuffle(ready)
        input_ids, labels, _ = ready.pop()
        loss = forward_backward_in(torch.bfloat16, model, input_ids, labels=labels)
        take_step(optimizers)
        bar.set_postfix(loss=f"{loss.item():.3f}")
    save_language(model.language_model.bfloat16(), tokenizer, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a folder for clip/ and vicuna/")
    parser.add_argument("--clip-steps", type=int, default=2500)
    parser.add_argument("--vicuna-steps", type=int, default=4800)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    spawn = torch.multiprocessing.get_context("spawn")
    tokenizer = train_tokenizer(args.out / "vicuna", random.Random(args.seed))
    work = [spawn.Process(target=alone, args=(train, args.out / name, tokenizer, steps, args.seed)) for train, name, steps in
            ((pretrain_clip, "clip", args.clip_steps), (pretrain_vicuna, "vicuna", args.vicuna_steps))]
    for process in work:
        process.start()
    for process in work:
        process.join()
    if any(process.exitcode for process in work):
        sys.exit("error: a pretraining failed, see above")


def alone(train, *args):
    """One core for each of the two: matrices this small gain little from a second one."""
    torch.set_num_threads(1)
    train(*args)


if __name__ == "__main__":
    main()
