"""Muon by hand is torch's to the bit where bf16 is fast, and does the same in fp32 where it is not."""
import copy

import pytest
import torch

from minillava.training.muon import Muon, orthogonal

SHAPES = [(24, 24), (40, 24), (24, 40)]


def trained(optimizer, steps=3):
    """Matrices, several of a shape, after some steps with gradients that are always the same."""
    torch.manual_seed(0)
    matrices = [torch.nn.Parameter(torch.randn(shape)) for shape in 2 * SHAPES]
    optimizer = optimizer(matrices)
    for _ in range(steps):
        for p in matrices:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return [p.detach() for p in matrices]


@pytest.mark.parametrize("fast", [True, False])
def test_it_moves_as_torch_does(has_bf16, fast):
    has_bf16(fast)
    theirs = trained(lambda matrices: torch.optim.Muon(matrices, lr=0.1, weight_decay=0.0))
    ours = trained(lambda matrices: Muon(matrices, 0.1))
    if fast:
        assert all(map(torch.equal, ours, theirs))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_singular_values_become_about_one_and_the_directions_stay(has_bf16, shape):
    has_bf16(False)
    torch.manual_seed(1)
    u = torch.randn(shape)
    x = orthogonal(torch.stack([torch.eye(*shape), u]))[1]
    assert x.dtype == torch.float32 and x.shape == u.shape
    assert (torch.linalg.svdvals(x) - 1).abs().max() < 0.4
    U, _, Vh = torch.linalg.svd(u, full_matrices=False)
    inner = U.T @ x @ Vh.T
    assert (inner - inner.diag().diag()).abs().max() < 1e-3


def test_what_has_no_gradient_stays_and_its_state_is_carried_on():
    p, q = (torch.nn.Parameter(torch.eye(8)) for _ in range(2))
    muon = Muon([p, q], 0.1)
    p.grad = torch.randn(8, 8)
    muon.step()
    assert torch.equal(q, torch.eye(8)) and not torch.equal(p, torch.eye(8))

    again = Muon([torch.nn.Parameter(p.detach().clone()), torch.nn.Parameter(q.detach().clone())], 0.1)
    again.load_state_dict(copy.deepcopy(muon.state_dict()))
    same = again.param_groups[0]["params"][0]
    p.grad = same.grad = torch.randn(8, 8)
    muon.step()
    again.step()
    assert torch.equal(p, same)
