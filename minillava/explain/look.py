"""Where did it look, and what did it need? Two maps of one answer, over the picture's patches.

`look` shows attention: how much the question and the answer took from each image token. `why` shows
cause: each image token is hidden in turn, and the answer scored again. Attention may rest on what
is of no use; what is needed shows when it is taken away.

    python -m minillava.explain.look       # both, measured on held-out scenes
"""
import random
import re
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from minillava.attention import attention_mask
from minillava.checkpoint import load_llava
from minillava.conversation import human_turn, render
from minillava.generate import PrefixCache, new_cache, next_logits, to_pixels
from minillava.llama import rotate
from minillava.llava import IMAGE_TOKEN
from minillava.terminal import command_parser, errors_in_one_line
from minillava.toy import world

LOOKING = (0.25, 0.5)  # of the layers: from where to where the words look most clearly
NEEDED = 0.05          # a fall of the log probability: it is 5 % less likely, else hardly changed
BLOCKS = 8             # blocks a side that are hidden in turn; of 8 x 8 tokens each is one
CACHE_BYTES = 2**31    # of keys and values that stand in memory at once


@dataclass
class Dialogue:
    """The ids of a conversation up to its last answer, and where its parts begin.

    <s> A chat ... USER: <image> <image> \\n What color ... ASSISTANT: The circle is red.
                         image           end, question                 answer
    """
    ids: list
    image: int
    end: int         # of the image
    question: int    # the last one; between the image and it stand earlier turns
    answer: int


@torch.inference_mode()
def look(model, tokenizer, turns, image, word=None, cache=None):
    """-> attention to each patch [rows, columns], the mean over the heads of some layers.

    turns: up to and with the answer. word: one that the answer says, None for all of it. cache: the
    PrefixCache of the conversation. ValueError without an answer, or if it does not say the word.

    A part of what an answer needs is fetched where the question is read, another where the word is
    said. So the question's tokens count for one half, and for the other the word's and those
    before them, which predict them.
    """
    dialogue = dialogue_of(model, tokenizer, turns)
    said = places_of(word, dialogue, tokenizer)
    end = dialogue.end
    keys_values = after_image(model, dialogue, image, cache, rows=1)

    # The text behind the image runs once more, and the queries of each layer are put aside.
    queries = {}

    def keep_queries(attention, arguments):
        x, rope, _, _, layer = arguments
        q = attention.split_heads(attention.q_proj(x))
        queries[layer] = rotate(q, rope)                                    # [1,H,T,C]

    with before_attention(model, keep_queries):
        model.language_model(embed_rest(model, dialogue), keys_values)

    # Of each layer, the rows of the tokens that count, and the columns of the image.
    asking = list(range(dialogue.question - end, dialogue.answer - end))
    saying = sorted({place - end + step for place in said for step in (-1, 0)})
    maps = []
    for layer in looking_layers(model):
        weights = attention_weights(queries[layer], keys_values.keys[layer], end)
        to_image = weights[:, dialogue.image : end]                         # [T,N]
        halves = to_image[asking].mean(0), to_image[saying].mean(0)
        maps.append(sum(halves) / 2)                                        # [N]
    return as_grid(torch.stack(maps).mean(0))


@torch.inference_mode()
def why(model, tokenizer, turns, image, word=None, cache=None):
    """-> how far the log probability of what was said falls without each patch [rows, columns].

    Arguments as for `look`. The picture and all before it run once. A row of the batch is the text
    behind it, from which one block of image tokens is hidden; in the first row none is.
    """
    dialogue = dialogue_of(model, tokenizer, turns)
    said = places_of(word, dialogue, tokenizer)
    blocks = block_of_each_token(model.config.image_tokens)                 # [N]
    hidden = torch.arange(-1, int(blocks.max()) + 1)[:, None] == blocks     # [rows,N]

    scores = []
    for rows in hidden.split(rows_at_once(model, len(dialogue.ids))):
        keys_values = after_image(model, dialogue, image, cache, len(rows))
        visible = torch.ones(len(rows), len(dialogue.ids), dtype=torch.bool)
        visible[:, dialogue.image : dialogue.end] = ~rows
        embeddings = embed_rest(model, dialogue).expand(len(rows), -1, -1)
        with before_attention(model, hide_keys(visible.to(model.device))):
            states = model.language_model(embeddings, keys_values)          # [rows,T,D]
        scores.append(log_probability(model, states, dialogue, said))

    scores = torch.cat(scores)
    fall = scores[0] - scores[1:]                                           # [blocks]
    return as_grid(fall[blocks])


def log_probability(model, states, dialogue, said):
    """States [rows,T,D] of the text behind the image -> of all said tokens together, [rows]."""
    # A token is predicted by the one before it.
    before = [place - dialogue.end - 1 for place in said]
    logits = model.language_model.lm_head(states[:, before])                # [rows,n,V]
    log_probs = logits.float().log_softmax(-1)

    tokens = torch.tensor([dialogue.ids[place] for place in said], device=model.device)
    tokens = tokens.expand(len(states), -1)                                 # [rows,n]
    chosen = log_probs.gather(-1, tokens[..., None])                        # [rows,n,1]
    return chosen.sum((1, 2)).cpu()


# ---------------------------------------------------------------------- ids, and where they stand

def dialogue_of(model, tokenizer, turns):
    if not turns:
        raise ValueError("there is no answer yet; ask something first")
    template = model.config.template
    N = model.config.image_tokens
    prompt, _ = render([*turns[:-1], ("gpt", None)], tokenizer, template, N)
    answer = tokenizer.segment(" " + turns[-1][1], prefix=False)

    image = prompt.index(IMAGE_TOKEN)
    end = question = image + N
    if len(turns) > 2:
        earlier, _ = render(turns[:-2], tokenizer, template, N)
        question = len(earlier)
    return Dialogue(prompt + answer, image, end, question, len(prompt))


def places_of(word, dialogue, tokenizer):
    """Where in the ids the answer says `word`, the first time; all of the answer without a word.

    "car" is the word, and not a part of "scarf", where the answer has both. (Chinese words have no
    ends to tell.)
    """
    places = range(dialogue.answer, len(dialogue.ids))
    if not word:
        return list(places)
    text = tokenizer.decode(dialogue.ids[dialogue.answer :])
    literal = re.escape(word)
    said = (re.search(rf"(?<!\w){literal}(?!\w)", text, re.I)
            or re.search(literal, text, re.I))
    if not said:
        raise ValueError(f"the answer does not say {word!r}")

    # Which tokens spell it: each reaches from the end of those before it to its own.
    found = []
    begin = 0
    for place in places:
        end = len(tokenizer.decode(dialogue.ids[dialogue.answer : place + 1]))
        if begin < said.end() and end > said.start():
            found.append(place)
        begin = end
    return found


def looking_layers(model):
    """The layers in which the words look at the picture most clearly: found on training scenes.

    Of the miniature's four it is the second. That a 7B looks in its second quarter is a guess.
    """
    layers = len(model.language_model.layers)
    first = int(LOOKING[0] * layers)
    return range(first, max(first + 1, int(LOOKING[1] * layers)))


def block_of_each_token(count):
    """Of a grid of `count` tokens, the block of each: 36 -> 36 blocks of one, 576 -> 64 of nine."""
    side = round(count**0.5)
    index = torch.arange(side) // -(-side // BLOCKS)
    blocks = index.max() + 1
    return (index[:, None] * blocks + index).flatten()


def as_grid(values):
    side = round(len(values) ** 0.5)
    return values.reshape(side, side).float().cpu()


# ----------------------------------------------------------------- the model, asked in other ways

def attention_weights(q, k, past):
    """Queries [1,H,T,C] after `past` tokens, keys [1,G,room,C] -> mean over the heads, [T,past+T].

    softmax(q k^T / sqrt(C)), which SDPA computes and never shows.
    """
    T = q.shape[2]
    k = k[:, :, : past + T]
    # A key serves several queries, as in the model.
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)                # [1,H,K,C]
    scores = q @ k.transpose(-1, -2)                                        # [1,H,T,K]
    scores = scores.float() * q.shape[-1] ** -0.5

    mask = attention_mask(T, past, None, q.device)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return weights[0].mean(0)


def hide_keys(visible):
    """A hook for before_attention: in each row only the keys that are `visible` [B,K] are seen."""
    def hook(attention, arguments):
        x, rope, mask, cache, layer = arguments
        mask = mask & visible[:, None, None, : mask.shape[-1]]              # [B,1,T,K]
        return x, rope, mask, cache, layer
    return hook


@contextmanager
def before_attention(model, hook):
    """Within it, `hook` sees, and may change, what goes into the attention of each layer."""
    layers = model.language_model.layers
    handles = [block.self_attn.register_forward_pre_hook(hook) for block in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def after_image(model, dialogue, image, cache, rows):
    """A KV cache of so many equal rows, in which all up to the end of the image was run."""
    cache = cache or PrefixCache(model)
    end = dialogue.end
    # One id more: a cache always leaves one to be run. A conversation's own has all before it.
    new_ids = cache.reuse(dialogue.ids[: end + 1])
    pixels = to_pixels(model, [image] if IMAGE_TOKEN in new_ids else [])
    next_logits(model, torch.tensor([new_ids], device=model.device), pixels, cache.keys_values)

    copy = new_cache(model, rows)
    copy.make_room(len(dialogue.ids))
    for layer in range(len(copy.keys)):
        copy.keys[layer][:, :, :end] = cache.keys_values.keys[layer][:, :, :end]
        copy.values[layer][:, :, :end] = cache.keys_values.values[layer][:, :, :end]
    copy.length = end
    return copy


def embed_rest(model, dialogue):
    """The text behind the image."""
    ids = torch.tensor([dialogue.ids[dialogue.end :]], device=model.device)
    return model.embed(ids)                                                 # [1,T,D]


def rows_at_once(model, length):
    """So many texts of this length have their keys and values within CACHE_BYTES."""
    config = model.config.language_config
    numbers = 2 * length * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return max(1, CACHE_BYTES // (2 * numbers))  # two bytes each


# ------------------------------------------------------------------------------------ the picture

def seen_picture(model, image):
    """The picture as the model gets it: cut or padded to a square, of its size."""
    pixels = to_pixels(model, [image])[0].cpu().permute(1, 2, 0).numpy()    # [S,S,3]
    values = pixels * np.float32(model.config.image_std) + np.float32(model.config.image_mean)
    return Image.fromarray((values * 255).round().clip(0, 255).astype(np.uint8))


def paint(picture, heat, least=0.0):
    """The map as light: hot patches keep their colours, those below `least` lie in the dark."""
    light = heat.where(heat >= least, 0) / heat.max().clamp(min=1e-9)       # 0..1
    side = picture.width * max(1, 336 // picture.width)
    light = Image.fromarray((light.numpy() * 255).astype(np.uint8))
    light = light.resize((side, side), Image.Resampling.NEAREST)
    picture = picture.resize((side, side), Image.Resampling.NEAREST)
    dark = picture.point(lambda value: value // 6)
    return Image.composite(picture, dark, light)


def hottest(heat):
    """-> (row, column) of the hottest patch."""
    return divmod(int(heat.argmax()), heat.shape[1])


# -------------------------------------------------------------------------------- the measurement

def color_question(rng, split):
    """A scene, and the colour of a shape that it has once -> (picture, turns, colour, box)."""
    while True:
        scene = world.make_scene(rng, split)
        name, box = rng.choice(scene)
        color, shape = name.split()
        same_shape = [other for other, _ in scene if other.split()[1] == shape]
        if len(scene) > 1 and len(same_shape) == 1:
            question = human_turn(f"What color is the {shape}?", image=True)
            answer = ("gpt", f"The {shape} is {color}.")
            return world.draw(scene, rng), [question, answer], color, box


def touches(patch, side, box):
    """Whether a patch, (row, column) of side x side, lies on a box of the scene."""
    size = world.SIDE / side
    y = patch[0] * size
    x = patch[1] * size
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
        patches = [divmod(i, len(heat)) for i in range(heat.numel())]
        lying = [patch for patch in patches if touches(patch, len(heat), box)]
        hits["a random patch"] += len(lying) / len(patches)
    return {name: 100 * count / scenes for name, count in hits.items()}


def main():
    parser = command_parser("explain.look", __doc__)
    parser.add_argument("--model", help="folder of a miniature (default: the shipped one)")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--split", choices=("train", "val"), default="val", help="val: held out")
    args = parser.parse_args()
    with errors_in_one_line():
        if args.scenes < 1:
            raise ValueError(f"--scenes is 1 or more, not {args.scenes}")
        model, tokenizer = load_llava(args.model)
        hits = measure(model, tokenizer, args.scenes, args.split, seed=0)
        print(f"the hottest patch lies on the shape that was asked about, in {args.scenes} scenes:")
        for name, share in hits.items():
            print(f"{name:16}{share:6.1f} %")


if __name__ == "__main__":
    main()
