"""Softmax attention (Vaswani et al. 2017, section 3.2.1, equation 1), and who may look at whom.

    attention(q, k, v) = softmax(q k^T / sqrt(C)) v

One function serves CLIP, which looks everywhere, and LLaMA, which looks back only.
"""
import math

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# From so many queries or keys on, of all heads and rows, the plain formula may be the faster one on
# a CPU; and so many queries of a text it takes at a time.
MANY = 2048
QUERIES = 128
# Intel's AMX multiplies bf16 in tiles: with it the fused kernel is the faster one, forwards.
AMX = torch.cpu.get_capabilities().get("amx_bf16", False)
# From so many numbers to a row on, what training keeps of them is worth computing again.
WORTH_SAVING = 2**18


def attention(q, k, v, mask=None, is_causal=False):
    """q [B,H,T,C] over k and v [B,G,K,C] -> [B,H,T,C]; G divides H: H / G queries share a key.

    mask: bool, True where a query may look. Without one a GPU runs FlashAttention.
    """
    # Two cases have ways of their own, for speed alone: they stand at the end of this file.
    if q.shape[2] == 1:
        return attention_of_one(q, k, v, mask)
    if by_formula_on_cpu(q, k, mask, is_causal):
        return recomputed(attention_by_formula, q, k, v, is_causal)

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


# ---- the same, sooner: a first reading may stop here ----


def attention_of_one(q, k, v, mask=None):
    """The same for one new token, as in decoding: q [B,H,1,C], mask [B,1,1,K] -> [B,H,1,C]."""
    # The queries that share a key look at it together, as if they were tokens: [B,G,H/G,C].
    # On a CPU, at 700 keys for 32 queries in groups of 8, a sixteenth of the time.
    together = q.reshape(len(q), k.shape[1], -1, q.shape[-1])

    if not alone_on_cpu(together, k):
        return F.scaled_dot_product_attention(together, k, v, mask).reshape(q.shape)

    # Keys times queries, not queries times keys: each key is read as it lies in memory.
    scores = (k @ (together * q.shape[-1] ** -0.5).mT).mT  # [B,G,H/G,K]
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1) @ v).reshape(q.shape)


def alone_on_cpu(together, k):
    """Whether the formula is the faster way for one token: a query to each of many keys.

    Measured on one core of an EPYC, 32 heads of 128 over 690 keys: 1.8 ms in bf16 and 2.0 in fp32
    here, 5.2 and 3.0 in the fused kernel. On a Xeon with AMX 1.8 and 1.5 here, 0.6 and 1.0 there.
    """
    alone = together.shape[2] == 1 and k.shape[:3].numel() >= MANY
    return k.device.type == "cpu" and alone and not AMX


def by_formula_on_cpu(q, k, mask, is_causal):
    """Whether the formula is the faster way: whole texts in bf16, learned from or not too small."""
    plain = mask is None and (q.shape[2] == k.shape[2] or not is_causal)
    worthwhile = q.requires_grad or q.shape[:3].numel() >= MANY and not AMX
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and plain and worthwhile


def attention_by_formula(q, k, v, is_causal):
    """The same, written out. In bf16 PyTorch's fused kernel is slow on a CPU, most so its backward.

    Measured on one core of an EPYC, here and in the fused kernel. Forward and backward, 12 heads of
    64: 4 x 384 tokens 60 and 99 ms. Forward alone: CLIP's 577 tokens, 16 heads of 64, 14 and 22 ms;
    640 tokens, 32 heads that share 4 keys, 22 and 40 ms. In fp32 the fused kernel is faster. On a
    Xeon with AMX it takes 6.5 and 12 ms for these, the formula 19 and 17; there and back 57 and 45.
    """
    B, H, T, C = q.shape
    G = k.shape[1]
    # The queries that share a key look at it together, as if they were tokens.
    q = (q * C**-0.5).reshape(B * G, H // G, T, C)
    k, v = k.flatten(0, 1), v.flatten(0, 1)                               # [B*G,K,C]

    # Some queries at a time: none need look beyond the last of them, which spares a third.
    step = QUERIES if is_causal else T
    parts = []
    for start in range(0, T, step):
        some = q[:, :, start : start + step]                              # [B*G,H/G,t,C]
        t = some.shape[2]
        seen = start + t if is_causal else k.shape[1]
        # -inf above the diagonal: what comes later has probability 0. It is added if is_causal.
        future = torch.full((t, seen), -math.inf, dtype=q.dtype).triu(1 + start).repeat(H // G, 1)
        scores = torch.baddbmm(future, some.flatten(1, 2), k[:, :seen].mT, beta=int(is_causal))
        y = scores.softmax(-1) @ v[:, :seen]                              # [B*G,H/G*t,C]
        parts.append(y.view(B, H, t, C))
    return torch.cat(parts, dim=2)


def recomputed(step, x, *others):
    """step(x, *others), a cheap one: what a CPU learns through it is computed again, not kept.

    Autograd keeps what each operation needs on the way back: of an RMSNorm x twice in fp32, of
    attention the [T,K] matrix. Here the inputs alone stay. A third less memory for the activations
    of a block, in bf16, for 3 % of its time; a GPU has kernels of its own that keep little. In the
    miniature the bookkeeping alone would take a sixth of a step: small tensors are kept.
    """
    small = x.numel() < WORTH_SAVING * len(x)
    if small or not x.requires_grad or x.device.type != "cpu":
        return step(x, *others)
    return checkpoint(step, x, *others, use_reentrant=False, preserve_rng_state=False)
