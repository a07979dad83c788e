"""RMSNorm, SwiGLU and attention, sooner on a CPU: a first reading may pass by.

On a CPU PyTorch makes a norm and SwiGLU out of several steps. Every step reads and writes all
numbers, and autograd keeps what it needs of each for the way back. Attention is one kernel, slow in
bf16 on many a CPU; of its formula autograd would keep the [T,K] matrix. Here the gradients are
written out by hand: made from the inputs, which alone are kept, in as few steps as it takes. A GPU
has kernels of its own for all this, and runs those.

Small tensors are left to autograd: there it is faster to keep all that it needs.
Measured on one core of a Xeon with AMX, bf16, 4 x 384 tokens, there and back: RMSNorm over 768
channels 11 ms by autograd, 4 here; attention of 12 heads of 64 53 ms in the fused kernel, 33 here.

And which processor had better multiply in fp32 than in bf16, `is_slow` knows.
"""
import math
import mmap
import platform

import torch
import torch.nn.functional as F
from torch.autograd import Function

# Numbers in a row of the batch from which on the functions here are faster than PyTorch's own:
# a norm soon; SwiGLU and attention later, since keeping less costs time in a small tensor.
NORMED = 2**12
LARGE = 2**17
# Queries of a text that attention takes at a time.
QUERIES = 128
# Queries of all rows and heads (keys, for one new token) from which on the formula may be faster
# than the fused kernel.
MANY = 2048
# Intel's AMX multiplies bf16 in tiles: with it the fused kernel is the faster one, forwards.
AMX = torch.cpu.get_capabilities().get("amx_bf16", False)


def product_dtype(dtype, device):
    """The dtype to multiply in there: itself, or fp32 where a processor is slow in it."""
    return torch.float32 if device.type == "cpu" and is_slow(dtype) else dtype


def is_slow(dtype):
    """Whether this processor is slow in bf16 or fp16, for want of instructions, as many a laptop's.

    oneDNN does not multiply in it then, and PyTorch does so by plain loops. Measured with 640 rows of
    5632 x 2048 on an EPYC without AVX-512: 21 GFLOP/s in bf16, 155 in fp32.
    """
    return dtype in (torch.bfloat16, torch.float16) and not onednn_multiplies(dtype)


def onednn_multiplies(dtype):
    """As PyTorch itself asks; False where it was built without oneDNN."""
    question = {torch.bfloat16: "_is_mkldnn_bf16_supported",
                torch.float16: "_is_mkldnn_fp16_supported"}[dtype]
    return hasattr(torch.ops.mkldnn, question) and getattr(torch.ops.mkldnn, question)()


def prepacks():
    """Whether oneDNN multiplies weights in bf16 that were prepacked (of other processors: untried)."""
    return platform.machine() in ("x86_64", "AMD64") and onednn_multiplies(torch.bfloat16)


def rms_norm(x, weight, eps):
    """x / sqrt(mean(x^2) + eps), times a weight for each channel, in fp32: [..,D] -> [..,D]"""
    if numbers_to_a_row(x) >= NORMED:
        return Normalize.apply(x, weight, eps)
    return F.rms_norm(x, weight.shape, weight, eps)


def swiglu(gate, up):
    """silu(gate) up"""
    return Gate.apply(gate, up) if numbers_to_a_row(gate) >= LARGE else F.silu(gate) * up


def attention_on_cpu(q, k, v, is_causal):
    """As in attention.py, without a mask."""
    learns = q.requires_grad and numbers_to_a_row(q) >= LARGE
    return (Attend.apply if learns else attention_by_formula)(q, k, v, is_causal)


def by_formula_on_cpu(q, k, mask, is_causal):
    """Whether the formula is the faster way: whole texts in bf16, learned from or not too small.

    Not where products in bf16 are slow: there it takes twenty times as long as the fused kernel.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or is_slow(q.dtype):
        return False
    plain = mask is None and (q.shape[2] == k.shape[2] or not is_causal)
    return plain and (q.requires_grad or q.shape[:3].numel() >= MANY and not AMX)


def numbers_to_a_row(x):
    """How many numbers a row of the batch has; 0 on a GPU, which is thereby left to PyTorch."""
    return x.shape[1:].numel() if x.device.type == "cpu" else 0


def zeros_apart(shape, dtype):
    """Zeros beside the heap, whose pages are taken as they are written, and given back all at once.

    In the heap a cache that grows would leave gaps that nothing fits into: after 1,300 tokens of a
    7B 0.7 GB.
    """
    size = math.prod(shape) * dtype.itemsize
    memory = mmap.mmap(-1, size, access=mmap.ACCESS_COPY)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Normalize(Function):
    """y = w n, where n = x s and s = 1 / sqrt(mean(x^2) + eps).

        dw = sum(dy n)        dx = s (w dy - n mean(w dy n))
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = x.to(torch.float32, copy=True)
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(norm**2 / x.shape[-1] + eps)                  # [..,1]
        ctx.save_for_backward(x, weight, scale)
        return wide.mul_(scale).mul_(weight.float()).to(x.dtype)

    @staticmethod
    def backward(ctx, dy):
        x, weight, scale = ctx.saved_tensors
        w, wide, dwide = weight.float(), x.float(), dy.to(torch.float32, copy=True)
        products = wide * dwide                                           # [..,D]
        along = scale**2 / len(w) * (products @ w)[..., None]             # [..,1]
        dx = dwide.mul_(w).addcmul_(wide, along, value=-1).mul_(scale)
        dw = None
        if ctx.needs_input_grad[1]:
            dw = (scale.flatten() @ products.flatten(0, -2)).to(weight.dtype)  # [D]
        return dx.to(x.dtype), dw, None


class Gate(Function):
    """y = silu(gate) up"""

    @staticmethod
    def forward(ctx, gate, up):
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, dy):
        gate, up = ctx.saved_tensors
        dgate = torch.ops.aten.silu_backward(dy * up, gate)
        return dgate, F.silu(gate).mul_(dy)


class Attend(Function):
    """y = p v, where p = softmax(q k^T / sqrt(C)): some queries at a time.

        dv = p^T dy        dp = dy v^T        ds = p (dp - sum(p dp))
        dq = ds k / sqrt(C)                   dk = ds^T q / sqrt(C)
    """

    @staticmethod
    def forward(ctx, q, k, v, is_causal):
        ctx.save_for_backward(q, k, v)
        ctx.is_causal = is_causal
        if not AMX:
            return attention_by_formula(q, k, v, is_causal)
        shared = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal, enable_gqa=shared)

    @staticmethod
    def backward(ctx, dy):
        q, k, v = ctx.saved_tensors
        B, G, K, C = k.shape
        dy = dy.reshape(B * G, -1, *dy.shape[2:])                         # [B*G,H/G,T,C]
        v = v.flatten(0, 1)                                               # [B*G,K,C]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(v), torch.zeros_like(v)

        for at, some, keys, p in parts(q, k, ctx.is_causal):
            seen = keys.shape[1]
            dsome = dy[:, :, at].flatten(1, 2)                            # [B*G,H/G*t,C]
            dv[:, :seen].baddbmm_(p.mT, dsome)
            dp = dsome @ v[:, :seen].mT                                   # [B*G,H/G*t,seen]
            ds = torch.ops.aten._softmax_backward_data(dp, p, -1, p.dtype)
            dq[:, :, at] = (ds @ keys * C**-0.5).view(B, q.shape[1], -1, C)
            dk[:, :seen].baddbmm_(ds.mT, some)
        return dq, dk.view(k.shape), dv.view(k.shape), None


def attention_by_formula(q, k, v, is_causal):
    """attention(q, k, v), written out. In bf16 PyTorch's fused kernel is slow on many a CPU.

    Measured on one core of an EPYC, here and in the fused kernel. CLIP's 577 tokens, 16 heads of
    64, 14 and 22 ms; 640 tokens, 32 heads that share 4 keys, 22 and 40 ms. In fp32 the fused
    kernel is faster. On a Xeon with AMX it takes 6.5 and 12 ms for these, the formula 19 and 17.
    """
    v = v.flatten(0, 1)
    ys = [p @ v[:, : keys.shape[1]] for _, _, keys, p in parts(q, k, is_causal)]
    return torch.cat([y.view(*q.shape[:2], -1, q.shape[-1]) for y in ys], dim=2)


def parts(q, k, is_causal):
    """Yields, for some queries at a time: their slice, q / sqrt(C), the keys they may see, and p.

    Keys beyond the last of these queries are left out, which spares a third of the work.
    """
    B, H, T, C = q.shape
    G = k.shape[1]
    # The queries that share a key look at it together, as if they were tokens.
    q = (q * C**-0.5).reshape(B * G, H // G, T, C)
    k = k.flatten(0, 1).contiguous()                                      # [B*G,K,C]

    step = QUERIES if is_causal else T
    for start in range(0, T, step):
        at = slice(start, min(start + step, T))
        some = q[:, :, at].flatten(1, 2)                                  # [B*G,H/G*t,C]
        keys = k[:, : at.stop] if is_causal else k                        # [B*G,seen,C]
        if is_causal:
            # -inf above the diagonal: what comes later has probability 0.
            future = torch.full((at.stop - start, at.stop), -math.inf, dtype=q.dtype)
            future = future.triu(1 + start).repeat(H // G, 1)
            scores = torch.baddbmm(future, some, keys.mT)
        else:
            scores = some @ keys.mT
        yield at, some, keys, scores.softmax(-1)                          # [B*G,H/G*t,seen]
