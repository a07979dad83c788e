"""LLaMA's `tokenizer.model`, the protobuf message sentencepiece.ModelProto, read by hand.

It holds pieces of text, each with a score. SentencePiece begins with single characters and merges,
again and again, the two neighbours that together make the piece of the highest score:

    ▁ c a t   ->   ▁ c at   ->   ▁c at   ->   ▁cat

The `tokenizers` package does the same from a ranked list of pairs. So the work here is to read the
pieces and to write down that list, in an order that gives SentencePiece's ids for every text.
"""
import struct
from typing import NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "▁"  # how SentencePiece writes a space
NORMAL, UNKNOWN, CONTROL, BYTE_PIECE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type


class Pipelines(NamedTuple):
    """Text to ids in two ways, over one vocabulary; what a file of either format is read into."""
    with_prefix: tokenizers.Tokenizer     # writes the dummy prefix, a space before the text, if any
    without_prefix: tokenizers.Tokenizer
    has_prefix: bool                      # whether the former does write one
    legacy: bool                          # whether every segment has it, or the first one alone


class Model(NamedTuple):
    """What `tokenizer.model` says, as far as LLaMA's models make use of it."""
    pieces: list         # (piece, score, type), at the place of its id
    byte_fallback: bool  # a character without a piece becomes its UTF-8 bytes, <0xE7> and so on
    dummy_prefix: bool   # a text begins with a space that nobody wrote


def from_sentencepiece(path, legacy):
    """A SentencePiece BPE model -> Pipelines whose ids equal SentencePiece's."""
    model = read_sentencepiece(path)
    bpe = byte_pair_encoding(model)
    control = [AddedToken(piece, special=True, normalized=False)
               for piece, _, kind in model.pieces if kind in (UNKNOWN, CONTROL)]

    spaces = normalizers.Replace(" ", SPACE)
    with_prefix = tokenizers.Tokenizer(bpe)
    without_prefix = tokenizers.Tokenizer(bpe)
    for pipeline in (with_prefix, without_prefix):
        pipeline.add_special_tokens(control)
        pipeline.normalizer = spaces

    if model.dummy_prefix and legacy:
        with_prefix.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    elif model.dummy_prefix:
        with_prefix.pre_tokenizer = prefix_of_the_first_segment()

    # What other programs need of the file that is saved: ids to text, and <s> in front.
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    with_prefix.decoder = decoders.Sequence(steps)
    bos = with_prefix.token_to_id("<s>")
    if bos is not None:
        with_prefix.post_processor = processors.TemplateProcessing(
            "<s> $A", "<s> $A <s> $B", [("<s>", bos)])

    return Pipelines(with_prefix, without_prefix, model.dummy_prefix, legacy)


def byte_pair_encoding(model):
    """The pieces as a ranked list of pairs to merge: every way to cut a piece into two others.

    A better score goes first. The trap is equal scores. LLaMA gives -1e9 to all runs of spaces,
    from ▁▁ to 16 times ▁, so that they are merged after everything else,

        x▁▁hello   is   x ▁ ▁hello, as SentencePiece has it, not   x ▁▁ hello,

    and then from the left, each run growing space by space: 20 spaces become 16 and 4. By rank
    alone, ▁▁ before ▁▁▁▁, they would first pair up and end as 8 and 12. So among equals the
    longest goes first.
    """
    mergeable = {piece for piece, _, kind in model.pieces if kind == NORMAL}
    merges = []
    for piece, score, kind in model.pieces:
        if kind != NORMAL:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in mergeable and right in mergeable:
                merges.append((-score, -len(piece), left, right))
    merges.sort(key=lambda merge: merge[:2])  # equals stay in the order of the vocabulary

    return models.BPE(
        vocab={piece: i for i, (piece, _, _) in enumerate(model.pieces)},
        merges=[(left, right) for _, _, left, right in merges],
        unk_token=next((piece for piece, _, kind in model.pieces if kind == UNKNOWN), None),
        fuse_unk=True,
        byte_fallback=model.byte_fallback)


def prefix_of_the_first_segment():
    """The step that writes ▁ before a text, but not after the control tokens in it.

    Metaspace alone knows which segment is the first, but puts nothing before a text that begins
    with its own character. So one whose character cannot occur (spaces are ▁ by now) writes a
    space, and a second one turns that into ▁.
    """
    write = pre_tokenizers.Metaspace(" ", "first", split=False)
    spell = pre_tokenizers.Metaspace(SPACE, "never", split=False)
    return pre_tokenizers.Sequence([write, spell])


# ------------------------------------------------------------------------------------------------
# The file. Field numbers are those of sentencepiece_model.proto; of a field that comes twice, the
# last one counts.

def read_sentencepiece(path):
    """-> Model; ValueError for a file that is none, or whose ids could not be matched exactly."""
    try:
        model = fields(path.read_bytes())
        pieces = []
        for message in model[1]:
            piece = fields(message)
            text = piece[1][-1].decode()
            score, = struct.unpack("<f", last(piece, 2, bytes(4)))
            pieces.append((text, score, last(piece, 3, NORMAL)))
        trainer = fields(model[2][-1])
        normalizer = fields(model[3][-1])
    except (KeyError, IndexError, ValueError, struct.error, AttributeError, TypeError):
        raise ValueError(f"{path} is not a whole SentencePiece model; "
                         "download it again, or tokenizer.json") from None

    if last(trainer, 3, 1) != 2:  # model_type
        raise ValueError(f"{path} is not a BPE model as LLaMA's is; "
                         "add a tokenizer.json to the folder")
    rewrites = last(normalizer, 2, b"")       # precompiled_charsmap
    strips = last(normalizer, 4, 1)           # remove_extra_whitespaces
    as_suffix = last(trainer, 24, 0)          # treat_whitespace_as_suffix
    known = {NORMAL, UNKNOWN, CONTROL, BYTE_PIECE}
    if rewrites or strips or as_suffix or any(kind not in known for _, _, kind in pieces):
        raise ValueError(f"{path} rewrites text or has symbols of its own; "
                         "add a tokenizer.json to the folder")

    return Model(pieces, byte_fallback=bool(last(trainer, 35, 0)),
                 dummy_prefix=bool(last(normalizer, 3, 1)))


def last(message, number, default):
    return message.get(number, [default])[-1]


FIXED = {1: 8, 5: 4}  # types of values that are always so many bytes long; any other is an error


def fields(message):
    """One protobuf message -> {field number: [values]}.

    A field is a key, its number and three bits of type, and a value: an int, or bytes of a length
    that the type or a number in front of them says. The piece ▁t of type 1 (NORMAL), for example:

        0A 04  E2 96 81 74     field 1, bytes, 4 of them
        18 01                  field 3, an int
    """
    found = {}
    at = 0
    while at < len(message):
        key, at = varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = varint(message, at)
        else:
            if kind == 2:
                size, at = varint(message, at)
            else:
                size = FIXED[kind]
            value = message[at : at + size]
            at += size
            if at > len(message):
                raise ValueError("cut short")
        found.setdefault(number, []).append(value)
    return found


def varint(message, at):
    """The number at this place, 7 bits a byte, the lowest first -> number, place after it."""
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
