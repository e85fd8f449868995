"""The diffusion transformer begins as nothing, and uses all that it is given."""

import pytest
import torch

from dp.denoisers import MLP, DiT


def trained_a_little(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def inputs(n_times: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(3, 6, 2), 50 * torch.rand(3, n_times), torch.randn(3, 2, 5)]


def test_every_branch_starts_as_zero():
    network, (x, t, cond) = DiT(2, 5, 6, 2, 16, 2, 2), inputs(1)
    assert torch.equal(network(x, t, cond), torch.zeros(3, 6, 2))
    h = torch.randn(3, 6, 16)
    for block in network.blocks:
        assert torch.equal(block(h, torch.randn(3, 2, 16), torch.randn(3, 1, 16)), h)


@pytest.mark.parametrize("n_times", [1, 2])
@pytest.mark.parametrize("kind", ["dit", "mlp"])
def test_every_action_depends_on_all_inputs_of_its_own_row(kind, n_times):
    network = {
        "dit": lambda: DiT(2, 5, 6, 2, 16, 2, 2, n_times=n_times),
        "mlp": lambda: MLP(2, 6, 10, 16, 2, n_times=n_times),
    }[kind]()
    trained_a_little(network)
    given = [tensor.requires_grad_() for tensor in inputs(n_times)]
    for step in range(6):
        for gradient in torch.autograd.grad(network(*given)[1, step].sum(), given):
            assert (gradient[1] != 0).all()
            assert (gradient[[0, 2]] == 0).all()


def test_impossible_widths_are_named():
    with pytest.raises(ValueError, match="width=10, expected an even multiple of n_heads=4"):
        DiT(2, 3, 4, 2, width=10, n_heads=4)
