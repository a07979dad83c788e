"""Muon (Jordan 2024): a matrix moves by its gradient with all singular values made alike.

    momentum    m <- 0.95 m + 0.05 g          and Nesterov's look ahead: u = 0.05 g + 0.95 m
    step        W <- W - rate sqrt(max(1, out / in)) U V^T        where u = U S V^T

So a direction in which the gradient is small is learned as fast as one in which it is large. U V^T
comes without S, by matrix products alone. As torch.optim.Muon, which multiplies in bf16 always: on
a processor that is slow in bf16 that took half of a step of the miniature.
"""
import math

import torch

from minillava.on_cpu import product_dtype

MOMENTUM = 0.95
# The polynomial's coefficients. Applied five times, it brings all singular values between 0.001
# and 1 to between about 0.7 and 1.2.
A, B, C = 3.4445, -4.7750, 2.0315
STEPS = 5


class Muon(torch.optim.Optimizer):
    """params: matrices alone."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        # PyTorch's checkpoints give a closure, which is None.
        for group in self.param_groups:
            for (outputs, inputs), alike in by_shape(group["params"]).items():
                steps = orthogonal(torch.stack([self.ahead(p) for p in alike]))  # [N,O,I]
                rate = group["lr"] * math.sqrt(max(1, outputs / inputs))
                for p, step in zip(alike, steps):
                    p.add_(step, alpha=-rate)

    def ahead(self, p):
        """The gradient, smoothed by its momentum."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        momentum = state["momentum_buffer"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(momentum, MOMENTUM)


def by_shape(params):
    """{shape: those of it that have a gradient}: together small ones take a quarter of the time."""
    found = {}
    for p in params:
        if p.grad is not None:
            found.setdefault(p.shape, []).append(p)
    return found


def orthogonal(u):
    """Each u [N,O,I] = U S V^T -> about U V^T, by Newton and Schulz's iteration.

    With x = U s V^T, a x + b x x^T x + c x x^T x x^T x is U (a s + b s^3 + c s^5) V^T.
    """
    x = u.to(product_dtype(torch.bfloat16, u.device))
    tall = x.shape[1] > x.shape[2]
    if tall:  # the smaller side gives the smaller products
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value is above 1

    for _ in range(STEPS):
        squares = x @ x.mT                                    # U s^2 U^T
        factors = torch.baddbmm(squares, squares, squares, beta=B, alpha=C)
        x = torch.baddbmm(x, factors, x, beta=A)
    return x.mT if tall else x
