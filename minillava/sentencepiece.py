"""LLaMA's `tokenizer.model`, the protobuf message sentencepiece.ModelProto, read by hand."""
import struct

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "▁"  # how SentencePiece writes a space
NORMAL, UNKNOWN, CONTROL, BYTE_PIECE = 1, 2, 3, 6  # ModelProto.SentencePiece.Type


def from_sentencepiece(path, legacy):
    """A SentencePiece BPE model -> (first, rest, prefix, legacy), as Tokenizer takes them; ids equal SentencePiece's.

    SentencePiece merges, again and again, the neighbours that together make the piece of the highest score, the
    leftmost ones first. `tokenizers` wants a ranked list of pairs instead: every way to cut a piece in two, by score.
    The trap is equal scores. LLaMA gives all runs of spaces, `▁▁` to 16 times `▁`, the score -1e9, so that they are
    merged after everything else ("x▁▁hello" is x ▁ ▁hello, not x ▁▁ hello), and then from the left, each run growing
    space by space. So among equals the longest piece goes first, or twenty spaces would become 8 and 12, not 16 and 4.
    """
    pieces, byte_fallback, dummy_prefix = read_sentencepiece(path)
    vocab = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    mergeable = {piece for piece, _, kind in pieces if kind == NORMAL}
    merges = []
    for piece, score, kind in pieces:
        if kind == NORMAL:
            for cut in range(1, len(piece)):
                if piece[:cut] in mergeable and piece[cut:] in mergeable:
                    merges.append((-score, -len(piece), piece[:cut], piece[cut:]))
    merges.sort(key=lambda merge: merge[:2])  # stable: equals stay in the order of the vocabulary
    unknown = next((piece for piece, _, kind in pieces if kind == UNKNOWN), None)
    first = tokenizers.Tokenizer(models.BPE(vocab, [merge[2:] for merge in merges], unk_token=unknown, fuse_unk=True,
                                            byte_fallback=byte_fallback))
    first.add_special_tokens([AddedToken(piece, special=True, normalized=False)
                              for piece, _, kind in pieces if kind in (UNKNOWN, CONTROL)])
    spaces = normalizers.Replace(" ", SPACE)
    rest = rebuild(first, spaces, None)
    first.normalizer = spaces
    strip = [decoders.Strip(" ", 1, 0)] if dummy_prefix else []
    first.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    if "<s>" in vocab:
        first.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", vocab["<s>"])])
    if dummy_prefix and legacy:
        first.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces])
    elif dummy_prefix:
        # Metaspace alone knows which segment is the first, but puts no prefix before a text that begins with its own
        # character. So one whose character cannot occur (spaces are ▁ by now) writes it, and a second turns it into ▁.
        first.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(" ", "first", split=False),
                                                       pre_tokenizers.Metaspace(SPACE, "never", split=False)])
    return first, rest, dummy_prefix, legacy


def read_sentencepiece(path):
    """-> ([(piece, score, kind)] by id, byte_fallback, dummy_prefix); ValueError for what cannot be matched exactly."""
    try:
        model = fields(path.read_bytes())
        pieces = []
        for message in model[1]:
            piece = fields(message)
            kind = piece.get(3, [NORMAL])[-1]
            pieces.append((piece[1][-1].decode(), struct.unpack("<f", piece.get(2, [bytes(4)])[-1])[0], kind))
        trainer, normalizer = fields(model[2][-1]), fields(model[3][-1])
    except (KeyError, IndexError, ValueError, struct.error, AttributeError, TypeError):
        raise ValueError(f"{path} is not a whole SentencePiece model; download it again, or tokenizer.json") from None
    if trainer.get(3, [1])[-1] != 2:
        raise ValueError(f"{path} is not a BPE model as LLaMA's is; add a tokenizer.json to the folder")
    odd = {kind for _, _, kind in pieces} - {NORMAL, UNKNOWN, CONTROL, BYTE_PIECE}
    if odd or normalizer.get(2, [b""])[-1] or normalizer.get(4, [1])[-1] or trainer.get(24, [0])[-1]:
        raise ValueError(f"{path} rewrites text or has symbols of its own; add a tokenizer.json to the folder")
    return pieces, bool(trainer.get(35, [0])[-1]), bool(normalizer.get(3, [1])[-1])


def fields(message):
    """One protobuf message -> {field number: [values]}; a value is an int (varint) or bytes (everything else)."""
    found, at = {}, 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte, at = message[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            value = varint()
        else:
            size = {1: 8, 5: 4}.get(key & 7) or varint()
            if key & 7 not in (1, 2, 5) or at + size > len(message):
                raise ValueError("not a protobuf message, or cut short")
            value, at = message[at:at + size], at + size
        found.setdefault(key >> 3, []).append(value)
    return found


def rebuild(tokenizer, normalizer, pre_tokenizer, empty=False):
    """The same model (shared, not copied) and added tokens, or an empty model, in another pipeline."""
    new = tokenizers.Tokenizer(models.BPE() if empty else tokenizer.model)
    if normalizer:
        new.normalizer = normalizer
    if pre_tokenizer:
        new.pre_tokenizer = pre_tokenizer
    if not empty:
        new.add_tokens([token for _, token in sorted(tokenizer.get_added_tokens_decoder().items())])
    return new
