"""Softmax attention (Vaswani et al. 2017, section 3.2.1, equation 1), and who may look at whom.

    attention(q, k, v) = softmax(q k^T / sqrt(C)) v

One function serves CLIP, which looks everywhere, and LLaMA, which looks back only.
"""
import math

import torch
import torch.nn.functional as F

from minillava.on_cpu import AMX, MANY, attention_on_cpu, by_formula_on_cpu


def attention(q, k, v, mask=None, is_causal=False, keys=None):
    """q [B,H,T,C] over k and v [B,G,K,C] -> [B,H,T,C]; G divides H: H / G queries share a key.

    mask: bool, True where a query may look. Without one a GPU runs FlashAttention.
    keys: how many of the K are looked at; what lies behind is padding, or a cache's free room.
    """
    if keys is None:
        keys = k.shape[2]

    # One new token may look at all keys. `is_causal` would take it for the first of all tokens,
    # which may look at the first key alone.
    if q.shape[2] == 1:
        return attention_of_one(q, k, v, mask, keys)
    k, v = k[:, :, :keys], v[:, :, :keys]
    # On some CPUs the formula, written out, is faster than the fused kernel: see on_cpu.py.
    if by_formula_on_cpu(q, k, mask, is_causal):
        return attention_on_cpu(q, k, v, is_causal)

    # The fused kernel: the [T,K] matrix of the softmax never stands in memory.
    shared = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=shared)


def token_positions(length, past=0, start=None):
    """Where each new token stands in its own text -> int64 [B,T], or a slice if all rows are alike.

    Rows of unequal length are padded on the left, and a row's first real token stands at 0.
    Three rows, of which two begin with padding (start = 0, 1, 2), after past = 2 cached tokens:

        start 0    the cat | sat on it      2 3 4
        start 1      .  a  | dog ran on     1 2 3
        start 2      .  .  | who is it      0 1 2
    """
    if start is None:
        return slice(past, past + length)
    places = torch.arange(past, past + length, device=start.device)  # [T]
    # Padding has no position of its own; 0 is as good as any.
    return (places - start[:, None]).clamp(min=0)                    # [B,T]


def attention_mask(length, past=0, start=None, device=None):
    """Which keys each new token may look at -> bool [B,1,T,K], or None where none is needed.

    Two new tokens after three cached ones, in a row that begins with one padding token (start = 1):

        key        0 1 2 3 4
        token 3    . x x x .      not the padding, not the future
        token 4    . x x x x

    None in training and in a prefill, where `is_causal` says it all (text is padded on the right,
    and nobody looks ahead at the padding), and for one token alone, which may look at all keys.
    Several tokens after cached ones do need it: `is_causal` would count their places from 0, and
    let the first of them look at the first key alone.
    """
    if start is None and (past == 0 or length == 1):
        return None

    tokens = torch.arange(past, past + length, device=device)[:, None]  # [T,1]
    keys = torch.arange(past + length, device=device)                   # [K]
    mask = (keys <= tokens)[None]                                       # [1,T,K]
    if start is not None:
        is_text = keys >= start[:, None, None]                          # [B,1,K]
        is_self = keys == tokens                                        # [T,K]
        # Padding looks at itself: the softmax over no key at all would be NaN.
        mask = mask & (is_text | is_self)                               # [B,T,K]
    # The same for all heads.
    return mask[:, None]


# ---- one new token: a first reading may stop here ----


def attention_of_one(q, k, v, mask, keys):
    """The same for one new token, as in decoding: q [B,H,1,C], mask [B,1,1,keys] -> [B,H,1,C]."""
    # The queries that share a key look at it together, as if they were tokens: [B,G,H/G,C].
    # On a CPU, at 700 keys for 32 queries in groups of 8, a sixteenth of the time.
    together = q.reshape(len(q), k.shape[1], -1, q.shape[-1])

    seen = k[:, :, :keys]
    if not alone_on_cpu(together, seen):
        y = F.scaled_dot_product_attention(together, seen, v[:, :, :keys], mask)
        return y.reshape(q.shape)

    # Keys times queries, not queries times keys: each key is read as it lies in memory. The free
    # room is multiplied too: of another size for each token, oneDNN would prepare each product anew
    # and keep what it prepared, which took a 7B from 5.4 to 9 GB within 250 tokens.
    scores = (k @ (together * q.shape[-1] ** -0.5).mT).mT  # [B,G,H/G,K]
    scores[..., keys:] = -math.inf
    if mask is not None:
        scores[..., :keys].masked_fill_(~mask, -math.inf)
    return (scores.softmax(-1) @ v).reshape(q.shape)


def alone_on_cpu(together, k):
    """Whether the formula is the faster way for one token: a query to each of many keys.

    Measured on one core of an EPYC, 32 heads of 128 over 690 keys: 1.8 ms in bf16 and 2.0 in fp32
    here, 5.2 and 3.0 in the fused kernel. On a Xeon with AMX 1.8 and 1.5 here, 0.6 and 1.0 there.
    """
    alone = together.shape[2] == 1 and k.shape[:3].numel() >= MANY
    return k.device.type == "cpu" and alone and not AMX
