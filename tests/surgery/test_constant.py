"""Which norms are constants in evaluation, and what of them is none."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shiftnorm.norms import IBN, Chain, MomentNorm, SelfNorm
from shiftnorm.ops import Affine, Moments
from shiftnorm.surgery.constant import Constant, InstanceChannels, constant_of


@pytest.mark.parametrize("start,stop", [(0, 2), (2, 5), (1, 3), (0, 5)])
def test_instance_channels(start: int, stop: int) -> None:
    x = torch.randn(3, 5, 4, 6, dtype=torch.float64) * 3 + 1
    norm = InstanceChannels(5, 0.1, dtype=torch.float64, start=start, stop=stop)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    y = norm(x)
    expected = x.clone()
    expected[:, start:stop] = F.instance_norm(x[:, start:stop], weight=norm.weight, bias=norm.bias, eps=0.1)
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(y, norm.eval()(x))
    channels_last = norm(x.to(memory_format=torch.channels_last))
    assert channels_last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("start,stop", [(2, 2), (-1, 2), (0, 6)])
def test_instance_channels_refuse_an_impossible_range(start: int, stop: int) -> None:
    with pytest.raises(ValueError, match=r"InstanceChannels: expected 0 <= start < stop <= 5, got start="):
        InstanceChannels(5, start=start, stop=stop)


def test_what_stays_fuses_in_a_chain() -> None:
    chain = Chain(IBN(6), SelfNorm(6)).eval().double()
    nn.init.normal_(chain[0].running_mean)
    constant = constant_of(chain)
    assert isinstance(constant, Constant) and isinstance(constant.rest, Chain)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    shape = (1, 6, 1, 1)
    y = constant.rest(constant.gain.view(shape) * x + constant.shift.view(shape))
    assert torch.allclose(y, chain(x), rtol=0, atol=1e-12)
    assert torch.equal(constant.gain[:3], torch.ones(3, dtype=torch.float64))


class Scale(MomentNorm):
    """A norm of the user's own: constant, and it says so."""

    looks = False

    @property
    def needs_moments(self) -> bool:
        return self.looks

    def affine(self, m: Moments) -> Affine:
        return Affine(torch.full_like(m.mean, 3.0), 3.0 * (m.mean - 1.0))


def test_a_norm_of_the_users_is_asked_not_known() -> None:
    constant = constant_of(Scale(2))
    assert isinstance(constant, Constant)
    assert constant.gain.tolist() == [3.0, 3.0] and constant.shift.tolist() == [-3.0, -3.0]
    norm = Scale(2)
    norm.looks = True
    assert constant_of(norm) == "Scale normalizes every input by its own moments"


class Noisy(MomentNorm):
    """Random, but blind to the moments."""

    @property
    def needs_moments(self) -> bool:
        return False

    def draw(self, x: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        return torch.rand(x.shape[:2], generator=generator)

    def affine(self, m: Moments, draw: torch.Tensor) -> Affine:
        return Affine(draw, m.mean)


def test_a_random_norm_is_no_constant() -> None:
    assert constant_of(Noisy(2)) == "Noisy acts in a region of x, or at random"


def test_what_looks_at_every_input() -> None:
    for norm in (nn.GroupNorm(1, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4)):
        assert isinstance(constant_of(norm.eval()), str)
    assert constant_of(Chain(nn.ReLU(), nn.BatchNorm2d(4)).eval()) == "at the head of the chain, ReLU is no norm"
    assert "at the head of the chain, SelfNorm" in str(constant_of(Chain(SelfNorm(4), nn.BatchNorm2d(4)).eval()))
