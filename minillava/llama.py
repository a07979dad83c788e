"""The mouth: the LLaMA decoder, f_phi in LLaVA section 4.1, from embeddings to hidden states.

It takes embeddings rather than ids, because image features go in among the words. RMSNorm before each half of a block,
rotary positions, grouped-query attention, SwiGLU (LLaMA, section 2.2). Parameter names are those of a
LlamaForCausalLM on disk, less the prefix `model.`.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from minillava.attention import attention


@dataclass(frozen=True)
class LanguageConfig:
    """`config.json` of a Llama; a field that a file leaves out has the default it has in transformers."""
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
        object.__setattr__(self, "num_key_value_heads", self.num_key_value_heads or self.num_attention_heads)
        object.__setattr__(self, "head_dim", self.head_dim or self.hidden_size // self.num_attention_heads)


class KVCache:
    """Keys and values of every layer, allocated once: prefill, decoding and later turns write into the same memory.

    Rows of unequal length stand right-aligned; `start` [B] is where each row's first real token lies (None: all at 0).
    """

    def __init__(self, config, batch, max_length, device, dtype, start=None):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, max_length, config.head_dim)
        self.keys, self.values = (torch.zeros(shape, device=device, dtype=dtype) for _ in range(2))
        self.length, self.start = 0, start

    def update(self, layer, k, v):
        """Writes k, v [B,KVH,T,C] after what is there and returns all so far, [B,KVH,length+T,C]."""
        end = self.length + k.shape[2]
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def rope_table(config, positions):
    """positions [B,T] or [1,T] -> cos, sin [B,1,T,C] in fp32. RoFormer eq. 34; pairs are (i, i + C/2), as on disk."""
    inverse = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, device=positions.device) / config.head_dim)
    if config.rope_scaling is not None:
        inverse = scale_rope(inverse, config.rope_scaling)
    angles = positions[:, None, :, None] * inverse
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def scale_rope(inverse, scaling):
    """Frequencies [C/2] for a context longer than the one of pretraining: divided by `factor`; Llama-3 divides only the
    slow ones, which turn less than `low_freq_factor` times in the old context, and blends up to `high_freq_factor`."""
    if scaling["rope_type"] == "linear":
        return inverse / scaling["factor"]
    turns = scaling["original_max_position_embeddings"] * inverse / (2 * math.pi)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return inverse * kept + inverse / scaling["factor"] * (1 - kept)


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-b, a], dim=-1) * sin


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        h = x.float()  # the mean of squares overflows fp16 and loses digits in bf16
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, C = config.hidden_size, config.head_dim
        self.head_dim = C
        self.q_proj = nn.Linear(D, config.num_attention_heads * C, bias=False)
        self.k_proj = nn.Linear(D, config.num_key_value_heads * C, bias=False)
        self.v_proj = nn.Linear(D, config.num_key_value_heads * C, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * C, D, bias=False)

    def forward(self, x, rope, mask, cache, layer):
        B, T, _ = x.shape
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (project(x).view(B, T, -1, self.head_dim).transpose(1, 2) for project in projections)
        q, k = rotate(q, *rope), rotate(k, *rope)  # [B,H,T,C], [B,KVH,T,C]
        if cache is not None:
            k, v = cache.update(layer, k, v)
        y = attention(q, k, v, mask, is_causal=mask is None and T > 1)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, inner = config.hidden_size, config.intermediate_size
        self.gate_proj, self.up_proj = nn.Linear(D, inner, bias=False), nn.Linear(D, inner, bias=False)
        self.down_proj = nn.Linear(inner, D, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x, rope, mask, cache, layer):
        x = x + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.checkpointing = config, False
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, embeddings, cache=None):
        """[B,T,D] -> hidden states [B,T,D]; `lm_head` makes logits of those that are wanted.

        Without a cache: whole sequences, padded on the right (the causal mask hides what comes after, so no mask is
        needed). With one: the next T tokens of each row.
        """
        T, device = embeddings.shape[1], embeddings.device
        past, start = (cache.length, cache.start) if cache is not None else (0, None)
        index = torch.arange(past, past + T, device=device)
        positions, mask = index[None], None  # [1,T]
        if start is not None:
            positions = (positions - start[:, None]).clamp(min=0)  # [B,T]: the first real token is at position 0
        if start is not None or (past and T > 1):
            keys = torch.arange(past + T, device=device)
            mask = (keys <= index[:, None])[None]  # [1,T,S]
            if start is not None:  # a padding query sees itself, for a row without keys would be NaN
                mask = mask & ((keys >= start[:, None, None]) | (keys == index[:, None]))
            mask = mask[:, None]  # [B,1,T,S]
        cos, sin = rope_table(self.config, positions)
        rope = cos.to(embeddings.dtype), sin.to(embeddings.dtype)
        x = embeddings
        for i, block in enumerate(self.layers):
            if self.checkpointing and torch.is_grad_enabled():  # keep what goes in, compute the rest again on the way back
                x = checkpoint(block, x, rope, mask, cache, i, use_reentrant=False)
            else:
                x = block(x, rope, mask, cache, i)
        if cache is not None:
            cache.length += T
        return self.norm(x)
