"""The plain formulas against torch's own norms, and the authors' cost models against the plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import authors
import reference


def states_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(torch.rand_like(value) + 0.25)
        for name, buffer in module.named_buffers():
            if buffer.is_floating_point():
                buffer.copy_(torch.rand_like(buffer) + (0.5 if name.endswith("var") else 0.0))


@pytest.mark.parametrize("shape", [(5, 6), (4, 6, 9), (3, 6, 4, 5), (2, 6, 3, 2, 4)], ids=lambda s: f"{len(s)}d")
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm_is_torchs(shape: tuple[int, ...], momentum: float | None, training: bool) -> None:
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    norm = kinds[len(shape)](6, momentum=momentum, dtype=torch.float64).train(training)
    randomize(norm)
    state, x = states_of(norm), torch.randn(shape, dtype=torch.float64)
    y, buffers = reference.batch_norm(x, state, training=training, momentum=momentum)
    torch.testing.assert_close(y, norm(x))
    for name, value in buffers.items():
        torch.testing.assert_close(value, norm.get_buffer(name))


@pytest.mark.parametrize(
    ("norm", "formula"),
    [
        (nn.InstanceNorm2d(6, affine=True), reference.instance_norm),
        (nn.GroupNorm(3, 6), lambda x, state: reference.group_norm(x, state, num_groups=3)),
        (nn.GroupNorm(1, 6), reference.layer_norm),
    ],
    ids=["instance", "group", "layer"],
)
def test_instance_statistics_are_torchs(norm: nn.Module, formula) -> None:
    norm = norm.double()
    randomize(norm)
    x = torch.randn(3, 6, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(formula(x, states_of(norm)), norm(x))


def test_unbiased_variance_of_one_element_is_zero() -> None:
    x = torch.randn(3, 4, 1, 1, dtype=torch.float64)
    partner = torch.tensor([1, 2, 0])
    torch.testing.assert_close(reference.cross_norm(x, permutation=partner), x[partner])


def plain_formula(name: str, x: torch.Tensor, state: dict[str, torch.Tensor], training: bool) -> torch.Tensor:
    """The formula of an authors' module with the draws it makes after ``torch.manual_seed(0)``."""
    torch.manual_seed(0)
    n, c = x.shape[:2]
    if name == "CrossNorm":
        return reference.cross_norm(x, permutation=torch.randperm(n)) if training else x
    if name == "SelfNorm":
        return reference.self_norm(x, state, training=training)[0]
    if name == "CNSN":
        x = reference.cross_norm(x, permutation=torch.randperm(n)) if training else x
        return reference.self_norm(x, reference.part(state, "selfnorm"), training=training)[0]
    if name == "MixStyle":
        lam = torch.distributions.Beta(0.1, 0.1).sample((n, 1, 1, 1))
        return reference.mix_style(x, lam=lam, permutation=torch.randperm(n)) if training else x
    if name == "DSU":
        noise = [torch.randn(n, c, dtype=x.dtype) for _ in range(2)]
        return reference.dsu(x, mean_noise=noise[0], std_noise=noise[1]) if training else x
    tracked = {
        "BatchInstanceNorm": reference.batch_instance_norm,
        "SwitchNorm": reference.switch_norm,
        "RepresentativeBatchNorm": reference.representative_batch_norm,
        "IBN": reference.ibn,
    }
    state = {"num_batches_tracked": torch.tensor(0), **state}
    return tracked[name](x, state, training=training)[0]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "name",
    [
        "SelfNorm",
        "CrossNorm",
        "CNSN",
        "BatchInstanceNorm",
        "SwitchNorm",
        "RepresentativeBatchNorm",
        "IBN",
        "MixStyle",
        "DSU",
    ],
)
def test_cost_model_computes_the_plain_formula(name: str, training: bool) -> None:
    torch.manual_seed(1)
    module = getattr(authors, name)(6).double().train(training)
    randomize(module)
    state = states_of(module)
    x = torch.randn(5, 6, 4, 3, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(5, 6, 4, 3, dtype=torch.float64)
    expected = plain_formula(name, x, state, training)
    (expected_grad,) = torch.autograd.grad((expected * upstream).sum(), x)
    torch.manual_seed(0)
    y = module(x)
    (grad,) = torch.autograd.grad((y * upstream).sum(), x)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(grad, expected_grad)
