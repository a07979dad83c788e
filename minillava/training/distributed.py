"""One process or many: torchrun's set-up, DDP or FSDP2 around the model, and checkpoints of a run.

    torchrun --nproc-per-node 8 train.py ...                                                   # one node
    torchrun --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py ...     # on each of 4

The paper trained with FSDP on 8 A100 (section 5.1). Stage 1 trains so little that DDP, a whole model per GPU, is enough.
"""
import os
import signal
import warnings
from contextlib import nullcontext

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel


def set_up(device="auto", alone=True):
    """-> (rank, ranks, device) of this process, by torchrun or alone; alone=False: a group even of one, for FSDP2."""
    cuda = torch.cuda.is_available() if device == "auto" else torch.device(device).type == "cuda"
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    if "RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(backend)
        return dist.get_rank(), dist.get_world_size(), device
    if not alone:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return 0, 1, torch.device("cuda" if cuda else "cpu") if device == "auto" else torch.device(device)


def ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


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
    things = [None] * ranks()
    if ranks() > 1:
        dist.all_gather_object(things, thing)
        return things
    return [thing]


def wrap(model, device, shard, dtype):
    """The model on its device, what is trained in fp32 and what is frozen in `dtype`, ready for gradients over all ranks.

    shard: FSDP2, each rank holds its part of weights, gradients and optimiser, and computes in `dtype`, a block at a time.
    The frozen tower is small and whole everywhere.
    """
    for p in model.parameters():
        if not p.requires_grad:
            p.data = p.data.to(device, dtype)
    if not shard:
        for p in model.parameters():
            if p.requires_grad:
                p.data = p.data.to(device, torch.float32)
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True) if ranks() > 1 else model
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for block in model.language_model.layers:
        fully_shard(block.float(), mp_policy=policy)  # a block at a time: the fp32 model never stands whole in memory
    for p in model.parameters():
        if p.requires_grad and p.dtype != torch.float32:
            p.data = p.data.float()
    return fully_shard(model, mp_policy=policy, ignored_params={p for p in model.parameters() if not p.requires_grad})


def synced(model, last):
    """The context of one micro-batch: gradients travel between ranks after the last one of a step only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def whole_weights(model):
    """{name: tensor} of the whole model on the CPU, on rank 0; the others get {}."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def ignore_signals(worker):
    """For the loader's workers: a signal reaches the whole process group, and they must serve until the run has saved."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Stop:
    """Set by SIGTERM or Ctrl-C, so that a run can end after its step; a second Ctrl-C ends it at once."""

    def __init__(self):
        self.signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.set)

    def set(self, number, frame):
        self.signal = number
        signal.signal(number, signal.SIG_DFL)

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process alone is no news
