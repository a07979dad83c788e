"""The toy Vicuna and its pretraining."""
import random
from collections import Counter

import torch
from torch import nn
from tqdm import tqdm

from minillava.conversation import render
from minillava.data import collate
from minillava.llama import LanguageConfig
from minillava.llava import IGNORE_INDEX, Llava, LlavaConfig
from minillava.toy import objects, teacher, world
from minillava.toy.clip import VISION
from minillava.toy.talk import small_talk
from minillava.toy.tokenizer import options, symbols
from minillava.training.optimizer import forward_backward_in, make_optimizers, set_lr, take_step
from minillava.weights.saving import save_language


def language_config(vocab_size):
    return LanguageConfig(vocab_size=vocab_size, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
                          num_attention_heads=4, max_position_embeddings=1024, rms_norm_eps=1e-5)


def in_words(captions, boxes, rng):
    """A scene told in one of four ways, each with all that there is to know."""
    things = objects.read(boxes)
    return rng.choice((captions[0] + ".", captions[1] + ".", teacher.teach("detail", captions, boxes, rng)[0][1],
                       "; ".join(f"{thing.place}: {thing}" for thing in rng.sample(things, len(things))) + "."))


def cards(boxes, rng, count=10):
    """Flash cards about a scene, [(front, back)]: its facts at their tersest, many in few words."""
    things, deck = objects.read(boxes), []
    for thing in rng.choices(things, k=count):
        name, short = objects.name_of(thing, things), f"{thing.color} {thing.shape}"
        noun = rng.choice((thing.shape, f"{thing.color} shape", f"{thing.size} shape"))
        many = sum(noun in (other.shape, f"{other.color} shape", f"{other.size} shape") for other in things)
        near = sorted((objects.distance(thing, other), str(other)) for other in things if other is not thing)
        clear = len(near) > 1 and near[1][0] >= 2 * near[0][0]
        of = rng.choice(("color", "shape"))
        ranked = Counter(getattr(other, of) for other in things).most_common(2)
        other, across = rng.choice(things), rng.random() < 0.5
        low, high = ("to the left of", "to the right of") if across else ("above", "below")
        difference = other.column - thing.column if across else other.row - thing.row
        both = name and difference and objects.name_of(other, things)
        deck.append(rng.choice(
            [(f"at the {thing.place}", str(thing)), (f"How many {noun}s", world.NUMBERS[many])]
            + [(f"nearest to {name}", close) for _, close in near[:1]] * 4 * bool(name and clear)
            + [(f"Is {name} {low} or {high} {both}", low if difference > 0 else high)] * 4 * bool(both)
            + [(f"Which {of} most", ranked[0][0])] * (len(ranked) > 1 and ranked[0][1] > ranked[1][1])
            + [(f"Where {name}", f"at the {thing.place}")] * 3 * bool(name)
            + [(f"How big {short}", thing.size)] * (name == short)
            + [(f"What color {thing.shape}", thing.color)] * (sum(other.shape == thing.shape for other in things) == 1)
            + [(f"What shape {thing.color}", thing.shape)] * (sum(other.color == thing.color for other in things) == 1)))
    return deck


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
        pairs = [small_talk(rng)] if kind == "talk" else teacher.teach(kind, captions, boxes, rng)
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
        model.language_model.embed_tokens.weight += 0.3 * torch.randn(model.config.language_config.hidden_size)
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
