"""The kernels between the passes on their own: gradients of parameters, and what they do not take."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from shiftnorm.ops import Affine, Attention, Moments, Pool, Switch, attend, has_retargeting, retarget, switch

pytestmark = pytest.mark.skipif(not has_retargeting(torch.zeros(1)), reason="the C++ kernels do not run here")


def _through_pool(m: Moments, *rows: Tensor) -> Affine | tuple[Tensor, Tensor] | None:
    return retarget(m, Pool(*rows[:2], None, None, None, pace=0.0, eps=1e-5, share=rows[2]), None, None)


def _through_switch(m: Moments, *rows: Tensor) -> Affine | tuple[Tensor, Tensor] | None:
    return switch(m, Switch(*rows, None, None, None, pace=0.0, eps=1e-5))


def _through_attention(m: Moments, *rows: Tensor) -> Affine | tuple[Tensor, Tensor] | None:
    return attend(m, Attention(*rows, None, None, None, pace=0.0, eps=1e-3, norm_eps=1e-5))


PARAMETERS = {
    _through_pool: ((4, 3), (4, 3), (3,)),
    _through_switch: ((3,), (3,), (3,), (3,)),
    _through_attention: ((2, 3), (2,), (2,), (2, 3), (2, 3)),
}


@pytest.mark.parametrize("through", PARAMETERS)
def test_gradients_of_gradients_of_parameters(through: Callable[..., tuple[Tensor, Tensor] | None]) -> None:
    x = torch.randn(4, 3, 2, 2, dtype=torch.float64) * (1 + torch.rand(4, 3, 1, 1, dtype=torch.float64)) + 1
    rows = [torch.rand(shape, dtype=torch.float64) + 0.1 for shape in PARAMETERS[through]]
    inputs = [each.requires_grad_() for each in (x.mean((2, 3)), x.var((2, 3), correction=0), *rows)]

    def both(mean: Tensor, var: Tensor, *rows: Tensor) -> Tensor:
        if through is _through_switch:  # shares with the sum 1, as the kernel asks for
            rows = (*(torch.softmax(each, 0) for each in rows[:2]), *rows[2:])
        found = through(Moments(mean, var, 4), *rows)
        assert found is not None
        return found[0] + 2 * found[1]

    assert torch.autograd.gradcheck(both, inputs)
    assert torch.autograd.gradgradcheck(both, inputs)


@pytest.mark.parametrize(
    "wrong", [torch.ones(2), torch.ones(1).expand(3), torch.ones(3).double(), torch.ones(3, device="meta")], ids=str
)
def test_parameters_that_they_do_not_take(wrong: Tensor) -> None:
    m = Moments(torch.randn(4, 3), torch.rand(4, 3), 9)
    row, pairs = torch.full((3,), 1 / 3), torch.ones(3, 3)
    assert _through_pool(m, row, row, row) is not None and _through_pool(m, row, row, wrong) is None
    assert _through_switch(m, row, row, row, row) is not None and _through_switch(m, row, wrong, row, row) is None
    assert _through_switch(m, row, row, wrong, row) is None
    assert _through_attention(m, pairs, row, row, pairs, pairs) is not None
    assert _through_attention(m, pairs, row, row, pairs, wrong) is None
    assert _through_attention(m, wrong, row, row, pairs, pairs) is None
    assert _through_attention(m, pairs, row, wrong, pairs, pairs) is None


def test_moments_that_they_do_not_take() -> None:
    row, pairs = torch.full((3,), 1 / 3), torch.ones(3, 3)
    m = Moments(torch.randn(4, 3), torch.rand(4, 3), 9)
    for other in (Moments(m.mean[:, :1].expand(4, 3), m.var, 9), Moments(m.mean, m.var, torch.full((4, 1), 9.0))):
        assert _through_switch(other, row, row, row, row) is None
        assert _through_attention(other, pairs, row, row, pairs, pairs) is None
    of_batch = _through_pool(Moments(m.mean[:1], m.var, 9), row, torch.zeros(3), torch.ones(3))
    assert of_batch is not None
    torch.testing.assert_close(of_batch[1], torch.zeros(4, 3))
