"""The toy Vicuna: a language model that learns from text alone, before LLaVA gives it a picture.

It reads a scene in words and answers about it, so that it can already look up, count and compare.
"""
import random

import torch
from torch import nn

from minillava.conversation import IGNORE_INDEX, render
from minillava.data import collate
from minillava.llama import LanguageConfig
from minillava.llava import Llava, LlavaConfig
from minillava.toy.cards import cards, options
from minillava.toy.clip import VISION, train
from minillava.toy.objects import read
from minillava.toy.talk import small_talk
from minillava.toy.teacher import teach
from minillava.toy.tokenizer import new_symbols
from minillava.weights.saving import save_language

# How often each kind of text is drawn: mostly cards in the first third, then more chats.
AT_FIRST = {"cards": 66, "caption": 9, "detail": 2, "reasoning": 8, "conversation": 9, "talk": 1,
            "options": 5}
LATER = {"cards": 39, "caption": 4, "detail": 12, "reasoning": 22, "conversation": 18, "talk": 2,
         "options": 3}


def language_config(vocab_size):
    return LanguageConfig(vocab_size=vocab_size, hidden_size=128, intermediate_size=344,
                          num_hidden_layers=4, num_attention_heads=4,
                          max_position_embeddings=1024, rms_norm_eps=1e-5)


# --------------------------------------------------------------------------------------- texts

def in_words(captions, boxes, rng):
    """A scene told in one of four ways, each with all that there is to know."""
    things = read(boxes)
    description = teach("detail", captions, boxes, rng)[0][1]
    listed = [f"{thing.place}: {thing}" for thing in rng.sample(things, len(things))]
    return rng.choice((f"{captions[0]}.", f"{captions[1]}.", description, "; ".join(listed) + "."))


def text_sample(rng, tokenizer, shares):
    """-> {"input_ids", "labels"}: a scene in words and what there is to say about it, or options.

    shares: how often each kind is drawn, as in AT_FIRST.
    """
    captions, boxes = new_symbols(rng)
    told = in_words(captions, boxes, rng)
    kind = rng.choices(list(shares), list(shares.values()))[0]
    if kind == "options":
        told, deck = options(new_symbols(rng)[1], rng)
    elif kind == "cards":
        deck = cards(boxes, rng)
    elif kind == "caption":
        deck = [("", rng.choice(captions) + "\n")]
    else:
        return as_tensors(*chat_ids(kind, told, captions, boxes, rng, tokenizer))
    return as_tensors(*deck_ids(told, deck, tokenizer))


def deck_ids(told, deck, tokenizer):
    """As stage 1 will show it pictures: the scene, then cards, whose backs are learned."""
    ids = tokenizer.encode(told)
    labels = [IGNORE_INDEX] * len(ids)
    for front, back in deck:
        front, back = tokenizer.segment(front), tokenizer.segment(back)
        ids = ids + front + back
        labels = labels + [IGNORE_INDEX] * len(front) + back
    return ids, labels


def chat_ids(kind, told, captions, boxes, rng, tokenizer):
    pairs = [small_talk(rng)] if kind == "talk" else teach(kind, captions, boxes, rng)
    turns = []
    for question, answer in pairs:
        if kind != "talk" and not turns:
            question = f"{told}\n{question}"
        turns += [("human", question), ("gpt", answer)]
    return render(turns, tokenizer, "vicuna_v1", 0)


def as_tensors(ids, labels):
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels),
            "pixels": torch.empty(0)}


def batches_of_like_length(rng, tokenizer, shares, batch, count=8):
    """`count` batches in random order, each of samples of like length: less padding."""
    samples = [text_sample(rng, tokenizer, shares) for _ in range(count * batch)]
    samples.sort(key=lambda sample: len(sample["input_ids"]))
    batches = [collate(samples[i : i + batch]) for i in range(0, len(samples), batch)]
    rng.shuffle(batches)
    return batches


# ---------------------------------------------------------------------------------- pretraining

def new_model(vocab_size):
    """A LLaVA of which only the language model is trained here."""
    model = Llava(LlavaConfig(VISION, language_config(vocab_size)))
    for name, weight in model.language_model.named_parameters():
        if "embed" in name:
            nn.init.normal_(weight, std=0.3)
        elif "head" in name:
            nn.init.normal_(weight, std=0.02)
        elif weight.ndim == 2:
            nn.init.normal_(weight, std=0.5 * weight.shape[1] ** -0.5)

    # what all words share: something that attention by distance alone can hold on to
    with torch.no_grad():
        width = model.config.language_config.hidden_size
        model.language_model.embed_tokens.weight += 0.3 * torch.randn(width)
    model.vision_tower.requires_grad_(False)
    model.mm_projector.requires_grad_(False)
    return model


def pretrain_vicuna(out, tokenizer, steps, seed, batch=32):
    """Trains for `steps` batches and saves a folder in Vicuna's layout."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model = new_model(tokenizer.vocab_size)
    ready = []

    def next_batch(step):
        if not ready:
            shares = AT_FIRST if step < steps / 3 else LATER
            ready.extend(batches_of_like_length(rng, tokenizer, shares, batch))
        input_ids, labels, _ = ready.pop()
        return {"input_ids": input_ids, "labels": labels}

    train(model, next_batch, steps, lr=2e-3, muon_lr=0.008, desc="toy Vicuna", position=1)
    save_language(model.language_model.bfloat16(), tokenizer, out)
