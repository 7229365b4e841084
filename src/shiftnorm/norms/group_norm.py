"""Group Normalization."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from shiftnorm.norms.base import MomentNorm
from shiftnorm.ops import Affine, Moments
from shiftnorm.ops.single import normalize_at_once

__all__ = ["GroupNorm", "native_group_norm"]


@final
class GroupNorm(MomentNorm):
    """Normalise every group of consecutive channels of a sample by the group's moments.

        mean_g, var_g = moments over the channels of group g and (*)        # biased
        y = weight_c * (x - mean_g) / sqrt(var_g + eps) + bias_c            # c in g

    Example:
        >>> GroupNorm(64)(torch.randn(4, 64, 8, 8)).shape
        torch.Size([4, 64, 8, 8])
        >>> GroupNorm(16, num_groups=4)(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C. It comes first, so that the class can be called as ``norm(C)``.
        num_groups: groups of C / num_groups channels; it must divide C. 1 is LayerNorm, C is InstanceNorm. It stands
            second, and not among the keywords, so that a call in torch's order (num_groups, num_channels) raises.
        eps: added to the variance, in squared units of x.
        affine: learn ``weight`` and ``bias``, one of each per channel.
        device: of the parameters.
        dtype: of the parameters.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``weight`` from 1 and ``bias`` from 0, (C,), if affine; no buffers. The keys are torch's.
    Modes: the same in training and evaluation.
    Raises: ValueError for another channel count, or if num_groups does not divide C.
    Cost: two reads and one write of x; 2C parameters if affine.
    Source: Wu and He, "Group Normalization", ECCV 2018.
    Differences: from torch.nn.GroupNorm: ``num_features`` first; groups of a single element give ``bias`` instead of
        raising; channels-last stays channels-last, and is not slower.
    """

    def __init__(
        self,
        num_features: int,
        num_groups: int = 32,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features)
        if not isinstance(num_groups, int) or isinstance(num_groups, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"GroupNorm: expected num_groups to be an int, got {num_groups!r}.")
        if num_groups < 1 or num_features % num_groups:
            divisors = ", ".join(str(groups) for groups in range(1, num_features + 1) if num_features % groups == 0)
            swapped = (
                f" In torch's order this is {num_features} groups of {num_groups} channels; here the channels come "
                f"first: GroupNorm({num_groups}, {num_features})."
                if num_groups > 0 and num_groups % num_features == 0
                else ""
            )
            raise ValueError(
                f"GroupNorm: expected num_groups to divide num_features={num_features} (one of {divisors}), "
                f"got {num_groups}.{swapped}"
            )
        self.num_groups = num_groups
        self.eps = eps
        self.init_affine(num_features, affine=affine, device=device, dtype=dtype)

    def affine(self, m: Moments) -> Affine:
        """Gain and new mean of every plane from the moments of its group.

        Example:
            >>> norm = GroupNorm(4, num_groups=2)
            >>> norm.affine(Moments(torch.tensor([[1.0, 3.0, 5.0, 5.0]]), torch.zeros(1, 4), 9)).mean.round()
            tensor([[-1.,  1.,  0.,  0.]], grad_fn=...)
        """
        group = m.pooled(over="groups", groups=self.num_groups)
        gain = torch.rsqrt(group.var + self.eps)
        if self.weight is not None:
            gain = self.weight * gain
        mean = gain * (m.mean - group.mean)
        return Affine(gain, mean if self.bias is None else mean + self.bias)

    def at_once(self, x: Tensor) -> Tensor | None:
        """One Triton kernel each way, on a GPU, where a group fits on chip.

        Example:
            >>> GroupNorm(4, num_groups=2).at_once(torch.randn(2, 4, 3, 3)) is None  # on a CPU
            True
        """
        return normalize_at_once(x, x.shape[1] // self.num_groups, self.weight, self.bias, self.eps)

    def native(self, x: Tensor) -> Tensor | None:
        """torch's kernel for contiguous planes on a CPU; its channels-last kernel is several times slower than ours.

        Example:
            >>> GroupNorm(4, num_groups=2).native(torch.randn(2, 4, 3, 3)).shape
            torch.Size([2, 4, 3, 3])
        """
        return native_group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> GroupNorm(4, num_groups=2)
            GroupNorm(4, num_groups=2, eps=1e-05, affine=True)
        """
        return f"{self.num_features}, num_groups={self.num_groups}, eps={self.eps}, affine={self.weight is not None}"


# The backward of torch's kernel loses digits of groups that lie further than this many deviations from zero.
_FARTHEST = 10.0


def native_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor | None:
    """torch's GroupNorm where it is both faster than two passes and as exact; None elsewhere.

    Example:
        >>> x = torch.randn(2, 4, 3, 3)
        >>> native_group_norm(x, 2, None, None, 1e-5).shape
        torch.Size([2, 4, 3, 3])
        >>> native_group_norm(x + 1000, 2, None, None, 1e-5) is None
        True

    Args:
        x: (N, C, *).
        num_groups: divides C.
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.
    """
    own = x.dtype if weight is None else weight.dtype
    length = x.shape[2:].numel()
    if x.is_cuda or not x.is_contiguous() or length == 1 or own != x.dtype or x.shape[0] == 0:
        return None
    samples, channels = x.shape[:2]
    y, mean, rstd = torch.native_group_norm(x, weight, bias, samples, channels, length, num_groups, eps)
    far = (mean.detach() * rstd.detach()).abs().amax() > _FARTHEST  # a look at (N, groups) values, on the CPU
    return None if far else y
