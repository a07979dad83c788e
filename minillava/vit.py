"""CLIP's vision transformer: Z_v = g(X_v) in section 4.1 (Radford et al. 2021, section 2.4).

A picture is cut into patches, each patch becomes a vector, and a transformer lets them look at
each other. LLaVA keeps CLIP frozen and reads its *grid*: one vector for each patch, after the last
block but one. After the last one ScienceQA drops from 90.92 to 89.96 % (section 5.2). The paper
supposes that the last block cares more for the whole picture than for its details: CLIP's own loss
only looked at the class token.

Names are those of openai/clip-vit-large-patch14 on disk, less the prefix `vision_model.`.
"""
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from minillava.attention import attention


@dataclass(frozen=True)
class VisionConfig:
    """`vision_config` of a CLIP's config.json; what a file leaves out is as in transformers."""
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


class Embeddings(nn.Module):
    """Pixels -> one vector a patch, the class token in front, and each its position.

    336 x 336 pixels in patches of 14 x 14: a grid of 24 x 24, N = 576, and 577 tokens in all.
    """

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        P = config.patch_size
        self.class_embedding = nn.Parameter(nn.init.normal_(torch.empty(D), std=D**-0.5))
        # A convolution whose stride is its width: one matrix, applied to each patch by itself.
        self.patch_embedding = nn.Conv2d(3, D, kernel_size=P, stride=P, bias=False)
        self.position_embedding = nn.Embedding(config.num_patches + 1, D)

    def forward(self, pixels):
        # The grid of patches, then one row after the other: [B,3,S,S] -> [B,D,S/P,S/P] -> [B,N,D]
        grid = self.patch_embedding(pixels)
        patches = grid.flatten(2).transpose(1, 2)

        # The class token is the same for every picture; it collects what CLIP compares with a text.
        class_token = self.class_embedding.expand(len(pixels), 1, -1)  # [B,1,D]
        tokens = torch.cat([class_token, patches], dim=1)              # [B,1+N,D]

        # Attention knows no order: without this, a patch could be anywhere in the picture.
        return tokens + self.position_embedding.weight


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, is_causal, length=None):
        q = self.split_heads(self.q_proj(x))                # [B,H,T,C]
        k = self.split_heads(self.k_proj(x))
        v = self.split_heads(self.v_proj(x))

        # Keys behind the first `length` are padding, which nobody looks at.
        y = attention(q, k, v, is_causal=is_causal, keys=length)  # [B,H,T,C]

        # The heads side by side again.
        return self.out_proj(y.transpose(1, 2).flatten(2))  # [B,T,D]

    def split_heads(self, x):
        """[B,T,D] -> [B,H,T,C], C = D / H"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x):
        x = self.fc1(x)
        # "Quick GELU", which CLIP was trained with. The exact GELU gives features a little off.
        x = x * torch.sigmoid(1.702 * x)
        return self.fc2(x)


class Block(nn.Module):
    """A pre-norm transformer block; CLIP's text tower has the same one, with is_causal."""

    def __init__(self, config):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = Attention(config.hidden_size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config.hidden_size, config.intermediate_size)

    def forward(self, x, is_causal=False, length=None):
        # The tokens look at each other, then each is worked on by itself.
        x = x + self.self_attn(self.layer_norm1(x), is_causal, length)
        x = x + self.mlp(self.layer_norm2(x))
        return x


class Encoder(nn.Module):
    """The blocks, under their name on disk; `hidden_state` runs as many as are asked for."""

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))


class VisionTower(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        # Misspelt on disk, and so here.
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.encoder = Encoder(config)
        # For CLIP's loss alone, which normalizes the class token; LLaVA never runs it.
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)

    def hidden_state(self, pixels, layer):
        """[B,3,S,S] -> [B,1+N,D] after `layer` blocks; negative from the end: -1 is after the last.

        Blocks above the asked layer are not run.
        """
        blocks = self.encoder.layers
        # 24 blocks have 25 states, for the input is one too: -2 is what the 23rd block puts out.
        layer %= len(blocks) + 1

        x = self.pre_layrnorm(self.embeddings(pixels))  # [B,1+N,D]
        length = x.shape[1]
        x = padded(x)                                   # for speed alone, see below
        for block in blocks[:layer]:
            x = block(x, length=length)
        return x[:, :length]

    def forward(self, pixels, layer=-2):
        """[B,3,S,S] -> [B,N,D], the grid features."""
        tokens = self.hidden_state(pixels, layer)
        # The class token is dropped: LLaVA reads the grid alone.
        return tokens[:, 1:]


def padded(x):
    """One picture's tokens on a CPU, made a multiple of 8: [1,577,D] -> [1,584,D].

    577 rows, a prime, cannot be cut evenly: PyTorch multiplies them with a weight a quarter slower
    than 584, measured in bf16 on an EPYC.
    """
    if len(x) > 1 or x.device.type != "cpu":
        return x
    return F.pad(x, (0, 0, 0, -x.shape[1] % 8))
