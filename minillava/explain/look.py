"""Where did it look, and what did it need? Two maps of one answer, over the picture's patches.

`look` shows attention: how much the question and the answer took from each image token. `why` shows
cause: each image token is hidden in turn, and the answer scored again. Attention may rest where
nothing is needed; what is needed is told by taking it away.

    python -m minillava.explain.look       # both, measured on held-out scenes
"""
import argparse
import random
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from minillava.checkpoint import load_llava
from minillava.conversation import human_turn, render
from minillava.generate import PrefixCache, new_cache, next_logits, to_pixels
from minillava.llama import rotate
from minillava.llava import IMAGE_TOKEN
from minillava.terminal import exit_with
from minillava.toy import world

QUARTER = 1           # of the layers, the second: where looking was found best on training scenes
BLOCKS = 8            # tokens a side that are hidden one by one; of a finer grid, blocks of them
CACHE_BYTES = 2**31   # of keys and values that stand in memory at once


@dataclass
class Dialogue:
    """The ids of a conversation up to its last answer, and where its parts begin.

        ids       <s> A chat ... USER: <image> <image> \\n What color ... ASSISTANT: The circle is red.
        begins at                      image           question                      answer
    """
    ids: list
    image: int
    question: int    # the last one; what stands between the image and it are earlier turns
    answer: int


def dialogue_of(model, tokenizer, turns):
    """turns: up to and with the answer that is asked about. ValueError if there is no answer yet."""
    if not turns:
        raise ValueError("there is no answer yet; ask something first")
    template, N = model.config.template, model.config.image_tokens
    prompt, _ = render([*turns[:-1], ("gpt", None)], tokenizer, template, N)
    answer = tokenizer.segment(" " + turns[-1][1], prefix=False)

    image = prompt.index(IMAGE_TOKEN)
    question = image + N
    if len(turns) > 2:
        earlier, _ = render(turns[:-2], tokenizer, template, N)
        question = len(earlier)
    return Dialogue(prompt + answer, image, question, len(prompt))


def places_of(word, dialogue, tokenizer):
    """Where in the ids the answer says `word`, the first time; all of the answer without a word."""
    places = range(dialogue.answer, len(dialogue.ids))
    if not word:
        return list(places)

    # Token by token, from which character of the answer to which.
    ends = [len(tokenizer.decode(dialogue.ids[dialogue.answer : place + 1])) for place in places]
    begins = [0, *ends[:-1]]
    text = tokenizer.decode(dialogue.ids[dialogue.answer :])
    first = text.lower().find(word.lower())
    if first < 0:
        raise ValueError(f"the answer does not say {word!r}")
    last = first + len(word)
    return [place for place, begin, end in zip(places, begins, ends) if begin < last and end > first]


@torch.inference_mode()
def look(model, tokenizer, turns, image, word=None, cache=None):
    """-> attention to each patch [rows, columns], the mean over the heads of some layers.

    What an answer needs is fetched in part while the question is read, in part where the word is
    said. So the question's tokens count for one half; for the other the word's, and those before
    them, which predict them.
    """
    dialogue = dialogue_of(model, tokenizer, turns)
    said = places_of(word, dialogue, tokenizer)
    end = dialogue.image + model.config.image_tokens
    keys_values = after_image(model, dialogue, image, cache, rows=1)

    queries = {}

    def keep_queries(attention, arguments):
        x, rope, _, _, layer = arguments
        queries[layer] = rotate(attention.split_heads(attention.q_proj(x)), rope)  # [1,H,T,C]

    with before_attention(model, keep_queries):
        model.language_model(embed_rest(model, dialogue, end), keys_values)

    asked = range(dialogue.question - end, dialogue.answer - end)
    told = sorted({place - end + step for place in said for step in (-1, 0)})
    maps = []
    for layer in looking_layers(model):
        weights = attention_weights(queries[layer], keys_values.keys[layer], end)   # [T,K]
        to_image = weights[:, dialogue.image : end]                                  # [T,N]
        maps.append(to_image[list(asked)].mean(0) + to_image[told].mean(0))
    return as_grid(torch.stack(maps).mean(0) / 2)


def looking_layers(model):
    """The quarter of the layers in which the words look at the picture most clearly."""
    layers = len(model.language_model.layers)
    return range(QUARTER * layers // 4, max((QUARTER + 1) * layers // 4, QUARTER * layers // 4 + 1))


def attention_weights(q, k, past):
    """q [1,H,T,C] after `past` tokens, k [1,G,>=past+T,C] -> softmax(q k^T / sqrt(C)), mean over heads."""
    T = q.shape[2]
    k = k[:, :, : past + T].repeat_interleave(q.shape[1] // k.shape[1], dim=1)  # [1,H,K,C]
    scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5            # [1,H,T,K]
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(past + 1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)[0].mean(0)        # [T,K]


@torch.inference_mode()
def why(model, tokenizer, turns, image, word=None, cache=None):
    """-> for each patch [rows, columns] how far the log probability of what was said falls without it.

    The picture and all before it are run once. A row of the batch is the text after it, from which
    one block of image tokens is hidden; in the first row, none is.
    """
    dialogue = dialogue_of(model, tokenizer, turns)
    said = places_of(word, dialogue, tokenizer)
    end = dialogue.image + model.config.image_tokens
    blocks = block_of_each_token(model.config.image_tokens)                 # [N]
    hidden = torch.arange(-1, int(blocks.max()) + 1)[:, None] == blocks     # [rows,N]

    scores = []
    for rows in hidden.split(rows_at_once(model, len(dialogue.ids))):
        keys_values = after_image(model, dialogue, image, cache, len(rows))
        visible = torch.ones(len(rows), len(dialogue.ids), dtype=torch.bool)
        visible[:, dialogue.image : end] = ~rows
        with before_attention(model, hide_keys(visible.to(model.device))):
            embeddings = embed_rest(model, dialogue, end).expand(len(rows), -1, -1)
            states = model.language_model(embeddings, keys_values)
        before = torch.tensor(said, device=model.device) - end - 1
        logits = model.language_model.lm_head(states[:, before])            # [rows,n,V]
        words = torch.tensor(dialogue.ids, device=model.device)[said]       # [n]
        log_probs = logits.float().log_softmax(-1)
        scores.append(log_probs.gather(-1, words.expand(len(rows), -1)[..., None]).sum((1, 2)))
    scores = torch.cat(scores).cpu()
    return as_grid((scores[0] - scores[1:])[blocks])


def block_of_each_token(count):
    """Of a grid of `count` tokens, which block each is in: 36 -> 36 blocks of one, 576 -> 64 of nine."""
    side = round(count**0.5)
    index = torch.arange(side) // -(-side // BLOCKS)
    return (index[:, None] * (index.max() + 1) + index).flatten()


def hide_keys(visible):
    """A hook: row by row, attention does not see the keys that are not visible [B,K]."""
    def hook(attention, arguments):
        x, rope, mask, cache, layer = arguments
        return x, rope, mask & visible[:, None, None, : mask.shape[-1]], cache, layer
    return hook


@contextmanager
def before_attention(model, hook):
    """Within it, `hook` sees, and may change, what goes into the attention of each layer."""
    handles = [block.self_attn.register_forward_pre_hook(hook) for block in model.language_model.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def after_image(model, dialogue, image, cache, rows):
    """A KV cache of so many equal rows, in which all up to the end of the image was run.

    cache: the PrefixCache of the conversation, which mostly has it already; None for a new one.
    """
    cache = cache or PrefixCache(model)
    end = dialogue.image + model.config.image_tokens
    new_ids = cache.reuse(dialogue.ids[: end + 1])   # one more: a cache always leaves one to be run
    pixels = to_pixels(model, [image] if IMAGE_TOKEN in new_ids else [])
    next_logits(model, torch.tensor([new_ids], device=model.device), pixels, cache.keys_values)

    copy = new_cache(model, rows)
    copy.make_room(len(dialogue.ids))
    for layer, keys in enumerate(cache.keys_values.keys):
        copy.keys[layer][:, :, :end] = keys[:, :, :end]
        copy.values[layer][:, :, :end] = cache.keys_values.values[layer][:, :, :end]
    copy.length = end
    return copy


def rows_at_once(model, length):
    """So many texts of this length have their keys and values within CACHE_BYTES."""
    config = model.config.language_config
    numbers = 2 * length * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return max(1, CACHE_BYTES // (2 * numbers))  # two bytes each


def embed_rest(model, dialogue, end):
    ids = torch.tensor([dialogue.ids[end:]], device=model.device)
    return model.embed(ids)                                                  # [1,T,D]


def as_grid(values):
    side = round(len(values) ** 0.5)
    return values.reshape(side, side).float().cpu()


# ------------------------------------------------------------------------------------- the picture

def seen_picture(model, image):
    """The picture as the model gets it: cut or padded to a square, of its size."""
    pixels = to_pixels(model, [image])[0].cpu().permute(1, 2, 0).numpy()     # [S,S,3]
    values = pixels * np.float32(model.config.image_std) + np.float32(model.config.image_mean)
    return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def paint(picture, heat):
    """The map as light: hot patches keep their colours, cold ones lie in the dark."""
    light = (heat.clamp(min=0) / heat.max().clamp(min=1e-9)).numpy()         # 0..1
    side = max(picture.width, 336 // picture.width * picture.width)
    light = Image.fromarray((light * 255).astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
    picture = picture.resize((side, side), Image.Resampling.NEAREST)
    dark = picture.point(lambda value: value // 6)
    return Image.composite(picture, dark, light)


def hottest(heat):
    """-> (row, column) of the hottest patch."""
    return divmod(int(heat.argmax()), heat.shape[1])


# ------------------------------------------------------------------------------- the measurement

def color_question(rng, split):
    """A scene and the colour of a shape that it has once -> (picture, turns, colour, box)."""
    while True:
        scene = world.make_scene(rng, split)
        name, box = rng.choice(scene)
        color, shape = name.split()
        shapes = [other.split()[1] for other, _ in scene]
        if len(scene) > 1 and shapes.count(shape) == 1:
            turns = [human_turn(f"What color is the {shape}?", image=True), ("gpt", f"The {shape} is {color}.")]
            return world.draw(scene, rng), turns, color, box


def touches(patch, side, box):
    """Whether a patch, (row, column) of `side` x `side`, lies on a box of the scene."""
    size = world.SIDE / side
    y, x = patch[0] * size, patch[1] * size
    return box[0] < x + size and x < box[2] and box[1] < y + size and y < box[3]


def measure(model, tokenizer, scenes, split, seed):
    """In how many scenes, per cent, the hottest patch lies on the shape that was asked about."""
    rng = random.Random(seed)
    hits = {"look": 0, "why": 0, "a random patch": 0}
    for _ in range(scenes):
        picture, turns, color, box = color_question(rng, split)
        for method in (look, why):
            heat = method(model, tokenizer, turns, picture, color)
            hits[method.__name__] += touches(hottest(heat), len(heat), box)
        patches = [touches(divmod(i, len(heat)), len(heat), box) for i in range(heat.numel())]
        hits["a random patch"] += sum(patches) / len(patches)
    return {name: 100 * count / scenes for name, count in hits.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a miniature (default: the shipped one)")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--split", choices=("train", "val"), default="val", help="val: held-out scenes")
    args = parser.parse_args()
    try:
        model, tokenizer = load_llava(args.model)
        hits = measure(model, tokenizer, args.scenes, args.split, seed=0)
    except (OSError, ValueError) as error:
        exit_with(error)
    for name, share in hits.items():
        print(f"{name:16}{share:6.1f} % of {args.scenes} scenes: the hottest patch lies on the shape")


if __name__ == "__main__":
    main()
