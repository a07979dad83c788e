"""What one step of training is made of: the rate, the decay, the order of the samples, what is saved, what travels."""
import math
import os
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from minillava.checkpoint import load_llava
from minillava.toy.recipes import TOY_RECIPES
from minillava.training import checkpoints, distributed
from minillava.training.optimizer import make_optimizers, set_lr, take_step
from minillava.training.recipes import RECIPES, changed
from minillava.training.sampler import micro_batches
from tests.comparing import message


def small(muon_lr=None):
    """A model with a matrix that Muon takes, and its optimizers."""
    torch.manual_seed(0)
    blocks = nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(4, 4)])})
    model = nn.ModuleDict({"language_model": blocks, "head": nn.Linear(4, 2)})
    return model, make_optimizers(model, 1e-2, muon_lr)


def test_the_rate_rises_for_3_percent_of_the_steps_and_falls_by_a_cosine():
    _, optimizers = small(muon_lr=0.5)
    rates = [set_lr(optimizers, step, 1000) / 1e-2 for step in range(1000)]
    assert rates.index(1.0) == 29 and rates[:30] == pytest.approx([(step + 1) / 30 for step in range(30)])
    for step in (30, 272, 515, 757, 999):
        assert rates[step] == pytest.approx(0.5 * (1 + math.cos(math.pi * (step - 30) / 970)))
    set_lr(optimizers, 515, 1000)
    assert optimizers[1].param_groups[0]["lr"] == pytest.approx(0.25)  # Muon's own peak, the same share of it


def test_the_rate_is_that_of_transformers_but_for_a_warm_up_that_is_a_step_ahead():
    """LLaVA-1.5's stage 2: 5198 steps of at most 2e-5. get_cosine_schedule_with_warmup(optimizer, 156, 5198) has
    0 at step 0, and at the steps below:
    """
    theirs = {1: 1.282051282051282e-07, 77: 9.871794871794872e-06, 155: 1.9871794871794873e-05,
              156: 2e-05, 157: 1.9999998058827844e-05, 2677: 1e-05, 5197: 1.9411721552398123e-12}
    _, optimizers = small()
    for step, rate in theirs.items():
        ours = step - 1 if step < 156 else step
        assert set_lr(optimizers, ours, 5198) * 2e-5 / 1e-2 == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("muon_lr", [None, 1e-2])
def test_no_weight_decays(muon_lr):
    model, optimizers = small(muon_lr)
    assert optimizers[0].defaults["betas"] == (0.9, 0.999)  # as the official runs; the miniature's own pictures
    assert make_optimizers(model, *TOY_RECIPES["toy-own"].rates)[0].defaults["betas"] == (0.9, 0.95)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    take_step(optimizers)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.grad is None for p in model.parameters())  # nothing is left over for the next step


def test_every_epoch_has_an_order_of_its_own_and_the_seed_decides_it():
    lengths = [(1 if i % 3 else -1) * (1 + i * 7 % 40) for i in range(64)]
    for grouped in (True, False):
        order = micro_batches(lengths, 8, 1, 0, 1, grouped, 3, seed=5)
        epochs = [order[:8], order[8:16], order[16:]]
        assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
        assert all(sorted(i for batch in epoch for i in batch) == list(range(64)) for epoch in epochs)
        assert micro_batches(lengths, 8, 1, 0, 1, grouped, 3, seed=5) == order
        assert micro_batches(lengths, 8, 1, 0, 1, grouped, 3, seed=6) != order


def test_a_checkpoint_brings_back_weights_moments_and_the_random_state(tmp_path):
    model, optimizers = small(muon_lr=1e-2)
    inputs = torch.randn(8, 4)
    train_once(model, optimizers, inputs)
    checkpoints.save(tmp_path, 1, model, optimizers, keep=2)
    drawn = torch.rand(3)
    train_once(model, optimizers, inputs)
    expected = {name: p.clone() for name, p in model.named_parameters()}

    other, others = small(muon_lr=1e-2)
    torch.manual_seed(99)
    assert checkpoints.resume(tmp_path, other, others) == 1
    assert torch.equal(torch.rand(3), drawn)
    train_once(other, others, inputs)
    assert all(torch.equal(p, expected[name]) for name, p in other.named_parameters())


def train_once(model, optimizers, inputs):
    block = model["language_model"]["layers"][0]
    model["head"](block(inputs)).square().mean().backward()
    take_step(optimizers)


def test_checkpoints_that_are_too_many_or_half_written_go(tmp_path):
    model, optimizers = small()
    (tmp_path / "checkpoint-7.tmp").mkdir()
    for step in (9, 10, 11):
        checkpoints.save(tmp_path, step, model, optimizers, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-11"]
    assert list(checkpoints.checkpoints(tmp_path)) == [10, 11]
    assert checkpoints.resume(tmp_path, model, optimizers) == 11


def test_a_step_that_is_saved_already_is_not_saved_again(tmp_path):
    model, optimizers = small()
    for _ in range(2):  # the run's own save, and then a signal's
        checkpoints.save(tmp_path, 9, model, optimizers, keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


def test_a_run_stopped_before_its_first_step_leaves_nothing_to_go_on_from(tmp_path):
    """Nothing was measured, so that another run may begin there, and it would begin with these weights."""
    checkpoints.save(tmp_path, 0, *small(), keep=2)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_be_written_or_read_is_one_line(tmp_path, monkeypatch):
    model, optimizers = small()
    checkpoints.save(tmp_path, 9, model, optimizers, keep=1)
    with monkeypatch.context() as disk:
        disk.setattr("torch.save", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("unexpected pos 704 vs 598")))
        assert "checkpoint-10.tmp cannot be written, is the disk full? (RuntimeError('unexpected" in message(
            OSError, checkpoints.save, tmp_path, 10, model, optimizers, 1)
    assert list(checkpoints.checkpoints(tmp_path)) == [9] and checkpoints.resume(tmp_path, model, optimizers) == 9
    [file] = tmp_path.glob("checkpoint-9/*.distcp")
    file.write_bytes(file.read_bytes()[:100])
    assert "checkpoint-9 cannot be read; delete it" in message(OSError, checkpoints.resume, tmp_path, model, optimizers)


def test_a_checkpoint_runs_no_program(tmp_path):
    """Neither its .metadata, a pickle, nor an optimiser's numbers, a pickle each."""
    class Program:
        def __reduce__(self):
            return os.mkdir, (tmp_path / "was-run",)

    model, optimizers = small()
    checkpoints.save(tmp_path / "a", 9, model, optimizers, keep=1)
    (tmp_path / "a/checkpoint-9/.metadata").write_bytes(pickle.dumps(Program()))
    optimizers[0].param_groups[0]["foreach"] = Program()
    checkpoints.save(tmp_path / "b", 9, model, optimizers, keep=1)
    for out in (tmp_path / "a", tmp_path / "b"):
        assert "checkpoint-9 cannot be read; delete it" in message(OSError, checkpoints.resume, out, *small())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_gradients_travel_once_a_step_not_once_a_micro_batch():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = DistributedDataParallel(nn.Linear(4, 2))
        sent = []

        def count(state, bucket):
            sent.append(bucket.buffer().clone())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        model.register_comm_hook(None, count)
        for step in range(2):
            for n in range(1, 5):
                with distributed.synced(model, last=n == 4):
                    model(torch.randn(3, 4)).sum().backward()
        assert len(sent) == 2
    finally:
        dist.destroy_process_group()


def test_between_micro_batches_a_rank_holds_its_own_part_of_the_gradients_alone():
    """Those of a whole 7B are 25 GiB in fp32: FSDP2, told to wait, would keep them on every rank."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(nn.Linear(4, 2))
        inputs, expected = torch.randn(4, 3, 4), 0
        for n, x in enumerate(inputs, 1):
            with distributed.synced(model, last=n == 4):
                model(x).sum().backward()
            expected = expected + x.sum(0)
            torch.testing.assert_close(model.weight.grad.to_local(), expected.expand(2, 4))
    finally:
        dist.destroy_process_group()


def test_each_process_has_a_gpu_of_its_own_or_one_line_says_that_there_are_too_few(monkeypatch):
    chosen = []
    for name, fake in (("is_available", lambda: True), ("device_count", lambda: 2), ("set_device", chosen.append)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    assert distributed.set_up("cuda:1", shard=True) == torch.device("cuda:1")
    assert distributed.set_up() == torch.device("cuda:0")
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert distributed.set_up() == torch.device("cuda:1")
    assert [device.index for device in chosen] == [1, 0, 1]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert "has 8 processes here, but there are 2 GPUs: --nproc-per-node 2" in message(ValueError, distributed.set_up)


def test_fsdp2_stays_on_the_cpu_that_was_asked_for_where_there_is_a_gpu(monkeypatch):
    monkeypatch.setattr(torch._C, "_get_accelerator", lambda *_: torch.device("mps"))
    try:
        device = distributed.set_up("cpu", shard=True)
        model, _ = load_llava(device="cpu")
        wrapped = distributed.wrap(model, device, True, torch.float32)
        assert wrapped(torch.tensor([[1, 5, 6]]), labels=torch.tensor([[1, 5, 6]])).isfinite()
    finally:
        distributed.end()


def test_recipes_divide_their_batch_and_no_flag_leaves_them_as_they_are():
    for recipe in (RECIPES | TOY_RECIPES).values():
        assert recipe.accumulation(1) * recipe.per_gpu == recipe.batch
        assert changed(recipe, lr=None, batch=None) == recipe
        left = "mm_projector.bin" if recipe.stage == 1 else "adapter" if recipe.lora else "llava"
        assert recipe.result == left
    with pytest.raises(ValueError, match="3 ranks x 16 do not divide"):
        changed(RECIPES["v1.5-pretrain"], batch=32, per_gpu=16).accumulation(3)
