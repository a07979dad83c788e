"""Linear layers of other kinds: of few bits, as a processor wants them, with a LoRA beside them.

Weights in few bits take a half or a quarter of the memory of bf16:

    int8    w = q * scale                 q in -127..127, one scale for each output channel
    int4    w = (q - 8) * scale + zero    q in 0..15, a scale and a zero for each group of 64 inputs

Only weights are rounded, activations are not. For few rows, as in decoding, the time goes into
reading weights, and PyTorch's kernels read the small form itself. For many rows, as in a prefill or
in training, it goes into the product: weights are written out, some output channels after the
others, used and dropped: in fp32, where the processor is slow in bf16.
"""
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from minillava.on_cpu import prepacks, product_dtype

GROUP = 64     # inputs that share a scale and a zero, in int4
BLOCK = 64     # output channels that lie together, in int4; 32 where the kernel wants that
PIECE = 1024   # output channels that are written out at once, small enough for a cache
BEYOND = 0.3   # steps by which a group's smallest and largest weight may lie beyond 0 and 15
TINY = 1e-7    # the least scale, which fp16 still has: a group of zeros needs one too
SMALL = 2**18  # weights of a layer up to which it is not prepacked: what it spares is not the time
MOST = 2**32   # bytes of a model that is prepacked: a larger one stays in its file, memory-mapped


class QuantizedLinear(nn.Module):
    """What both kinds share: buffers `weight` and `scale`, and the two ways to the product.

    `few`: rows up to which a kind's kernel is faster than to write its weight out.
    """

    def __init__(self, in_features, out_features, weight, scale):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x):
        """[..,I] -> [..,O]"""
        if self.takes(x):
            y = self.few_rows(x.reshape(-1, x.shape[-1]).contiguous())
            return y.view(*x.shape[:-1], -1)
        return FrozenProduct.apply(x, self)

    def multiply(self, x):
        """x W^T; the written-out W is not kept for the way back, but written out again."""
        wide = x.to(product_dtype(x.dtype, x.device))
        parts = [F.linear(wide, piece).to(x.dtype) for piece in self.pieces(wide.dtype)]
        return torch.cat(parts, dim=-1)

    def multiply_back(self, grad):
        """grad W"""
        wide = grad.to(product_dtype(grad.dtype, grad.device))
        total = 0
        parts = wide.split(piece_on(wide.device), dim=-1)
        for part, piece in zip(parts, self.pieces(wide.dtype)):
            total = total + part @ piece
        return total.to(grad.dtype)

    def takes(self, x):
        """Whether this machine's kernel is to multiply x."""
        learns = x.requires_grad and torch.is_grad_enabled()
        return x.shape[:-1].numel() <= self.few and not learns and self.has_kernel(x)


class Int8Linear(QuantizedLinear):
    """`weight` int8 [O,I], `scale` [O]."""
    few = 16

    def __init__(self, in_features, out_features):
        weight = torch.empty(out_features, in_features, dtype=torch.int8)
        super().__init__(in_features, out_features, weight, torch.empty(out_features))

    def has_kernel(self, x):
        # in bf16 it ends the process where a row begins at an address that is no multiple of 16
        whole = self.in_features % 32 == 0 and self.weight.data_ptr() % 16 == 0
        return whole and x.device.type == "cpu"

    def few_rows(self, x):
        if x.data_ptr() % 32:  # part of another tensor: the same holds for activations
            x = x.clone()
        return torch._weight_int8pack_mm(x, self.weight, self.scale.to(x.dtype))

    def pieces(self, dtype):
        """The weight written out, [piece,I] at a time."""
        size = piece_on(self.weight.device)
        scales = self.scale.to(dtype).split(size)
        for weight, scale in zip(self.weight.split(size), scales):
            yield weight.to(dtype).mul_(scale[:, None])


class Int4Linear(QuantizedLinear):
    """`weight` uint8 [O/64,I,32], `scale` [I/64,O,2]: the scale and the zero of each group.

    Two values share a byte, laid as PyTorch's kernel for AVX-512 reads them, so that a file can be
    memory-mapped: of the 64 output channels of a block, input by input, byte j holds channel j in
    its low half and channel j + 32 in its high half. O and I are rounded up to whole blocks. The
    kernel for AVX2 wants blocks of 32, likewise: [O/32,I,16].
    """
    few = 64

    def __init__(self, in_features, out_features, block=BLOCK):
        outputs = -(-out_features // BLOCK) * BLOCK
        groups = -(-in_features // GROUP)
        weight = torch.empty(outputs // block, groups * GROUP, block // 2, dtype=torch.uint8)
        scale = torch.empty(groups, outputs, 2)
        super().__init__(in_features, out_features, weight, scale)

    def has_kernel(self, x):
        return x.device.type == "cpu" and kernel_block() == 2 * self.weight.shape[-1]

    def few_rows(self, x):
        inputs = self.weight.shape[1]
        if inputs > self.in_features:
            x = F.pad(x, (0, inputs - self.in_features))
        packed = self.weight.view(-1, inputs // 2)  # [O,I/2], as the kernel counts
        y = torch._weight_int4pack_mm_for_cpu(x, packed, GROUP, self.scale.to(x.dtype))
        return y[:, : self.out_features]

    def pieces(self, dtype):
        """The weight written out, [piece,I] at a time."""
        block = 2 * self.weight.shape[-1]
        size = piece_on(self.weight.device)
        weights = self.weight.split(size // block)
        scales = self.scale.to(dtype).split(size, dim=1)
        left = self.out_features
        for weight, scale in zip(weights, scales):
            yield write_out(weight, scale)[:left, : self.in_features]
            left -= size


class WidenedLinear(nn.Linear):
    """A layer in bf16 (or fp16) that answers on a processor without instructions for it.

    Many rows are multiplied in fp32; few are not, since there the time goes into reading weights.
    Trained on a GPU it is a plain layer again: only the CPU that it was loaded on is slow.
    """
    few = 8

    def forward(self, x):
        """[..,I] -> [..,O]"""
        few = x.shape[:-1].numel() <= self.few
        if few or torch.is_grad_enabled() or x.device.type != "cpu":
            return super().forward(x)
        wide = x.float()
        y = torch.cat([F.linear(wide, weight.float()) for weight in self.weight.split(PIECE)], -1)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)


class WidenedConv2d(nn.Conv2d):
    """CLIP's patches, likewise: without bias."""

    def forward(self, x):
        if x.device.type != "cpu":
            return super().forward(x)
        return F.conv2d(x.float(), self.weight.float(), stride=self.stride).to(x.dtype)


class PrepackedLinear(nn.Linear):
    """A frozen layer in bf16 that has its weight a second time, in the order oneDNN multiplies it.

    F.linear brings a weight into that order at every product. Done once, it spares 7 to 25 % of the
    time of many rows on an EPYC, and a third of that of one. The numbers are the same.
    """

    def __init__(self, layer):
        nn.Module.__init__(self)
        self.in_features = layer.in_features
        self.out_features = layer.out_features
        self.weight = layer.weight  # stays, to be saved
        self.bias = layer.bias
        self.prepacked = prepack(self.weight)
        self.prepacked_back = None  # W^T, from the first gradient on

    def forward(self, x):
        """[..,I] -> [..,O]"""
        if x.requires_grad and torch.is_grad_enabled():
            return FrozenProduct.apply(x, self)
        return self.multiply(x)

    def multiply(self, x):
        return prepacked_product(x, self.weight, self.prepacked, self.bias)

    def multiply_back(self, grad):
        if self.prepacked_back is None:
            self.prepacked_back = prepack(self.weight.T)
        return prepacked_product(grad, self.weight.T, self.prepacked_back)


def prepack(weight):
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), None)


def prepacked_product(x, weight, prepacked, bias=None):
    """x W^T + b by the prepacked W; by W where none is, or where the model was put into fp32."""
    if prepacked is None or weight.dtype != torch.bfloat16:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, prepacked, bias, "none", [], "")


def prepack_layers(model):
    """On a CPU, frozen layers in bf16 become PrepackedLinear, unless the model is large."""
    if sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) > MOST:
        return
    for name, layer in list(model.named_modules()):
        if type(layer) is nn.Linear and gains_by_prepacking(layer.weight):
            model.set_submodule(name, PrepackedLinear(layer))


def gains_by_prepacking(weight):
    frozen = weight.dtype == torch.bfloat16 and not weight.requires_grad
    return frozen and weight.device.type == "cpu" and weight.numel() > SMALL and prepacks()


class LoraLinear(nn.Module):
    """A layer with a product of two thin matrices beside it: y = W x + (alpha / rank) B A x.

    A starts at random and B at zero, so that before the first step nothing has changed.
    """

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base = base
        self.A = nn.Parameter(torch.empty(rank, base.in_features))
        self.B = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank
        bound = 1 / math.sqrt(base.in_features)  # as nn.Linear and peft have it
        nn.init.uniform_(self.A, -bound, bound)

    def forward(self, x):
        """[..,I] -> [..,O]"""
        thin = F.linear(x, self.A)  # [..,rank]
        return self.base(x) + self.scale * F.linear(thin, self.B)


class FrozenProduct(torch.autograd.Function):
    """A layer's product, of which x alone may have a gradient."""

    @staticmethod
    def forward(ctx, x, layer):
        ctx.layer = layer
        return layer.multiply(x)

    @staticmethod
    def backward(ctx, grad):
        return ctx.layer.multiply_back(grad), None


def piece_on(device):
    """How many output channels are written out at once; on a GPU all, of any layer.

    There each operation has to be started, which takes longer than to read a small piece: a token
    of a 7B in int4 would start 11,000 of them, and starts 2,000.
    """
    return PIECE if device.type == "cpu" else 2**20


# ---- weights into few bits ----

def to_int8(weight):
    """[O,I] -> int8 [O,I], scale [O]: the largest weight of an output channel becomes 127."""
    numbers = weight.to(torch.float32, copy=True)  # and then changed in place: a cache is small
    largest = torch.maximum(numbers.amax(1), -numbers.amin(1))
    scale = (largest / 127).clamp(min=TINY).to(weight.dtype)
    values = numbers.div_(scale[:, None].float()).round_().clamp_(-127, 127)
    return values.to(torch.int8), scale


def to_int4(weight):
    """[O,I] -> uint8 [O/64,I,32] (or as this machine's kernel has it), scale [I/64,O,2]."""
    outputs, inputs = weight.shape
    padded = F.pad(weight, (0, -inputs % GROUP, 0, -outputs % BLOCK))
    groups = padded.float().unflatten(1, (-1, GROUP))  # [O,I/64,64]

    # 0 to 15 from a group's smallest weight to its largest, cut a little: all other steps are finer
    low = groups.amin(-1, keepdim=True)
    high = groups.amax(-1, keepdim=True)
    scale = ((high - low) / (15 + 2 * BEYOND)).clamp(min=TINY)
    zero = low + (8 + BEYOND) * scale

    # then, of all lines, the one closest to the weights that were rounded so; off by 4 % less
    scale, zero = closest_line(to_4_bits(groups, scale, zero), groups)

    scale = scale.to(weight.dtype)
    zero = zero.to(weight.dtype)
    values = to_4_bits(groups, scale.float(), zero.float())
    # as int8 first, into which numbers turn four times as fast as into uint8
    values = values.to(torch.int8).view(torch.uint8).flatten(1)  # [O,I]
    scale_and_zero = torch.cat([scale, zero], dim=-1)            # [O,I/64,2]
    return pack(values, block_here()), scale_and_zero.transpose(0, 1).contiguous()


def to_4_bits(groups, scale, zero):
    return (groups / scale).sub_(zero / scale - 8).round_().clamp_(0, 15)


def closest_line(values, groups):
    """Least squares: the scale and the zero with which (values - 8) * scale + zero is nearest.

    The values are used up: in their place stands how far they are from their mean.
    """
    mean_value = values.mean(-1, keepdim=True)
    deviation = values.sub_(mean_value)
    slope = (deviation * groups).sum(-1, keepdim=True)
    slope /= deviation.square_().sum(-1, keepdim=True).clamp_(min=TINY)
    scale = slope.clamp(min=TINY)
    return scale, groups.mean(-1, keepdim=True) - (mean_value - 8) * scale


def pack(values, block=BLOCK):
    """0..15 as uint8 [O,I] -> two in a byte, uint8 [O/64,I,32]: see Int4Linear"""
    blocks = values.unflatten(0, (-1, block))  # [O/64,64,I]
    low, high = blocks.chunk(2, dim=1)
    return turn(low | high << 4)


def turn(table):
    """Bytes [B,R,C] -> [B,C,R], in half the time of a copy byte by byte: four columns as one."""
    fours = table.contiguous().view(torch.int32).mT.contiguous()               # [B,C/4,R]
    bytes_ = fours.view(torch.uint8).unflatten(-1, (-1, 4)).transpose(-2, -1)  # [B,C/4,4,R]
    return bytes_.flatten(1, 2)


def unpack(packed):
    """uint8 [O/64,I,32] -> 0..15 as uint8 [O/64,I,64]"""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def write_out(packed, scale):
    """uint8 [O/64,I,32], scale and zero [I/64,O,2] -> the weight [O,I], in the scale's dtype."""
    # laid input by input while it is small: to turn the numbers round would take longer
    values = unpack(packed.transpose(0, 1))                               # [I,O/64,64]

    # as int8, from which the numbers come five times as fast as from uint8
    values = values.view(torch.int8).sub_(8).to(scale.dtype)
    values = values.flatten(1).unflatten(0, (-1, GROUP))                  # [I/64,64,O]

    # a scale and a zero for each output of each group, both [I/64,1,O]
    scale, zero = scale.unsqueeze(1).permute(3, 0, 1, 2).contiguous()
    weight = torch.addcmul(zero, values, scale).flatten(0, 1)             # [I,O]
    return weight.T


# ---- the kernels of this machine ----

@functools.cache
def kernel_block():
    """Output channels in a block of the int4 kernel here: 64 (AVX-512), 32 (AVX2), 0: no kernel."""
    if not hasattr(torch, "_weight_int4pack_mm_for_cpu"):
        return 0
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(16, (64, 64), generator=generator, device="cpu")
    theirs = torch._convert_weight_to_int4pack_for_cpu(values.int(), 1).flatten()
    for block in (64, 32):
        if torch.equal(pack(values.to(torch.uint8), block).flatten(), theirs):
            return block
    return 0


def block_here():
    """That in which int4 lies on this machine."""
    return kernel_block() or BLOCK


def in_blocks(packed, block):
    """A packed weight in blocks of 64 or 32; the same tensor where it is in these already."""
    if block == 2 * packed.shape[-1]:
        return packed
    # some at a time, few enough for a cache
    return torch.cat([laid_anew(part, block) for part in packed.split(4)])


def laid_anew(packed, block):
    """uint8 [O/a,I,a/2] -> [O/b,I,b/2]: two blocks become one, or one becomes two."""
    before = 2 * packed.shape[-1]
    joined, cut = max(1, block // before), max(1, before // block)
    values = unpack(packed).unflatten(-1, (cut, -1))              # [O/a,I,cut,..]
    values = values.unflatten(0, (-1, joined))                    # [..,joined,I,cut,..]
    values = values.permute(0, 3, 2, 1, 4).flatten(3).flatten(0, 1)  # [O/b,I,b]
    low, high = values.chunk(2, dim=-1)
    return low | high << 4
