"""The paper's transformer computes what the reference implementation does."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from dp.denoisers import Transformer

REFERENCE = {
    "causal": [-0.560305, -0.327637, -0.487083, -0.218195, -0.748558, -0.480824, -0.640353, -0.392761,
               -0.543524, -0.26271, -0.745224, -0.471732, -0.672771, -0.421952, -0.560878, -0.280534],
    "encoder": [-0.13812, 0.049705, -0.205865, -0.008789, -0.178866, -0.170127, -0.130698, 0.018092,
                -0.196573, 0.010973, -0.195868, -0.14255, -0.164284, -0.03283, -0.184383, 0.012074],
}  # fmt: skip
"""Outputs of the reference `TransformerForDiffusion` (real-stanford/diffusion_policy, commit 4bf419a) with `filled`
weights, for `INPUTS`."""

INPUTS = (
    torch.arange(16.0).sin().reshape(2, 4, 2),
    torch.tensor([[3], [40]]),
    torch.arange(12.0).cos().reshape(2, 2, 3),
)


def filled(causal: bool = True, n_cond_layers: int = 0, n_times: int = 1) -> Transformer:
    network = Transformer(2, 3, 4, 2, 8, 2, 2, n_cond_layers, dropout=0.0, causal=causal, n_times=n_times).eval()
    with torch.no_grad():
        for number, (_, parameter) in enumerate(sorted(network.named_parameters())):
            values = 0.3 * (torch.arange(parameter.numel()) * 0.7 + number).sin()
            parameter.copy_(values.reshape(parameter.shape))
    return network


@pytest.mark.parametrize(("name", "network"), [("causal", filled()), ("encoder", filled(False, 1))])
@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION])
def test_it_equals_the_reference(name, network, backend):
    expected = torch.tensor(REFERENCE[name]).reshape(2, 4, 2)
    with sdpa_kernel([backend, SDPBackend.MATH]):
        torch.testing.assert_close(network(*INPUTS), expected, atol=1e-5, rtol=0)
        with torch.no_grad():  # PyTorch has another path for this
            torch.testing.assert_close(network(*INPUTS), expected, atol=1e-5, rtol=0)


def test_it_has_the_names_of_the_reference():
    names = set(filled().state_dict())
    assert {"input_emb.weight", "pos_emb", "cond_obs_emb.bias", "cond_pos_emb", "encoder.0.weight", "encoder.2.bias",
            "decoder.layers.1.self_attn.in_proj_weight", "decoder.layers.1.multihead_attn.out_proj.bias",
            "decoder.layers.1.norm3.weight", "ln_f.weight", "head.weight"} <= names  # fmt: skip
    assert len(names) == 50  # the reference also stores the masks


@pytest.mark.parametrize("n_times", [1, 2])
def test_an_action_sees_earlier_ones_and_the_observations_up_to_its_step(n_times):
    network, (x, t, cond) = filled(n_times=n_times), INPUTS
    x, cond = x.clone().requires_grad_(), cond.clone().requires_grad_()
    t = t.expand(2, n_times)
    for step in range(4):
        of_x, of_cond = torch.autograd.grad(network(x, t, cond)[:, step].sum(), (x, cond))
        assert (of_x != 0).any(2).any(0).tolist() == [other <= step for other in range(4)]
        assert (of_cond != 0).any(2).any(0).tolist() == [other <= step for other in range(2)]


def test_impossible_widths_are_named():
    with pytest.raises(ValueError, match="width=9, expected an even multiple of n_heads=3"):
        Transformer(2, 3, 4, 2, width=9, n_heads=3)
