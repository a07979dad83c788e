"""The tokenizer of the toy CLIP and the toy Vicuna: a BPE as LLaMA's, of 1,024 pieces at most."""
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from minillava.conversation import TEMPLATES
from minillava.files import write
from minillava.tokenizer import Tokenizer
from minillava.toy.annotations import as_fractions
from minillava.toy.cards import options
from minillava.toy.objects import captions_of
from minillava.toy.talk import small_talk
from minillava.toy.teacher import teach
from minillava.toy.world import COLORS, SHAPES, make_scene

CONTROL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # for what has no piece
SYSTEM = TEMPLATES["vicuna_v1"].system


def new_symbols(rng):
    """A new training scene -> its captions and boxes."""
    boxes = as_fractions(make_scene(rng, "train"))
    return captions_of(boxes, rng), boxes


def train_tokenizer(folder, rng):
    """Writes tokenizer.json and tokenizer_config.json; returns the Tokenizer that reads them."""
    core = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"),  # ▁ stands for a space
                                            normalizers.Replace(" ", "▁")])
    phrase = tokenizers.Regex(phrase_pattern())
    core.pre_tokenizer = pre_tokenizers.Split(phrase, "isolated")
    trainer = trainers.BpeTrainer(vocab_size=1024, min_frequency=20, show_progress=False,
                                  special_tokens=CONTROL + BYTES)
    core.train_from_iterator(texts(rng), trainer)

    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                      decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    write_tokenizer(core, folder)
    return Tokenizer.load(folder)


def phrase_pattern():
    """What a piece may not reach beyond.

    Pieces may span words that make one phrase, "small red circle" or "at the top-left" (superwords,
    Liu et al. 2025): text is then a third as long, and a thing in a text is one vector with all its
    properties, as it is in a picture.
    """
    thing = f"(▁(small|large))?▁({'|'.join(COLORS)})▁({'|'.join(SHAPES)})(?![a-z])"
    place = "▁at▁the▁[a-z-]+"
    option = r"▁\([A-E]\)"
    sentences = [sentence.strip().replace(" ", "▁") for sentence in SYSTEM.rstrip(".").split(".")]
    system = "|".join(f"▁{sentence}" for sentence in sentences)
    word, sign, space = r"▁?[\w-]+", r"[^\w▁]", "▁"
    return "|".join((thing, place, option, system, word, sign, space))


def texts(rng, scenes=3000):
    """All that will be said in this world: captions, chats, and questions with options."""
    for _ in range(scenes):
        captions, boxes = new_symbols(rng)
        pairs = [small_talk(rng)]
        for kind in ("brief", "conversation", "detail", "reasoning"):
            pairs += teach(kind, captions, boxes, rng)
        told, deck = options(new_symbols(rng)[1], rng)

        yield from captions
        yield from (SYSTEM, "Context: N/A")
        for question, answer in pairs:
            yield f"USER: {question}\n{question} ASSISTANT: {answer}"
        yield told
        for front, back in deck:
            yield f"{front} {back} The answer is {back[1]}."


def write_tokenizer(core, folder):
    parsed = json.loads(core.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"]
                              if token["content"] in CONTROL]
    config = {"legacy": True, "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>",
              "pad_token": "<unk>"}
    write(folder / "tokenizer.json", json.dumps(parsed, ensure_ascii=False, indent=1))
    write(folder / "tokenizer_config.json", json.dumps(config))
