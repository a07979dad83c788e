"""New words for a model, spelled like words that it knows: `--new-word pink=red,purple`.

What a tokenizer has in one piece, a model chooses at one place of its answer; what it has in
several, of which each must look at the picture again, is much harder to learn. The miniature says

    ▁small▁red▁square   in one piece, and   ▁small  ▁p  in  k  ▁square   in five

A BPE tokenizer is a list of merges, which join two pieces to one. A new word's stand at its end:

    ▁p + in,  ▁pin + k                        the word itself, from the pieces that it has today
    ▁small + ▁pink,  ▁small▁pink + ▁square    as there are  ▁small + ▁red,  ▁small▁red + ▁square

The rows of a new piece, in the embeddings and in the head, begin as the mean of its siblings' rows:
▁small▁pink▁square as that of ▁small▁red▁square and ▁small▁purple▁square. So words are named that
are like it: from there it is not far to what it means.

All other text keeps its ids, but for longer words that begin as the new one does: what "pinball"
had as ▁p and in becomes ▁pin, whose rows begin as the mean of these two.
"""
import re
from dataclasses import replace
from functools import partial

from torch import nn

from minillava.weights.saving import with_rows


def read_new_word(text):
    """"pink=red,green" -> ("pink", ("red", "green"))"""
    if not re.fullmatch(r"\w+=\w+(,\w+)*", text):
        raise ValueError(f"--new-word {text!r:.60} is not NEW=OLD,OLD,... "
                         "as in pink=red,purple")
    new, olds = text.split("=")
    return new, tuple(olds.split(","))


def learn_words(model, tokenizer, words):
    """Makes rows for new words, [(new, olds)] -> the Tokenizer that has them."""
    for new, olds in words:
        tokenizer, parents = spell_like(tokenizer, new, olds)
        make_rows(model, parents)
    return tokenizer


# ---- their spelling ----

def spell_like(tokenizer, new, olds):
    """-> (a Tokenizer with the word, {id of each new piece: ids whose mean its rows begin as})"""
    parsed = tokenizer.as_json()
    bpe = parsed["model"]
    refuse_words(tokenizer, bpe["type"], new, olds)
    old_merges = [tuple(merge) for merge in bpe["merges"]]
    old_ids = bpe["vocab"] | {token["content"]: token["id"] for token in parsed["added_tokens"]}

    # what is joined: the word itself, then what each old word is part of
    swaps = [swap_of(tokenizer, old, new) for old in olds]
    merges = word_merges(tokenizer, new, olds)
    for swap in swaps:
        merges += sibling_merges(old_merges, swap)
    there = set(old_merges)
    merges = [merge for merge in dict.fromkeys(merges) if merge not in there]

    # a piece that was not there has the next free id
    ids = dict(old_ids)
    parents = {}
    like = siblings(old_ids, swaps)
    for left, right in merges:
        piece = left + right
        if piece not in ids:
            ids[piece] = max(ids.values()) + 1
            halves = [parents.get(ids[half], [ids[half]]) for half in (left, right)]
            parents[ids[piece]] = like.get(piece, sum(halves, []))

    bpe["vocab"] = ids
    bpe["merges"] += [list(merge) for merge in merges]
    name_in_patterns(parsed["pre_tokenizer"], new, olds)
    return tokenizer.changed(parsed), parents


def word_merges(tokenizer, new, olds):
    """Those that join a word's pieces of today from the left on.

    With a space before it, and without, if an old word has such a piece too.
    """
    merges = []
    for space in (" ", ""):
        if any(len(tokenizer.pieces(space + old)) == 1 for old in olds):
            left, *others = tokenizer.pieces(space + new)
            for right in others:
                merges.append((left, right))
                left += right
    return merges


def sibling_merges(merges, swap):
    """(▁small, ▁red) -> (▁small, ▁pink), for every merge to a piece that has the old word in it."""
    found = []
    for left, right in merges:
        pair = swap(left), swap(right)
        if pair != (left, right) and "".join(pair) == swap(left + right):
            found.append(pair)
    return found


def siblings(ids, swaps):
    """{new piece: ids of the pieces that have an old word in the place of the new one}"""
    found = {}
    for piece, i in ids.items():
        for swap in swaps:
            if swap(piece) != piece:
                found.setdefault(swap(piece), []).append(i)
    return found


def swap_of(tokenizer, old, new):
    """A function of a piece: the new word in place of the old one, where that is a whole word.

    Of ▁red▁star, not of ▁reduce. Words are taken in the letters of the tokenizer.
    """
    space, old = split_space(tokenizer, old)
    _, new = split_space(tokenizer, new)
    whole_word = re.compile(f"(?<![^{space}]){re.escape(old)}(?![^{space}])")
    return partial(whole_word.sub, new)


def split_space(tokenizer, word):
    """-> ("▁", "red"); of Llama 3 ("Ġ", "red")"""
    piece = "".join(tokenizer.pieces(f" {word}"))
    return piece[0], piece[1:]


def name_in_patterns(pre_tokenizer, new, olds):
    """Where text is cut first and the pattern names an old word, it names the new one too."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer or {}])
    for step in steps:
        pattern = step.get("pattern", {})
        named = [old for old in olds if re.search(rf"\b{old}\b", pattern.get("Regex", ""))]
        if named:  # beside one of them is enough
            old = named[0]
            pattern["Regex"] = re.sub(rf"\b{old}\b", f"(?:{old}|{new})", pattern["Regex"])


def refuse_words(tokenizer, kind, new, olds):
    if kind != "BPE":
        raise ValueError("--new-word joins pieces, and this tokenizer is not a BPE, as LLaMA's is")
    unknown = [old for old in olds if len(tokenizer.pieces(f" {old}")) > 1]
    if unknown:
        raise ValueError(f"--new-word {new}: {unknown[0]} is no word of one piece to the tokenizer,"
                         " so it cannot show how a new one is spelled; name one that is")
    pieces = tokenizer.pieces(f" {new}")
    if len(pieces) == 1:
        raise ValueError(f"--new-word {new}: the tokenizer has it in one piece already; "
                         "it can be trained without")
    if any(re.fullmatch("<unk>|<0x[0-9A-F]{2}>", piece) for piece in pieces):
        raise ValueError(f"--new-word {new} has a character that the tokenizer does not know")


# ---- their rows ----

def make_rows(model, parents):
    """Embeddings and head grow where they must; each new row is the mean of its parents'."""
    language, config = model.language_model, model.config.language_config
    size = max([config.vocab_size - 1, *parents]) + 1
    grown = with_rows(dict(model.named_parameters()), size)
    for layer in ("embed_tokens", "lm_head"):
        rows = grown.get(f"language_model.{layer}.weight")
        if rows is not None:  # a tied head has none of its own
            rows = rows.detach().clone()
            for i, like in parents.items():
                rows[i] = rows[like].float().mean(0)
            getattr(language, layer).weight = nn.Parameter(rows)
    if config.tie_word_embeddings:
        language.lm_head.weight = language.embed_tokens.weight

    language.config = replace(config, vocab_size=size)
    model.config = replace(model.config, language_config=language.config)
