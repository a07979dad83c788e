"""One process or many: torchrun's set-up, DDP or FSDP2 around the model.

    torchrun --nproc-per-node 8 train.py ...                              # one node
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        train.py ...                                                      # on each of 4

The paper trained with FSDP on 8 A100 (section 5.1). Stage 1 trains so little that DDP, a whole
model per GPU, is enough.
"""
import os
import warnings
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from minillava.linear import prepack_layers
from minillava.weights.devices import find_device

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process alone is no news


def set_up(device="auto", shard=False):
    """-> the device of this process, one of torchrun's or alone.

    shard: FSDP2 wants a process group, be it of one.
    """
    # a Mac's GPU has never been tried for training, and is taken by name alone
    if device == "auto" and not torch.cuda.is_available():
        device = "cpu"
    device = find_device(device)
    backend = "gloo"
    if device.type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        device = own_gpu(device)
        torch.cuda.set_device(device)  # FSDP2 and NCCL take the current one

    if "RANK" in os.environ:
        dist.init_process_group(backend)
    elif shard:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return device


def own_gpu(device):
    """Each of torchrun's processes here has a GPU of its own; alone, it is the one asked for."""
    processes, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if processes > gpus:
        raise ValueError(f"torchrun has {processes} processes here, but there are {gpus} GPUs: "
                         f"--nproc-per-node {gpus}")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))


def end():
    """At the end of a run; NCCL warns where it is left out."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def leads():
    """Whether this process is the one that writes and speaks for all."""
    return rank() == 0


def barrier():
    if ranks() > 1:
        dist.barrier()


def add_up(numbers):
    """The sums of some integers over all ranks. Through the CPU: the GPU is not waited for."""
    total = torch.tensor(numbers, dtype=torch.int64)
    if ranks() > 1:
        dist.all_reduce(total)
    return total.tolist()


def mean_over_ranks(x):
    if ranks() > 1:
        dist.all_reduce(x)
    return x / ranks()


def gather(thing):
    """[thing of rank 0, thing of rank 1, ...]"""
    things = [thing] * ranks()
    if ranks() > 1:
        dist.all_gather_object(things, thing)
    return things


def wrap(model, device, shard, dtype):
    """The model on its device, trained weights in fp32, frozen ones in `dtype`, for many ranks.

    shard: FSDP2, each rank holds its part of weights, gradients and optimiser, and computes in
    `dtype`, a block at a time. What is frozen is whole everywhere.
    """
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(device, dtype)
    for buffer in model.buffers():  # of quantised layers
        buffer.data = buffer.data.to(device)
    # In stage 2 the tower alone would gain: 2 % of a step, for 5 % more memory.
    if not model.language_model.norm.weight.requires_grad:
        prepack_layers(model)
    return sharded(model, device, dtype) if shard else replicated(model, device)


def replicated(model, device):
    """DDP: the whole model on every rank; alone, the model itself."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(device, torch.float32)
    if ranks() == 1:
        return model
    device_ids = [device] if device.type == "cuda" else None
    return DistributedDataParallel(
        model, device_ids, gradient_as_bucket_view=True, broadcast_buffers=False)


def sharded(model, device, dtype):
    """FSDP2, a block at a time, so that the fp32 model never stands whole in memory."""
    mesh = init_device_mesh(device.type, (ranks(),))  # else it takes a GPU that is not asked for
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    frozen = {p for p in model.parameters() if not p.requires_grad}
    for part in (*model.language_model.layers, model):
        for p in part.parameters():
            if p.requires_grad and p.dtype != torch.float32:
                p.data = p.data.float()
        fully_shard(part, mesh=mesh, mp_policy=policy, ignored_params=frozen)
    return model


def synced(model, last):
    """The context of a micro-batch: DDP's gradients travel between ranks after the last one only.

    FSDP2's travel after each: a rank that waited would hold those of the whole model, in fp32.
    """
    if isinstance(model, DistributedDataParallel) and not last:
        return model.no_sync()
    return nullcontext()


def trained_weights(wrapped, model):
    """{name: tensor} of what was trained, whole on rank 0 where FSDP2 left each rank a part."""
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    weights = dict(model.named_parameters())
    if isinstance(wrapped, FSDPModule):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True,
                                   ignore_frozen_params=True)
        weights = get_model_state_dict(wrapped, options=options)
    return {name: tensor.detach() for name, tensor in weights.items() if name in names}
