"""Norms that are constants in evaluation: their coefficients, and what of them is none."""

from __future__ import annotations

from typing import NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from shiftnorm.norms import IBN, Chain, MomentNorm, NormLayer, RunningMoments
from shiftnorm.ops import Affine, Moments
from shiftnorm.surgery.kinds import kind_of

__all__ = ["Constant", "InstanceChannels", "constant_of", "wide_dtype"]


class Constant(NamedTuple):
    """``y = gain_c * x + shift_c``, and what is left to do behind it.

    Example:
        >>> constant = constant_of(nn.BatchNorm2d(2, eps=0).eval())
        >>> constant.gain, constant.shift, constant.rest
        (tensor([1., 1.], dtype=torch.float64), tensor([0., 0.], dtype=torch.float64), None)

    Args:
        gain: (C,), float64 where the device has it.
        shift: (C,), likewise.
        rest: the module that does the rest; None if there is none.
        stays: what the rest is, in words.
    """

    gain: Tensor
    shift: Tensor
    rest: nn.Module | None = None
    stays: str = ""


@final
class InstanceChannels(MomentNorm):
    """Instance Normalization of some channels, the others pass: an IBN whose batch channels were folded.

        y = weight_c * (x - m_nc) / sqrt(v_nc + eps) + bias_c      for start <= c < stop      # v_nc biased
        y = x                                                      elsewhere

    An IBN with neutral running moments would not do: a change of their source would make its batch channels normalise
    again, and no running variance makes ``sqrt(running_var + eps)`` exactly 1 in every dtype.

    Example:
        >>> x = torch.randn(2, 6, 4, 4, dtype=torch.float64)
        >>> y = InstanceChannels(6, start=2, stop=4)(x)
        >>> torch.allclose(y[:, 4:], x[:, 4:]), y[:, 2:4].mean((2, 3)).abs().max() < 1e-6
        (True, tensor(True))

    Args:
        num_features: channels C.
        eps: added to the variance, in squared units of x.
        affine: ``weight`` and ``bias`` for the normalised channels.
        device: of the parameters.
        dtype: of the parameters.
        start: the first normalised channel.
        stop: the channel behind the last one.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (stop - start,).
    Modes: the same in training and evaluation.
    Raises: ValueError for another channel count, or a range that is empty or not within C.
    Cost: two reads and one write of x, as the IBN it comes from; it fuses in a Chain.
    Source: the instance half of Pan et al., "Two at Once", ECCV 2018.
    Differences: the passing channels are ``(x - m_nc) + m_nc``, equal to x up to one rounding.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        start: int,
        stop: int,
    ) -> None:
        super().__init__(num_features)
        if not 0 <= start < stop <= num_features:
            raise ValueError(
                f"InstanceChannels: expected 0 <= start < stop <= {num_features}, got start={start}, stop={stop}."
            )
        self.eps = eps
        self.start = start
        self.stop = stop
        self.init_affine(stop - start, affine=affine, device=device, dtype=dtype)

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean: those of InstanceNorm in the range, 1 and the plane's own elsewhere.

        Example:
            >>> norm = InstanceChannels(2, eps=0, affine=False, start=0, stop=1)
            >>> norm.affine(Moments(torch.tensor([[5.0, 7.0]]), torch.tensor([[4.0, 9.0]]), 9))
            Affine(gain=tensor([[0.5000, 1.0000]]), mean=tensor([[0., 7.]]))
        """
        mean, var = m.mean.expand_as(m.var), m.var
        gain = torch.rsqrt(var[:, self.start : self.stop] + self.eps)
        if self.weight is not None:
            gain = self.weight * gain
        new = torch.zeros_like(gain) if self.bias is None else self.bias.expand_as(gain)
        before, behind = mean[:, : self.start], mean[:, self.stop :]
        return Affine(
            torch.cat([torch.ones_like(before), gain, torch.ones_like(behind)], 1), torch.cat([before, new, behind], 1)
        )

    def extra_repr(self) -> str:
        """The arguments.

        Example:
            >>> InstanceChannels(4, start=0, stop=2).extra_repr()
            '4, eps=1e-05, start=0, stop=2, affine=True'
        """
        affine = self.weight is not None
        return f"{self.num_features}, eps={self.eps}, start={self.start}, stop={self.stop}, affine={affine}"


def constant_of(norm: nn.Module) -> Constant | str:
    """The constant coefficients of a norm as it stands now, or why it has none.

    Example:
        >>> from shiftnorm.norms import SelfNorm
        >>> constant_of(SelfNorm(8).eval())
        'SelfNorm normalizes every input by its own moments'
        >>> constant_of(Chain(nn.BatchNorm2d(8), SelfNorm(8)).eval()).stays
        'SelfNorm stays'

    Args:
        norm: a norm of ours, of torch, torchvision or timm.
    """
    with torch.no_grad():
        if isinstance(norm, Chain):
            found = _of_chain(norm)
        elif isinstance(norm, NormLayer):
            found = _of_ours(norm)
        else:
            found = _of_foreign(norm)
        if isinstance(found, Constant) and not (found.gain.isfinite() & found.shift.isfinite()).all():
            return "its coefficients are not finite"
    return found


def _of_chain(chain: Chain) -> Constant | str:
    gain: Tensor | None = None
    shift: Tensor | None = None
    reason = "the chain is the identity in evaluation"
    # What is the identity now may stand anywhere: a folded model is for evaluation.
    left = [each for each in chain if not (isinstance(each, MomentNorm) and each.is_identity)]
    while left:
        head = constant_of(left[0]) if kind_of(left[0]) else f"{type(left[0]).__name__} is no norm"
        if isinstance(head, str):
            reason = f"at the head of the chain, {head}"
            break
        gain, shift = (head.gain, head.shift) if gain is None or shift is None else _then(gain, shift, head)
        left[:1] = [] if head.rest is None else [head.rest]
        if head.rest is not None:
            break
    if gain is None or shift is None:
        return reason
    if not left:
        return Constant(gain, shift)
    rest = left[0] if len(left) == 1 else _resting(Chain(*left))
    return Constant(gain, shift, rest, _stays(left))


def _then(gain: Tensor, shift: Tensor, following: Constant) -> tuple[Tensor, Tensor]:
    return gain * following.gain, shift * following.gain + following.shift


def _of_ours(norm: NormLayer) -> Constant | str:
    who = type(norm).__name__
    if not isinstance(norm, MomentNorm):
        return f"{who} depends on every input"
    if norm.is_identity:
        return f"{who} is the identity in evaluation"
    if isinstance(norm, RunningMoments) and norm.pools_batch and norm.uses_batch:
        return _uses_batch(norm)
    if isinstance(norm, IBN) and 0 < norm.num_instance < (norm.num_features or 0):
        return _of_ibn(norm)
    if norm.needs_moments:
        return f"{who} normalizes every input by its own moments"
    if norm.is_regional or type(norm).draw is not NormLayer.draw:
        return f"{who} acts in a region of x, or at random"
    return _at_origin(norm)


def _uses_batch(norm: RunningMoments) -> str:
    if norm.source != "auto":
        return f"it looks at the batch in evaluation too (source {norm.source!r})"
    if norm.running_mean is None:
        return "it keeps no running statistics (track_running_stats=False) and looks at every batch"
    return "it is in training mode"


def _at_origin(norm: MomentNorm) -> Constant:
    # Around mean 0 the new mean of a plane is the constant that is added to it.
    some = next((each for each in (*norm.parameters(), *norm.buffers()) if each.is_floating_point()), None)
    device = None if some is None else some.device
    channels = norm.num_features or 1
    zeros = torch.zeros(1, channels, device=device, dtype=wide_dtype(device))
    affine = norm.affine(Moments(zeros, torch.ones_like(zeros), 1))
    return Constant(affine.gain.expand(1, channels)[0], affine.mean.expand(1, channels)[0])


def _of_ibn(norm: IBN) -> Constant:
    whole = _at_origin(norm)
    channels = whole.gain.shape[0]
    start = 0 if norm.order == "instance_first" else channels - norm.num_instance
    stop = start + norm.num_instance
    gain, shift = whole.gain.clone(), whole.shift.clone()
    gain[start:stop], shift[start:stop] = 1.0, 0.0
    rest = InstanceChannels(channels, norm.eps, norm.weight is not None, start=start, stop=stop)
    if norm.weight is not None and norm.bias is not None:
        # as they are, learnable or not, so that nothing of the norm is lost
        rest.weight = nn.Parameter(norm.weight[start:stop].clone(), norm.weight.requires_grad)
        rest.bias = nn.Parameter(norm.bias[start:stop].clone(), norm.bias.requires_grad)
    return Constant(gain, shift, rest.eval(), "the instance channels stay")


# What these classes add to torch's BatchNorm runs behind it, in children named drop and act.
_PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, _InstanceNorm.forward)
_KNOWN = (
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    "torchvision.ops.misc.FrozenBatchNorm2d",
)


def _of_foreign(norm: nn.Module) -> Constant | str:
    kind = kind_of(norm)
    who = type(norm).__name__
    if kind is None:
        return f"{who} is no norm"
    if kind.name not in ("batch", "sync batch", "frozen batch", "instance"):
        return f"{who} normalizes every input by its own moments"
    known = f"{type(norm).__module__}.{type(norm).__qualname__}" in _KNOWN
    if "forward" in vars(norm) or (not known and type(norm).forward not in _PLAIN_FORWARDS):
        return f"{who} has a forward of its own"
    if kind.name != "frozen batch":
        if kind.refusal is not None:
            return kind.refusal
        if norm.training:
            return "it is in training mode"
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (getattr(norm, name, None) for name in names)
    # torch's InstanceNorm asks the flag, its BatchNorm the buffers.
    if mean is None or var is None or (kind.name == "instance" and not norm.track_running_stats):
        return "it keeps no running statistics (track_running_stats=False) and looks at every input"
    wide = wide_dtype(mean.device)
    eps = norm.eps
    if not isinstance(eps, float | int):
        return f"its eps is {eps!r}, expected a number"
    gain = torch.rsqrt(var.to(wide) + eps)
    if weight is not None:
        gain = gain * weight
    shift = -mean * gain
    if bias is not None:
        shift = shift + bias
    left = [getattr(norm, name) for name in kind.fused]
    left = [each for each in left if type(each) is not nn.Identity]
    rest = None if not left else left[0] if len(left) == 1 else _resting(nn.Sequential(*left))
    return Constant(gain, shift, rest, _stays(left))


def _resting(container: nn.Module) -> nn.Module:
    container.training = False  # its members keep the modes they have
    return container


def _stays(left: list[nn.Module]) -> str:
    names = [type(each).__name__ for each in left]
    return "" if not names else f"{' and '.join(names)} stay{'s' if len(names) == 1 else ''}"


def wide_dtype(device: torch.device | None) -> torch.dtype:
    """float64, or float32 on a device without it.

    Example:
        >>> wide_dtype(torch.device("cpu"))
        torch.float64
    """
    return torch.float32 if device is not None and device.type == "mps" else torch.float64
