"""The tokenizer of the toy Vicuna."""
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from minillava.conversation import TEMPLATES
from minillava.tokenizer import Tokenizer
from minillava.toy import annotations, objects, teacher, world
from minillava.toy.talk import small_talk


def symbols(rng):
    """A new training scene -> its captions and boxes."""
    boxes = annotations.as_fractions(world.make_scene(rng, "train"))
    return objects.captions_of(boxes, rng), boxes


def train_tokenizer(folder, rng):
    """Writes tokenizer.json: a BPE as LLaMA's (`▁` for a space, bytes for what has no piece; <unk>, <s>, </s> first).

    Pieces may span words that make one phrase, "small red circle" or "at the top-left" (superwords, Liu et al. 2025): text
    is then a third as long, and a thing in a text is one vector with all its properties, as it is in a picture.
    """
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    thing = f"(▁(small|large))?▁({'|'.join(world.COLORS)})▁({'|'.join(world.SHAPES)})(?![a-z])"
    fixed = [sentence.strip().replace(" ", "▁") for sentence in TEMPLATES["vicuna_v1"].system.rstrip(".").split(".")]
    fixed = "|".join("▁" + sentence for sentence in fixed)
    phrase = f"{thing}|▁at▁the▁[a-z-]+|▁\\([A-E]\\)|{fixed}|▁?[\\w-]+|[^\\w▁]|▁"
    core.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(phrase), "isolated")
    texts = []
    for _ in range(3000):
        captions, boxes = symbols(rng)
        pairs = [small_talk(rng)]
        for kind in ("brief", "conversation", "detail", "reasoning"):
            pairs += teacher.teach(kind, captions, boxes, rng)
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


def options(rng, count=6):
    """The choices of a question as ScienceQA writes them, and flash cards: which letter is which?"""
    things = objects.read(symbols(rng)[1])
    pool = rng.choice((list(world.COLORS), world.SHAPES, world.NUMBERS,
                       [f"at the {place}" for place in world.PLACES],
                       sorted({str(thing) for thing in things} | {f"{thing.color} {thing.shape}" for thing in things})))
    choices = rng.sample(pool, min(len(pool), rng.randint(2, 5)))
    letters = dict(zip(choices, "ABCDE"))
    told = "Options: " + " ".join(f"({letter}) {choice}" for choice, letter in letters.items())
    return told, [(f"Among the options, {choice} is", f"({letters[choice]}).") for choice in rng.choices(choices, k=count)]
