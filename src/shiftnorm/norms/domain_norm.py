"""Domain Normalization, in the forms that go by this name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from shiftnorm.norms.base import NormLayer, OfficialTensor, check_input
from shiftnorm.ops import Affine, Moments, choose, is_traced, moments, normalize
from shiftnorm.ops.dispatch import is_batched
from shiftnorm.ops.eager import accumulation_dtype, as_planes, spatial_dims
from shiftnorm.ops.on_chip import pixels_on_chip
from shiftnorm.ops.triton_launch import PixelLaunch

__all__ = ["DomainNorm", "Form"]

Form = Literal["in_l2_affine", "in_l2", "l2_in", "l2_only"]

# Pixels with a shorter vector of channels have no direction.
_SHORTEST = 1e-12


@final
class DomainNorm(NormLayer):
    """Normalise every plane over space and every pixel over channels (outside the moment family).

    With IN(x) = (x - m) / sqrt(v + eps), v biased, and L2(x) = x / ||x||, the length taken over a pixel's channels:

        y = weight_c * L2(IN(x)) + bias_c           # form "in_l2_affine", the paper's
        y = L2(IN(x))                               # form "in_l2"
        y = weight_c * IN(L2(x)) + bias_c           # form "l2_in"
        y = L2(x)                                   # form "l2_only"
        y = weight_c * IN(x) + bias_c               # l2=False, whatever the form

    IN drops what differs between images, L2 what differs between regions of one.

    Example:
        >>> y = DomainNorm(16)(torch.randn(4, 16, 8, 8))
        >>> torch.allclose(y.norm(dim=1), torch.ones(4, 8, 8))
        True

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of IN's input: of x, or of a unit vector's channel in "l2_in".
        affine: learn ``weight`` and ``bias`` in the forms that have them.
        device: of the parameters.
        dtype: of the parameters.
        form: which publication: "in_l2_affine", the default, is the paper's and DSMNet.py's DomainNorm; "l2_in" is
            DSMNet2x2.py's, with which the authors train and which the weights released since December 2021 want;
            "in_l2" is DSMNet.py's until January 2021; "l2_only" is what DSMNet.py's DomainNorm2 does.
        l2: False leaves the L2 step out, as the authors do before weights of non-local blocks.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,), in the forms that use them; no buffers.
    Modes: the same in training and evaluation.
    Raises: ValueError for another channel count or an unknown form.
    Cost: three reads and one write of x and a few temporaries; one activation kept for the backward pass ("l2_in":
        two). 2C parameters, or none.
    Source: Zhang et al., "Domain-Invariant Stereo Matching Networks", ECCV 2020.
    Differences: pixels of zero length give 0 (then ``bias``) and no gradient, where the authors' gradient is 1e12 times
        too large to use; planes of one element work; parameters that a form never uses do not exist, so
        DistributedDataParallel has nothing to wait for (``from_official`` ignores them, ``to_official`` fills them in).
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        form: Form = "in_l2_affine",
        l2: bool = True,
    ) -> None:
        super().__init__(num_features)
        if form not in get_args(Form):
            raise ValueError(f"DomainNorm: expected form to be one of {get_args(Form)}, got {form!r}.")
        self.eps = eps
        self.form: Form = form
        self.l2 = bool(l2)
        self._channels = num_features
        self._affine = affine
        used = affine and not (self.l2 and form in ("in_l2", "l2_only"))
        self.init_affine(num_features, affine=used, device=device, dtype=dtype)

    def forward(self, x: Tensor, *, draw: Any = None, mask: Tensor | None = None) -> Tensor:
        """Normalise x.

        Example:
            >>> DomainNorm(3, form="l2_in")(torch.randn(2, 3, 4, 4)).mean((2, 3)).abs().max() < 1e-5
            tensor(True)

        Args:
            x: (N, C, *), floating point.
            draw: None; the layer draws nothing.
            mask: (N, 1, *) or broadcastable; only elements where it is nonzero count in IN's moments.

        Returns:
            Tensor of x's shape, dtype and memory format.
        """
        del draw
        check_input(self, x)
        if not self.l2:
            return normalize(x, self._instance_affine, mask=mask)
        if self.form == "l2_only":
            return _unit(x, None, None, None, None, x.dtype)
        if self.form == "l2_in":
            u = _unit(x, None, None, None, None, accumulation_dtype(x))
            return normalize(u, self._instance_affine, mask=mask).to(x.dtype)
        m = moments(x, mask)
        return _unit(x, m.mean, torch.rsqrt(m.var + self.eps), self.weight, self.bias, x.dtype)

    def _instance_affine(self, m: Moments) -> Affine:
        gain = torch.rsqrt(m.var + self.eps)
        if self.weight is None or self.bias is None:
            return Affine(gain, torch.zeros_like(gain))
        return Affine(self.weight * gain, self.bias.to(gain.dtype).expand_as(gain))

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the authors' state_dict of the form's class; what the form never uses is dropped.

        Example:
            >>> norm = DomainNorm(3, form="l2_in")
            >>> norm.from_official({"normalize.weight": torch.ones(3), "normalize.bias": torch.zeros(3)})["bias"]
            tensor([0., 0., 0.])

        Args:
            state: the layer's own entries, without a prefix.

        Raises:
            KeyError: if a key is missing or unknown; the text names both.
        """
        if self.weight is not None or not self._affine:
            return super().from_official(state)
        table = self._official({"weight": torch.empty(0), "bias": torch.empty(0)})
        keys = sorted(official.key for official in table.values())
        if sorted(state) != keys:
            raise KeyError(f"DomainNorm.from_official: expected the keys {keys}, got {sorted(state)}.")
        return {}

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Translate ours into the state_dict of the form's class, with the unused parameters it also has.

        Example:
            >>> DomainNorm(3).to_official()["weight"].shape
            torch.Size([1, 3, 1, 1])
            >>> DomainNorm(3, form="l2_only").to_official()["normalize.weight"]
            tensor([1., 1., 1.])
        """
        if state is None and self.weight is None and self._affine:
            state = {"weight": torch.ones(self._channels), "bias": torch.zeros(self._channels)}
        return super().to_official(state)

    def _official(self, state: Mapping[str, Tensor]) -> dict[str, OfficialTensor]:
        if self.form in ("l2_in", "l2_only"):
            return {name: OfficialTensor(f"normalize.{name}") for name in state}
        return {name: OfficialTensor(name, (1, -1, 1, 1)) for name in state}

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> DomainNorm(3)
            DomainNorm(3, eps=1e-05, affine=True, form='in_l2_affine', l2=True)
        """
        return f"{self.num_features}, eps={self.eps}, affine={self._affine}, form={self.form!r}, l2={self.l2}"


def _unit(
    x: Tensor,
    mean: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    if is_traced(x):
        return _plain_unit(x, mean, gain, weight, bias, dtype)
    return _Unit.apply(x, mean, gain, weight, bias, dtype)  # pyright: ignore


def _plain_unit(
    x: Tensor,
    mean: Tensor | None,
    gain: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    z = _centred(x, mean, gain)
    y = z * _inverse_length(z)
    if weight is not None and bias is not None:
        weight, bias = (t.to(y.dtype).unsqueeze(0) for t in (weight, bias))
        y = torch.addcmul(as_planes(bias, x), y, as_planes(weight, x))
    return y.to(dtype)


def _centred(x: Tensor, mean: Tensor | None, gain: Tensor | None) -> Tensor:
    wide = x.to(accumulation_dtype(x))
    return wide if mean is None or gain is None else (wide - as_planes(mean, x)) * as_planes(gain, x)


def _inverse_length(z: Tensor) -> Tensor:
    square = z.square().sum(1, keepdim=True)
    alive = square > _SHORTEST**2
    # The inner choice keeps the root's gradient finite, the outer one removes it.
    return torch.where(alive, torch.where(alive, square, 1.0).rsqrt(), 0.0)


class _Unit(torch.autograd.Function):
    """``_plain_unit`` that keeps x alone, where autograd would keep four activations, and computes the rest again."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:  # pyright: ignore
        *tensors, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)
        ctx.launch = pixels_on_chip(*tensors)
        if ctx.launch is None:
            return _plain_unit(*inputs)
        from shiftnorm.ops import triton_unit

        x, mean, gain, weight, bias = tensors
        return triton_unit.forward(x, ctx.launch, mean, gain, weight, bias, ctx.dtype, _SHORTEST)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # pyright: ignore
        if torch.is_grad_enabled() or is_batched(g):
            return *_plain_gradients(g, ctx.saved_tensors, ctx.needs_input_grad, ctx.dtype), None
        if ctx.launch is not None:
            return *_kernel_gradients(g, ctx.saved_tensors, ctx.launch), None
        x, mean, gain, weight, _ = ctx.saved_tensors
        _, needs_mean, needs_gain, needs_weight, needs_bias, _ = ctx.needs_input_grad
        pixels = (0, *spatial_dims(x))
        z = _centred(x, mean, gain)
        inverse = _inverse_length(z)
        u = z * inverse
        g = g.to(u.dtype)
        dbias = g.sum(pixels) if needs_bias else None
        product = g * u
        dweight = product.sum(pixels) if needs_weight else None
        if weight is not None:
            weight = as_planes(weight.to(u.dtype).unsqueeze(0), x)
            product, g = product.mul_(weight), g * weight
        # What changes the length of a pixel's vector has no effect: dz is g without its part along u.
        dz = torch.addcmul(g, u, product.sum(1, keepdim=True), value=-1).mul_(inverse)
        if gain is None:
            return dz.to(x.dtype), None, None, dweight, dbias, None
        total = dgain = None
        if needs_mean or needs_gain:
            total, dgain = choose(x).reduce(dz, x, mean, gain.square().reciprocal())
        dmean = None if total is None else -gain * total
        return dz.mul_(as_planes(gain, x)).to(x.dtype), dmean, dgain, dweight, dbias, None


def _kernel_gradients(g: Tensor, saved: Sequence[Any], launch: PixelLaunch) -> tuple[Tensor | None, ...]:
    from shiftnorm.ops import triton_unit

    x, mean, gain, weight, bias = saved
    dx, of_moments, of_parameters = triton_unit.backward(g, x, launch, mean, gain, weight, _SHORTEST)
    dmean, dgain = (None, None) if of_moments is None else of_moments.unbind()
    if of_parameters is None:
        return dx, dmean, dgain, None, None
    return dx, dmean, dgain, of_parameters[0].to(weight.dtype), of_parameters[1].to(bias.dtype)


def _plain_gradients(
    g: Tensor, saved: Sequence[Tensor | None], needs: Sequence[bool], dtype: torch.dtype
) -> list[Tensor | None]:
    # Gradients that can be differentiated again. Each input stands alone, as a view: mean and gain depend on x, and
    # that path is not this node's; second derivatives go on through the views.
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        views = [None if t is None else t.view_as(t) for t in saved]
        y = _plain_unit(*views, dtype)  # pyright: ignore
    wanted = [t for t, need in zip(views, needs, strict=False) if need and t is not None]
    gradients = iter(torch.autograd.grad(y, wanted, g, create_graph=again))  # pyright: ignore
    return [next(gradients) if need else None for need in needs[: len(views)]]
