"""DomainNorm: the forms that share the name, and pixels that have no direction."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftnorm.norms import DomainNorm

FORMS = ("in_l2_affine", "in_l2", "l2_in", "l2_only")
HAS_WEIGHT = {"in_l2_affine": True, "in_l2": False, "l2_in": True, "l2_only": False}


def authors(form: str, x: torch.Tensor, norm: DomainNorm) -> torch.Tensor:
    if form == "l2_only":
        return F.normalize(x, dim=1)
    if form == "l2_in":
        return F.instance_norm(F.normalize(x, dim=1), weight=norm.weight, bias=norm.bias)
    y = F.normalize(F.instance_norm(x), dim=1)
    if form == "in_l2":
        return y
    shape = (1, -1, *(1 for _ in x.shape[2:]))
    return y * norm.weight.reshape(shape) + norm.bias.reshape(shape)


def randomised(form: str, **arguments) -> DomainNorm:
    norm = DomainNorm(5, form=form, dtype=torch.float64, **arguments)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(3, 5, 7), (3, 5, 4, 6), (2, 5, 3, 2, 4)], ids=lambda shape: f"{len(shape)}d")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_equals_the_authors_composition(form, shape, channels_last):
    norm = randomised(form)
    x = torch.randn(shape, dtype=torch.float64) * 3 + 2
    if channels_last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    x.requires_grad_()
    inputs = (x, *norm.parameters())
    y, expected = norm(x), authors(form, x, norm)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-12)
    gradients = [torch.autograd.grad((output**3).sum(), inputs) for output in (y, expected)]
    torch.testing.assert_close(*gradients, atol=1e-10, rtol=1e-10)
    assert y.stride() == x.stride()


@pytest.mark.parametrize("form", FORMS)
def test_gradients_of_both_orders(form):
    norm = randomised(form)
    x = torch.randn(2, 5, 2, 2, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in norm.named_parameters()]

    def function(x, *parameters):
        return torch.func.functional_call(norm, dict(zip(names, parameters, strict=True)), (x,))

    inputs = (x, *norm.parameters())
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dead_pixels_give_zero_and_no_gradient(form, dtype):
    norm = DomainNorm(4, form=form)
    x = torch.randn(2, 4, 3, 3)
    x[0] = 0  # a dead image: no direction, whatever the form
    x[1, :, 0, 0] = 0  # a dead pixel: no direction before IN
    x = x.to(dtype).requires_grad_()
    y = norm(x)
    assert y.dtype == dtype and y.isfinite().all() and not y[0].any()
    (y * torch.randn_like(y)).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and not x.grad[0].any()
    if form.startswith("l2"):
        assert not x.grad[1, :, 0, 0].any()


@pytest.mark.parametrize("form", FORMS)
def test_single_element_planes_and_vectors(form):
    norm = DomainNorm(4, form=form, dtype=torch.float64)
    for shape in [(3, 4), (3, 4, 1, 1), (1, 4, 1, 1), (0, 4, 2, 2)]:
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        y = norm(x)
        y.square().sum().backward()
        assert y.shape == x.shape and y.isfinite().all()
        assert x.grad is not None and x.grad.isfinite().all()
        if form != "l2_only":
            torch.testing.assert_close(y, torch.zeros_like(y), atol=1e-12, rtol=0)


@pytest.mark.parametrize("form", FORMS)
def test_without_l2_every_form_is_affine_instance_norm(form):
    norm = randomised(form, l2=False)
    x = torch.randn(2, 5, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(norm(x), F.instance_norm(x, weight=norm.weight, bias=norm.bias))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("l2", [True, False])
def test_official_state_goes_there_and_back(form, l2):
    norm = DomainNorm(5, form=form, l2=l2)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    used = HAS_WEIGHT[form] or not l2
    assert (norm.weight is not None) == used  # a parameter without gradient would stop DistributedDataParallel
    prefix, shape = ("normalize.", (5,)) if form.startswith("l2") else ("", (1, 5, 1, 1))
    official = norm.to_official()
    assert {key: tuple(tensor.shape) for key, tensor in official.items()} == {
        f"{prefix}weight": shape,
        f"{prefix}bias": shape,
    }
    torch.testing.assert_close(norm.from_official(official), dict(norm.state_dict()))
    assert norm.to_official({}) == {}
    with pytest.raises(KeyError, match=f"{prefix}weight"):
        norm.from_official({"gamma": torch.ones(5)})


def test_one_activation_is_kept():
    norm, x = DomainNorm(16), torch.randn(4, 16, 8, 8, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        norm(x)
    assert sum(kept.values()) < 1.1 * x.untyped_storage().nbytes()


def test_masked_elements_do_not_count():
    norm, x = DomainNorm(4), torch.randn(2, 4, 9)
    mask = torch.ones(1, 1, 9)
    mask[..., 6:] = 0
    torch.testing.assert_close(norm(x, mask=mask)[..., :6], norm(x[..., :6]))


def test_unknown_form_is_named():
    with pytest.raises(ValueError, match=r"expected form to be one of .*, got 'l2'"):
        DomainNorm(4, form="l2")
