"""Optimiser, schedule and mixed precision, as every training here uses them.

LLaVA trains with AdamW, cosine and 3 % warm-up (section 5; scripts/v1_5/*.sh). The miniature gives
its matrices to Muon (Jordan 2024), which reaches the same loss in a third of the steps there.
"""
import math

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.func import functional_call

from minillava.training.muon import Muon


def make_optimizers(model, lr, muon_lr=None, projector_lr=None, tower_lr=None, beta2=0.999):
    """AdamW over what requires a gradient; with `muon_lr`, Muon over the blocks' matrices.

    projector_lr, tower_lr: rates of their own, with AdamW for all that is theirs.
    """
    matrices, projector, tower, others = [], [], [], []
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        if tower_lr and "vision_tower." in name:
            tower.append(p)
        elif muon_lr and p.ndim == 2 and ".layers." in name:
            matrices.append(p)
        elif projector_lr and "mm_projector." in name:
            projector.append(p)
        else:
            others.append(p)

    rates = (others, lr), (projector, projector_lr), (tower, tower_lr)
    groups = [{"params": params, "lr": rate} for params, rate in rates if params]
    optimizers = [torch.optim.AdamW(groups, betas=(0.9, beta2), weight_decay=0.0, fused=True)]
    if matrices:
        optimizers.append(Muon(matrices, muon_lr))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


def set_lr(optimizers, step, steps, warmup=0.03):
    """Linear warm-up over the first 3 % of the steps, then half a cosine down to 0.

    The cosine is that of transformers, whose Trainer the official runs use. Its warm-up begins at
    0, so that its first step changes nothing; this one is a step ahead, and each step learns.
    Returns the first group's rate.
    """
    ramp = math.ceil(warmup * steps)
    if step < ramp:
        scale = (step + 1) / ramp
    else:
        progress = (step - ramp) / max(1, steps - ramp)
        scale = 0.5 * (1 + math.cos(math.pi * progress))

    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = scale * group["peak_lr"]
    return optimizers[0].param_groups[0]["lr"]


def take_step(optimizers):
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def clip_gradients(model, limit=None):
    """Scales all gradients so that together their norm is at most `limit`; None leaves them.

    -> the norm before.
    """
    trained = [p for p in model.parameters() if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in trained])
    if limit is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
    return norm


def loss_and_gradients(model, dtype, tensors, divisor):
    """Forward and backward of one micro-batch -> its loss, detached; the gradients are in `p.grad`.

    tensors: as in a StepBatch; divisor: what the summed loss is divided by.
    """
    input_ids, labels, pixels, *places = tensors
    inputs = (input_ids, pixels, labels, divisor, places)
    if isinstance(model, FSDPModule):  # casts the weights by itself
        return _ForwardBackward(model)(*inputs)
    return forward_backward_in(dtype, model, *inputs)


@torch.no_grad()
def summed_loss(model, dtype, tensors):
    """The loss of one micro-batch, summed over its supervised tokens, and nothing is learned."""
    input_ids, labels, pixels, *places = tensors
    inputs = (input_ids, pixels, labels, 1, places)
    if isinstance(model, FSDPModule):
        return model(*inputs)
    return functional_call(model, cast_weights(model, dtype), inputs)


def forward_backward_in(dtype, model, *args, **kwargs):
    """loss = model(...) and its backward in `dtype`, while weights and gradients stay fp32.

    Mixed precision as DeepSpeed and FSDP have it: each weight is cast once, and all that follows
    is in bf16. Autocast casts operation by operation, and would leave the residual stream in fp32.
    `functional_call` lends the cast weights to the model for one call only, and activation
    checkpointing computes with them again in the backward: so the backward runs within that call.
    """
    whole = _ForwardBackward(model)
    return functional_call(whole, cast_weights(whole, dtype), args, kwargs)


def cast_weights(model, dtype):
    """{name: weight in `dtype`}; but a table of words stays as it is, unless it is the head too.

    Few of its rows are looked up: `Llava.embed` casts those, and their gradients add up in fp32.
    """
    weights = dict(model.named_parameters())
    tables = {name for name in weights
              if name.endswith("embed_tokens.weight")
              and name.replace("embed_tokens", "lm_head") in weights}
    return {name: p if name in tables else p.to(dtype) for name, p in weights.items()}


class _ForwardBackward(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *args, **kwargs):
        loss = self.model(*args, **kwargs)
        loss.backward()
        return loss.detach()
