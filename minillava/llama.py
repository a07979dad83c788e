"""The LLaMA decoder: f_phi in section 4.1 (Touvron et al. 2023, section 2.2).

It takes embeddings, not ids, since image features stand among the words. Compared with the
transformer of 2017: the norm comes before each half of a block and has no mean (RMSNorm),
positions turn queries and keys (RoPE), the MLP has a gate (SwiGLU), and heads may share keys
(grouped queries).

Names are those of a LlamaForCausalLM on disk, less the prefix `model.`.
"""
import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from minillava.attention import attention, attention_mask, token_positions
from minillava.on_cpu import rms_norm, swiglu, zeros_apart

# A KV cache grows by so many tokens at a time.
GROWTH = 256


@dataclass(frozen=True)
class LanguageConfig:
    """config.json of a Llama; what a file leaves out is as in transformers."""
    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None  # None: one per head, as in LLaMA-1
    head_dim: int | None = None             # None: hidden_size / heads
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    rope_scaling: dict | None = None        # of Llama-3 or "linear", as in the file
    tie_word_embeddings: bool = False

    def __post_init__(self):
        kv_heads = self.num_key_value_heads or self.num_attention_heads
        head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        # The dataclass is frozen, so what follows from its other fields is set in this way.
        object.__setattr__(self, "num_key_value_heads", kv_heads)
        object.__setattr__(self, "head_dim", head_dim)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a weight for each channel."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x):
        # In fp32, where the mean of squares neither overflows (as in fp16) nor loses digits (bf16).
        return rms_norm(x, self.weight, self.eps)


def rotary_table(config, length, device, dtype):
    """-> [2,length,C]: cos and sin at positions 0, 1, ... RoFormer (Su et al. 2021), equation 34.

    The channels of a head are read as C/2 points in the plane, channel i with channel i + C/2. At
    position p, point i is turned by p * theta^(-2i/C). For C = 4 and theta = 10000, at p = 3:

        (x0, x2) by 3 radians         (x1, x3) by 3 / 100

    The product of a query and a key then depends on their distance, not on where they stand.
    Meta's own files pair channel 2i with 2i + 1; Hugging Face's, which are read here, have them
    in another order. Weights of one kind under the turns of the other fit, and talk nonsense.
    """
    # One frequency a point, [C/2]: from 1 radian a token down to almost none.
    even = torch.arange(0, config.head_dim, 2, device=device)
    frequencies = config.rope_theta ** (-even / config.head_dim)
    if config.rope_scaling is not None:
        frequencies = scale_frequencies(frequencies, config.rope_scaling)

    angles = torch.arange(length, device=device)[:, None] * frequencies  # [length,C/2]
    cos = torch.cat([angles.cos(), angles.cos()], dim=-1)                # [length,C]
    # The minus of "a cos - b sin" stands here, so that `rotate` only has to add.
    sin = torch.cat([-angles.sin(), angles.sin()], dim=-1)
    return torch.stack([cos, sin]).to(dtype)


def rotate(x, rope):
    """Turns the points (a, b) = (x_i, x_(i+C/2)) of x [B,H,T,C]: (a cos - b sin, b cos + a sin)."""
    cos, sin = rope
    # Half a roll exchanges the halves: [a, b] -> [b, a].
    exchanged = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, exchanged, sin)  # x * cos + exchanged * sin


def scale_frequencies(frequencies, scaling):
    """RoPE for a longer context than that of pretraining, [C/2] -> [C/2]; `scaling` as in the file.

    "linear" slows all down by `factor`. Llama-3 slows down what turns fewer than `low_freq_factor`
    times within the old context, leaves what turns more than `high_freq_factor` times, and mixes
    both in between.
    """
    slowed = frequencies / scaling["factor"]
    if scaling["rope_type"] == "linear":
        return slowed

    # Full turns within the context of pretraining.
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    low = scaling["low_freq_factor"]
    high = scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * kept + slowed * (1 - kept)


class KVCache:
    """Keys and values of all layers: a token that was run once is never run again.

    It grows with the text, GROWTH tokens at a time. Rows of unequal length end together; `start`
    [B] says where the first real token of each lies (None: all at 0).
    """

    def __init__(self, config, batch, device, dtype, start=None):
        empty = torch.empty(batch, config.num_key_value_heads, 0, config.head_dim,
                            device=device, dtype=dtype)
        self.config = config
        self.keys = [empty] * config.num_hidden_layers    # [B,G,room,C] each
        self.values = [empty] * config.num_hidden_layers
        self.rope = empty.new_empty(2, 0, config.head_dim)  # [2,room,C]
        self.start = start
        self.length = 0

    def make_room(self, length):
        """Room for `length` tokens in all; the rotary table grows along."""
        if length <= self.rope.shape[1]:
            return
        wanted = math.ceil(length / GROWTH) * GROWTH
        # Layer by layer, so that only one of them is there twice at a time.
        for layer in range(len(self.keys)):
            self.keys[layer] = with_room(self.keys[layer], wanted)
            self.values[layer] = with_room(self.values[layer], wanted)
        # The table comes last and tells the room: where memory ran out before, all is tried again.
        self.rope = rotary_table(self.config, wanted, self.rope.device, self.rope.dtype)

    def update(self, layer, k, v):
        """Writes k, v [B,G,T,C] after what is there -> all [B,G,room,C], and how many there are."""
        keys, values = self.keys[layer], self.values[layer]
        # `length` itself moves once a step, when all layers have written.
        end = self.length + k.shape[2]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys, values, end

    def clear(self):
        """All is forgotten. To zeros: NaN times a probability of 0 would be NaN in the next answer."""
        self.length = 0
        for values in self.values:
            values.zero_()


def with_room(x, length):
    """[B,G,room,C] -> [B,G,length,C], zeros behind"""
    shape = (*x.shape[:2], length, x.shape[3])
    zeros = zeros_apart(shape, x.dtype) if x.device.type == "cpu" else x.new_zeros(shape)
    zeros[:, :, : x.shape[2]] = x[:, :, :length]  # longer where memory ran out amid a growth
    return zeros


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023): H query heads, G heads of keys and values."""

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        C = config.head_dim
        self.head_dim = C
        self.q_proj = nn.Linear(D, config.num_attention_heads * C, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * C, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * C, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=False)

    def forward(self, x, rope, mask, cache, layer):
        q, k, v = self.project(x)                             # [B,T,H*C], twice [B,T,G*C]
        q = rotate(self.split_heads(q), rope)                 # [B,H,T,C]
        k = rotate(self.split_heads(k), rope)                 # [B,G,T,C]
        v = self.split_heads(v)                               # [B,G,T,C]

        # From here on k and v are those of the past as well, with free room behind: [B,G,K,C].
        keys = None
        if cache is not None:
            k, v, keys = cache.update(layer, k, v)

        # Nobody looks at what comes after: a mask says so already, if there is one.
        y = attention(q, k, v, mask, is_causal=mask is None, keys=keys)  # [B,H,T,C]
        return self.o_proj(y.transpose(1, 2).flatten(2))                 # [B,T,D]

    def project(self, x):
        """Queries, keys and values; fastest.py may make them in one product."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def split_heads(self, x):
        """[B,T,H*C] -> [B,H,T,C]"""
        return x.view(*x.shape[:-1], -1, self.head_dim).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020): W_down (silu(W_gate x) * W_up x), where silu(x) = x sigmoid(x).

    `up` says what, `gate` how much of it.
    """

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        inner = config.intermediate_size
        self.gate_proj = nn.Linear(D, inner, bias=False)
        self.up_proj = nn.Linear(D, inner, bias=False)
        self.down_proj = nn.Linear(inner, D, bias=False)

    def forward(self, x):
        gate, up = self.project(x)               # [B,T,inner] each
        return self.down_proj(swiglu(gate, up))  # silu(gate) * up, times W_down

    def project(self, x):
        """Gate and up; as above."""
        return self.gate_proj(x), self.up_proj(x)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rope, mask, cache, layer):
        # The tokens look back, then each is worked on by itself.
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer)
        x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class LanguageModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        # Whether training spares memory: a block keeps its input alone, and computes the rest again
        # on the way back.
        self.checkpointing = False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeddings, cache=None):
        """[B,T,D] embeddings -> [B,T,D] hidden states, which `lm_head` makes into logits.

        Without a cache: whole texts, padded on the right. With one: the next T tokens of each row.
        """
        rope, mask = self.rope_and_mask(embeddings, cache)

        # `hidden` is the stream that every block reads from and adds to.
        hidden = embeddings
        for layer, block in enumerate(self.layers):
            if self.checkpointing and torch.is_grad_enabled():
                block = partial(checkpoint, block, use_reentrant=False)
            hidden = block(hidden, rope, mask, cache, layer)

        if cache is not None:
            cache.length += embeddings.shape[1]
        return self.norm(hidden)

    def rope_and_mask(self, embeddings, cache):
        """Of the T new tokens: cos and sin at their positions, and which keys they may look at."""
        T, device = embeddings.shape[1], embeddings.device
        if cache is None:
            past, start = 0, None
            table = rotary_table(self.config, T, device, embeddings.dtype)
        else:
            past, start = cache.length, cache.start
            cache.make_room(past + T)
            table = cache.rope                         # [2,room,C]

        positions = token_positions(T, past, start)
        rope = table[:, positions].unsqueeze(-3)       # [2,1,T,C] or [2,B,1,T,C]
        mask = attention_mask(T, past, start, device)  # None where `is_causal` says it all
        return rope, mask
