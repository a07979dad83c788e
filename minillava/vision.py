"""The eye: image preprocessing and the CLIP vision transformer, Z_v = g(X_v) in LLaVA section 4.1.

LLaVA keeps CLIP frozen and reads its *grid* features: the output of the last block but one, without the class token.
CLIP's loss only ever looked at the class token, so the last block has unlearned what a single patch shows.
Parameter names and the config are those of openai/clip-vit-large-patch14 on disk, less the prefix `vision_model.`.
"""
import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn

IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's training images, RGB in 0..1
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


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


def load_image(path):
    """An image file -> PIL RGB, as a person sees it; OSError or ValueError with one line if it cannot be had."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at twice that size it is an error
            with Image.open(path) as image:
                return to_rgb(image)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no image {path}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise type(error)(f"the image {path} cannot be opened: {error.strerror}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image, or of a kind that Pillow does not know") from None
    except Image.DecompressionBombError:
        raise ValueError(f"the image {path} has over {2 * Image.MAX_IMAGE_PIXELS:,} pixels; make it smaller") from None
    except Exception as error:  # each of Pillow's decoders has its own way to say that a file is broken
        raise ValueError(f"the image {path} is damaged: {error}") from None


def to_rgb(image):
    """Any PIL image -> RGB, as a person sees it: turned as its EXIF says, on white where transparent, 16 bits as 8.

    The official code calls convert("RGB") alone, which lays the image on its side, shows the colour hidden under what
    is transparent (mostly black) and makes nearly all of a 16-bit picture white.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # I;16 and its kin, I
        values = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocess(images, config):
    """PIL images -> float32 [B,3,S,S], as CLIPImageProcessor does it; S, aspect, mean and std are a LlavaConfig's."""
    return torch.stack([_preprocess_one(to_rgb(image), config) for image in images])


def _preprocess_one(image, config):
    size, pad, side = config.vision.image_size, config.image_aspect_ratio == "pad", max(image.size)
    if (side**2 if pad else size**2 * side / min(image.size)) > 2**29:  # a strip of 1 x 60000 becomes gigabytes
        raise ValueError(f"an image of {image.width} x {image.height} pixels is too long and thin; cut it")
    if pad:  # LLaVA-1.5 fine-tuning: nothing of the picture is cut off
        square = Image.new("RGB", (side, side), tuple(int(255 * mean) for mean in config.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    short, long = sorted(image.size)
    resized = [size if edge == short else int(size * long / short) for edge in image.size]
    image = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    image = image.crop((left, top, left + size, top + size))
    pixels = (np.asarray(image) * (1 / 255)).astype(np.float32)  # scaled in float64 first: the official processor does
    pixels = (pixels - np.float32(config.image_mean)) / np.float32(config.image_std)
    return torch.from_numpy(pixels).permute(2, 0, 1)  # [H,W,3] -> [3,H,W]


def attention(q, k, v, mask=None, is_causal=False):
    """Softmax attention, q [B,H,T,C] over k and v [B,KVH,S,C] -> [B,H,T,C]; mask is bool, True where a query may look.

    FlashAttention is what scaled_dot_product_attention runs on a GPU when `mask` is None.
    """
    if q.device.type == "cpu" and mask is None and q.shape[2] == k.shape[2] <= 512:
        # Measured on two cores at the miniature's size, forward and backward in bf16: 7 ms so, 17 ms through SDPA.
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # [B,H,T,T]
        if is_causal:
            scores = scores + torch.full(scores.shape[-2:], -math.inf, dtype=scores.dtype).triu(1)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=k.shape[1] != q.shape[1])


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
