"""The eye: image preprocessing and the CLIP vision transformer, Z_v = g(X_v) in LLaVA section 4.1.

LLaVA keeps CLIP frozen and reads its *grid* features: the output of the last block but one, without the class token.
CLIP's loss only ever looked at the class token, so the last block has unlearned what a single patch shows.
Parameter names and the config are those of openai/clip-vit-large-patch14 on disk, less the prefix `vision_model.`.
"""
from dataclasses import dataclass

import torch
from torch import nn

from minillava.attention import attention


@dataclass(frozen=True)
class VisionConfig:
    """`vision_config` of a CLIP config.json; a field that a file leaves out has the default it has in transformers."""
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32
    layer_norm_eps: float = 1e-5

    @property
    def num_patches(self):
        return (self.image_size // self.patch_size) ** 2


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x, is_causal):
        B, T, D = x.shape
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (project(x).view(B, T, self.heads, -1).transpose(1, 2) for project in projections)
        return self.out_proj(attention(q, k, v, is_causal=is_causal).transpose(1, 2).reshape(B, T, D))


class MLP(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * torch.sigmoid(1.702 * x))  # quick_gelu: the exact GELU is not what CLIP was trained with


class Block(nn.Module):
    """A pre-norm transformer block; CLIP's text tower has the same one, with is_causal."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x, is_causal=False):
        x = x + self.self_attn(self.layer_norm1(x), is_causal)
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))


class Embeddings(nn.Module):
    def __init__(self, config):
        super().__init__()
        D, P = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(D) * D**-0.5)
        self.patch_embedding = nn.Conv2d(3, D, kernel_size=P, stride=P, bias=False)
        self.position_embedding = nn.Embedding(config.num_patches + 1, D)

    def forward(self, pixels):
        patches = self.patch_embedding(pixels).flatten(2).transpose(1, 2)  # [B,3,S,S] -> [B,N,D]
        first = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight  # [B,1+N,D]


class VisionTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # sic: so it is spelled on disk
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # for the class token alone

    def hidden_state(self, pixels, layer):
        """[B,3,S,S] -> [B,1+N,D]: what goes into the blocks for layer 0, the output of block k for layer k; -1: the last."""
        x = self.pre_layrnorm(self.embeddings(pixels))
        for block in self.encoder.layers[: layer if layer >= 0 else len(self.encoder.layers) + 1 + layer]:
            x = block(x)
        return x

    def forward(self, pixels, layer=-2):
        """[B,3,S,S] -> [B,N,D], the grid features; blocks above the asked layer are not run."""
        return self.hidden_state(pixels, layer)[:, 1:]
