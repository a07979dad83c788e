"""What LLaVA takes ready-made, made here in miniature: a CLIP and a Vicuna for the toy world.

    python -m minillava.toy_backbones --out runs/backbones      # both, about 25 minutes on 2 cores

The toy CLIP learns by contrast between pictures and captions (Radford et al. 2021, figure 3) and never sees a question.
The toy Vicuna learns from text alone: it reads a scene in words and answers questions about it, so that it can already
look up, count and compare when LLaVA gives it eyes. Both are saved in the official layouts.
"""
import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from minillava import toy_world
from minillava.language import LanguageConfig, LanguageModel
from minillava.model import IGNORE_INDEX, LlavaConfig
from minillava.optim import forward_in, make_optimizers, set_lr
from minillava.vision import Encoder, VisionConfig, VisionTower, preprocess

VISION = VisionConfig(hidden_size=96, intermediate_size=384, num_hidden_layers=4, num_attention_heads=3, image_size=72,
                      patch_size=12)
TEXT = dict(hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=3, max_position_embeddings=96)


def language_config(vocab_size):
    return LanguageConfig(vocab_size=vocab_size, hidden_size=128, intermediate_size=344, num_hidden_layers=4,
                          num_attention_heads=4, max_position_embeddings=1024, rms_norm_eps=1e-5)


# ------------------------------------------------------------------------------------------------------------ toy CLIP
