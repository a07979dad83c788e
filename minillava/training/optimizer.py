"""Optimiser, schedule and mixed precision, as every training here uses them.

LLaVA trains with AdamW, cosine and 3 % warm-up (section 5; scripts/v1_5/*.sh). The miniature gives its matrices to Muon
(Jordan 2024), which reaches the same loss in a third of the steps at this size.
"""
import math

import torch
from torch import nn
from torch.func import functional_call


def make_optimizers(model, lr, muon_lr=None):
    """AdamW over what requires a gradient; with `muon_lr`, Muon over the matrices inside the blocks."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    matrices = [p for name, p in trained.items() if muon_lr and p.ndim == 2 and ".layers." in name]
    rest = [p for p in trained.values() if not any(p is m for m in matrices)]
    optimizers = [torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.999), weight_decay=0.0, fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_lr(optimizers, step, steps, warmup=0.03):
    """Linear warm-up over the first 3 % of the steps, then half a cosine down to 0; returns the first group's rate."""
    ramp = math.ceil(warmup * steps)
    progress = (step - ramp) / max(1, steps - ramp)
    scale = (step + 1) / ramp if step < ramp else 0.5 * (1 + math.cos(math.pi * progress))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak_lr"]
    return optimizers[0].param_groups[0]["lr"]


def take_step(optimizers):
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


class _ForwardBackward(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        loss = self.model(*args, **kwargs)
        loss.backward()
        return loss.detach()


def forward_backward_in(dtype, model, *args, **kwargs):
    """loss = model(...) and its backward in `dtype`, while parameters, gradients and optimiser stay fp32: one cast per
    weight and step. The backward runs within the call, since activation checkpointing computes with the cast weights again.
    """
    weights = {f"model.{name}": p.to(dtype) for name, p in model.named_parameters()}
    return functional_call(_ForwardBackward(model), weights, args, kwargs)
