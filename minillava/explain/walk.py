"""One question through LLaVA, step by step, with shapes: pixels, patches, words, logits, answer.

    python -m minillava.explain.walk         # the miniature, on a scene it has never seen
    python -m minillava.explain.walk --image photo.jpg --question "What is this?" \\
        --model DIR --out runs/walk

The model runs as it always does: hooks on its modules note the shapes of what goes through them.
What cannot be said in words is drawn, into the folder that --out names.
"""
import random
import re
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.nn.functional import normalize

from minillava.attention import attention_mask
from minillava.checkpoint import TOY, load_llava
from minillava.conversation import TEMPLATES, human_turn, render
from minillava.explain import pictures
from minillava.explain.look import look, paint, seen_picture
from minillava.generate import PrefixCache, stream, to_pixels
from minillava.images import load_image
from minillava.instruct.command import make_folder
from minillava.llava import IGNORE_INDEX, IMAGE_TOKEN
from minillava.terminal import command_parser, errors_in_one_line, printable
from minillava.toy import world

STAGE_1 = TOY / "pretrain" / "mm_projector.bin"  # the miniature's projector before stage 2

MOST = 64  # tokens of an answer


@contextmanager
def noted_shapes(modules):
    """Within it, the shape of what leaves some modules first: {name: module} -> {name: shape}."""
    shapes = {}

    def note(name):
        def hook(module, inputs, output):
            shapes.setdefault(name, list(output.shape))
        return hook

    hooks = [module.register_forward_hook(note(name)) for name, module in modules.items()]
    try:
        yield shapes
    finally:
        for hook in hooks:
            hook.remove()


def say(step, shape, why):
    """One line of the walk: what it is, its shape, why."""
    print(f"  {step:34} {str(list(shape)):20} {why}")


def title(number, name):
    print(f"\n{number}. {name}")


# ---- the steps ----

def walk_picture(model, image, out):
    """From the picture to N word embeddings."""
    config = model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    grid = side // patch
    tower = model.vision_tower
    parts = {"patches": tower.embeddings.patch_embedding, "embeddings": tower.embeddings,
             "block": tower.encoder.layers[0]}

    pixel_values = to_pixels(model, [image])
    with noted_shapes(parts) as seen, torch.inference_mode():
        features = model.encode_images(pixel_values)

    title(1, "The picture becomes numbers (images.py)")
    say("the picture", [image.height, image.width, 3], "height, width, red green blue")
    square = "padded to a square" if config.image_aspect_ratio == "pad" else "its middle square"
    say("pixel_values", pixel_values.shape, f"{square}, {side} x {side}, CLIP's mean taken out")

    title(2, "The numbers become features (vit.py)")
    N = config.image_tokens
    padding = seen["block"][1] - seen["embeddings"][1]
    behind = f"; {padding} of padding behind them (vit.py: padded)" if padding else ""
    say("patch_embedding", seen["patches"], f"{side} / {patch} = {grid}: a grid of {grid} x {grid}")
    say("embeddings", seen["embeddings"], f"{N} patches and the class token, with positions")
    say(f"after {model.used_blocks} blocks", seen["block"],
        "every patch has looked at every other" + behind)
    say("without the class token", [1, N, config.vision_config.hidden_size],
        "LLaVA reads the grid alone")

    title(3, "The features become words (llava.py)")
    say(f"projector, {config.projector}", features.shape, "as wide as a word of the language model")
    pictures.patch_grid(seen_picture(model, image), config, out / "patches.png")


def walk_prompt(model, tokenizer, question):
    """From the question to the sequence that the decoder reads."""
    config = model.config
    turns = [human_turn(question, image=True), ("gpt", None)]
    ids, _ = render(turns, tokenizer, config.template, config.image_tokens)
    first = ids.index(IMAGE_TOKEN)
    last = first + config.image_tokens

    title(4, "Among the words (conversation.py)")
    print(f"  {tokenizer.spell(ids[:first])!r}")
    print(f"  {config.image_tokens} times the placeholder {IMAGE_TOKEN}, "
          "which the projected features replace")
    print(f"  {tokenizer.spell(ids[last:])!r}")
    words = len(ids) - config.image_tokens
    context = config.language_config.max_position_embeddings
    if len(ids) + MOST > context:
        raise ValueError(f"the question is too long: with it there are {len(ids)} tokens, and with "
                         f"the answer more than the model's context of {context}")
    say("input_ids", [1, len(ids)], f"{words} words, {config.image_tokens} image tokens")
    return ids


def walk_answer(model, tokenizer, ids, image):
    """The decoder's work, and the answer token by token, with what came second and third."""
    language = model.language_model
    parts = {"block": language.layers[0], "norm": language.norm, "head": language.lm_head}
    pixel_values = to_pixels(model, [image])
    stop = TEMPLATES[model.config.template].stop
    answer, rows = [], []
    with noted_shapes(parts) as shapes, torch.inference_mode():
        while len(answer) < MOST:  # all tokens anew for each word: the cache comes in step 8
            input_ids = torch.tensor([ids + answer], device=model.device)
            probabilities = model(input_ids, pixel_values)[0, -1].float().softmax(-1)
            best = probabilities.topk(3)
            answer.append(best.indices[0].item())
            rows.append((best.indices.tolist(), best.values.tolist()))
            if answer[-1] == tokenizer.eos_id or stop and stop in tokenizer.decode(answer):
                break

    title(5, "The decoder (llama.py)")
    say(f"each of {len(language.layers)} blocks", shapes["block"],
        "every token looks at itself and at all before it")
    say("lm_head", shapes["head"], "a score for every word of the vocabulary")

    title(6, "The answer, token by token (generate.py)")
    for indices, values in rows:
        words = [f"{tokenizer.spell([i])!r:>22} {100 * p:5.1f} %" for i, p in zip(indices, values)]
        print("  " + "   ".join(words))
    return tokenizer.decode(answer).strip()


def walk_attention(model, tokenizer, question, answer, image, out, most=6):
    """Where the model looked for the longest words of its answer."""
    turns = [human_turn(question, image=True), ("gpt", answer)]
    words = sorted(set(re.findall(r"\w[\w-]+", answer)), key=len, reverse=True)[:most]
    words.sort(key=answer.index)
    picture = seen_picture(model, image)
    maps = [(word, paint(picture, look(model, tokenizer, turns, image, word))) for word in words]
    pictures.side_by_side(maps, out / "attention.png")


def walk_training(model, tokenizer, question, answer):
    """The same exchange as a training sample: who predicts what, and what is learned."""
    config = model.config
    turns = [human_turn(question, image=True), ("gpt", answer)]
    ids, labels = render(turns, tokenizer, config.template, config.image_tokens)

    title(7, "The same as a training sample: the shift by one (llava.py)")
    print(f"  {'stands at':>22}   {'is to predict':>22}")
    learned = [at for at, label in enumerate(labels) if label != IGNORE_INDEX]
    for at in learned:
        here = repr(tokenizer.spell([ids[at - 1]]))
        if ids[at - 1] == IMAGE_TOKEN:
            here = "the image's last token"
        print(f"  {here:>22} -> {tokenizer.spell([labels[at]])!r:>22}")
    print(f"  {len(learned)} of {len(ids)} positions are learned: what the model is to write. "
          "The system message, the question\n  and the image have no loss: they are given.")


def walk_chat(model, tokenizer, image, turns, out):
    """Two turns, and what each of them ran through the decoder: the cache at work."""
    runs = []
    first_block = model.language_model.layers[0]
    hook = first_block.register_forward_pre_hook(lambda _, inputs: runs.append(inputs[0].shape[1]))

    cache = PrefixCache(model)
    said, turn_runs = [], []
    for question in turns:
        said.append(human_turn(question, image=not said))
        pieces = stream(model, tokenizer, said, image, MOST, cache=cache)
        said.append(("gpt", "".join(pieces).strip()))
        turn_runs.append(list(runs))
        runs.clear()
    hook.remove()

    title(8, "The cache over two turns (generate.py)")
    for number, tokens in enumerate(turn_runs, 1):
        print(f"  turn {number}: a prefill of {tokens[0]} tokens, "
              f"then {len(tokens) - 1} steps of one token")
    pictures.cache_growth(turn_runs, out / "cache.png")


def walk_masks(out):
    """Who may look at whom: in training, and where a shorter prompt is padded on the left."""
    words = ["<s>", "USER:", "<image>", "<image>", "What?", "ASSISTANT:"]
    padding = ["(padding)", "(padding)"]
    T = len(words + padding)

    # padded on the right: the padding looks back, but no word looks at it
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    pictures.matrix(causal.tolist(), words + padding, out / "mask_training.png")

    # padded on the left: all that follows would look at the padding, were it not masked
    masked = attention_mask(T, start=torch.tensor([len(padding)]))[0, 0]
    pictures.matrix(masked.tolist(), padding + words, out / "mask_decoding.png")


@torch.inference_mode()
def nearest_words(model, tokenizer, image):
    """The word whose embedding points most in the direction of each patch's -> [N] strings."""
    features = model.encode_images(to_pixels(model, [image]))[0].float()  # [N,D]
    words = model.language_model.embed_tokens.weight.float()              # [V,D]
    features = normalize(features, dim=-1)
    words = normalize(words, dim=-1)
    likeness = features @ words.T                                         # [N,V], the cosines
    likeness[:, [tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id]] = -1
    return [tokenizer.spell([i]).strip() for i in likeness.argmax(-1).tolist()]


def walk_alignment(model, tokenizer, image, stage_1, out):
    """Which words each patch looks like: with a new projector, after stage 1, after stage 2."""
    backbones = {"vision": TOY / "clip", "language": TOY / "vicuna", "device": "cpu"}
    torch.manual_seed(0)
    new, _ = load_llava(projector=model.config.projector, **backbones)
    aligned, _ = load_llava(projector=stage_1, **backbones)
    models = {"before stage 1": new, "after stage 1": aligned, "after stage 2": model}
    columns = [(name, nearest_words(each, tokenizer, image)) for name, each in models.items()]

    title(9, "What aligning means: the word that each patch is most like")
    for name, words in columns:
        cells = int(len(words) ** 0.5)
        print(f"  {name}")
        short = [word if len(word) < 18 else f"{word[:16]}…" for word in words]
        for row in range(0, len(words), cells):
            print("    " + "".join(f"{word:18}" for word in short[row : row + cells]).rstrip())
    picture = seen_picture(model, image)
    pictures.words_on_patches(picture, model.config, columns, out / "words.png")


# ---- the command ----

def main():
    parser = command_parser("explain.walk", __doc__)
    parser.add_argument("--image", type=Path, help="a picture (default: a held-out toy scene)")
    parser.add_argument("--question", default="What do you see in the image?")
    parser.add_argument("--model", type=Path, help="folder of a LLaVA (default: the miniature)")
    parser.add_argument("--out", type=Path, default=Path("runs/walk"), help="folder for the pictures")
    args = parser.parse_args()
    with errors_in_one_line():
        walk(args.model, args.image, args.question, args.out)


def scene():
    """A held-out scene, always the same."""
    rng = random.Random(5)
    return world.draw(world.make_scene(rng, "val"), rng)


def walk(folder, image_file, question, out):
    make_folder(out, "--out")
    model, tokenizer = load_llava(folder)
    image = load_image(image_file) if image_file else scene()

    walk_picture(model, image, out)
    ids = walk_prompt(model, tokenizer, question)
    answer = walk_answer(model, tokenizer, ids, image)
    print(f"\n  {printable(question)}\n  {printable(answer)}")

    walk_attention(model, tokenizer, question, answer, image, out)
    walk_training(model, tokenizer, question, answer)
    walk_chat(model, tokenizer, image, [question, question], out)
    walk_masks(out)
    drawn = ["patches", "attention", "cache", "mask_training", "mask_decoding"]
    # the miniature's stage 1 is at hand, that of a model from elsewhere is not
    if folder is None:
        walk_alignment(model, tokenizer, image, STAGE_1, out)
        drawn.append("words")
    print(f"\nPictures: {', '.join(str(out / f'{name}.png') for name in drawn)}")


if __name__ == "__main__":
    main()
