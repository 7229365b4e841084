"""SelfNorm: every plane recalibrated by an attention on its own mean and standard deviation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast, final

import torch
from torch import Tensor, nn

from shiftnorm.norms.base import MomentNorm, OfficialTensor, has_hooks
from shiftnorm.norms.running import RunningMoments
from shiftnorm.ops import Affine, Gate, Moments, has_retargeting, retarget

__all__ = ["SelfNorm"]


@final
class SelfNorm(MomentNorm):
    """Scale every plane (and, with two branches, its mean) by a gate computed from its own mean and deviation.

    With s = sqrt(v_u + eps) the unbiased deviation of plane (n, c), m its mean, and for each branch
    gate(m, s) = sigmoid(BatchNorm over n of (w_c0 * m + w_c1 * s)):

        y = g * x                       # one branch, what all published networks use
        y = g * (x - m) + f * m         # two branches: g gates the contrast, f the mean

    Example:
        >>> norm = SelfNorm(16)
        >>> norm(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        num_features: channels C.
        eps: added to the unbiased variance under the root.
        momentum: weight of the newest batch in the gates' running moments; None averages all batches equally.
        device: of parameters and buffers.
        dtype: of parameters and buffers.
        two_branches: gate the mean by a branch of its own.
        attention: "channel" sees one channel at a time, as published; "mixing" lets all channels talk through a
            bottleneck, as squeeze-and-excitation does, on means and deviations.
        reduction: how much narrower the bottleneck of "mixing" is.
        start: "half", the authors' start, where gates begin around 0.5 and so halve x; "identity" begins at exactly 1:
            gates are twice the sigmoid and the gate's BatchNorm weight starts at 0.

    Shape: x (N, C, *) of any rank from 2; the output has x's shape, dtype and memory format.
    State: ``gate.fc`` (C, 2) uniform in +-1/sqrt(2), ``gate.weight`` and ``gate.bias`` (C,) from 1 and 0, and the
        buffers of RunningMoments under ``gate.``; the same under ``mean_gate.`` with two branches. "mixing" has
        ``gate.squeeze.weight`` (C/r, 2C) and ``gate.fc.weight`` (C, C/r) instead of ``gate.fc``.
    Modes: training normalises the gates over the batch; evaluation, and training with a single sample, by running
        moments.
    Raises: ValueError for another channel count.
    Cost: two reads and one write of x; 4C parameters a branch. Nothing more behind a BatchNorm in a Chain.
    Source: Tang et al., "CrossNorm and SelfNorm for Generalization under Distribution Shifts", ICCV 2021.
    Differences: any rank instead of 4-D; a batch of one trains by running moments instead of raising; 1x1 planes have
        deviation sqrt(eps) instead of NaN; ``two_branches``, not ``is_two``, and any true value counts; half precision
        keeps moments in float32, where the authors' eps of 1e-12 vanishes in float16.
    """

    official_prefix: ClassVar[str] = "selfnorm."

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-12,
        momentum: float | None = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        two_branches: bool = False,
        attention: Literal["channel", "mixing"] = "channel",
        reduction: int = 16,
        start: Literal["half", "identity"] = "half",
    ) -> None:
        super().__init__(num_features)
        if attention not in ("channel", "mixing"):
            raise ValueError(f"SelfNorm: expected attention 'channel' or 'mixing', got {attention!r}.")
        if start not in ("half", "identity"):
            raise ValueError(f"SelfNorm: expected start 'half' or 'identity', got {start!r}.")
        if reduction < 1:
            raise ValueError(f"SelfNorm: expected reduction to be at least 1, got {reduction}.")
        self.eps = eps
        self.attention = attention
        bottleneck = max(1, num_features // reduction) if attention == "mixing" else None

        def gate() -> _Gate:
            return _Gate(num_features, momentum, bottleneck, start == "identity", device, dtype)

        self.gate = gate()
        self.mean_gate = gate() if two_branches else None

    def affine(self, m: Moments) -> Affine:
        """Gates from the planes' own moments.

        Example:
            >>> SelfNorm(2).affine(Moments(torch.zeros(4, 2), torch.ones(4, 2), 9)).gain.shape
            torch.Size([4, 2])
        """
        by_kernels = None if self.mean_gate is None else self._two_gates(m, self.mean_gate)
        if by_kernels is not None:
            return by_kernels
        std = m.deviation(self.eps)
        gain = self.gate(m.mean, std)
        mean_gain = gain if self.mean_gate is None else self.mean_gate(m.mean, std)
        return Affine(gain, mean_gain * m.mean)

    def _two_gates(self, m: Moments, mean_gate: _Gate) -> Affine | None:
        # the kernel's affine is one gate on gain and mean: the gain of the first, the mean of the second
        first = self._by_kernel(m, self.gate)
        if first is None:
            return None
        second = self._by_kernel(m, mean_gate)
        mean = mean_gate(m.mean, m.deviation(self.eps)) * m.mean if second is None else second.mean
        return Affine(first.gain, mean)

    def _by_kernel(self, m: Moments, gate: _Gate) -> Affine | None:
        step = gate.step(self.eps) if has_retargeting(m.var) else None
        return None if step is None else retarget(m, None, None, step)

    def step(self, m: Moments, draw: Any) -> Gate | None:
        """The gate, in training with one branch of the published attention.

        Example:
            >>> m = Moments(torch.zeros(4, 3), torch.ones(4, 3), 9)
            >>> SelfNorm(3).step(m, None).eps, SelfNorm(3).eval().step(m, None)
            (1e-12, None)
        """
        del m, draw
        return self.gate.step(self.eps) if self.mean_gate is None else None

    def _official(self, state: Mapping[str, Tensor]) -> dict[str, OfficialTensor]:
        if self.attention == "mixing":
            raise ValueError("SelfNorm: attention='mixing' is ours; the authors have no state_dict for it.")
        table: dict[str, OfficialTensor] = {}
        for name in state:
            branch, _, rest = name.partition(".")
            letter = "g" if branch == "gate" else "f"
            fc = OfficialTensor(f"{letter}_fc.weight", (-1, 1, 2))
            table[name] = fc if rest == "fc" else OfficialTensor(f"{letter}_bn.{rest}")
        return table

    def extra_repr(self) -> str:
        """The arguments, as torch prints them.

        Example:
            >>> SelfNorm(3).extra_repr()
            "3, eps=1e-12, two_branches=False, attention='channel'"
        """
        two = self.mean_gate is not None
        return f"{self.num_features}, eps={self.eps}, two_branches={two}, attention={self.attention!r}"


class _Gate(RunningMoments):
    """sigmoid(BatchNorm over the batch of a linear map of (mean, std)), one value per plane."""

    def __init__(
        self,
        num_features: int,
        momentum: float | None,
        bottleneck: int | None,
        starts_at_identity: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.squeeze = None
        if bottleneck is None:
            self.fc = nn.Parameter(
                torch.empty(num_features, 2, device=device, dtype=dtype).uniform_(-(0.5**0.5), 0.5**0.5)
            )
        else:
            self.squeeze = nn.Linear(2 * num_features, bottleneck, bias=False, device=device, dtype=dtype)
            self.fc = nn.Linear(bottleneck, num_features, bias=False, device=device, dtype=dtype)
        scale = 0.0 if starts_at_identity else 1.0
        self.height = 2.0 if starts_at_identity else 1.0
        self.weight = nn.Parameter(torch.full((num_features,), scale, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        self.init_running(num_features, momentum=momentum, device=device, dtype=dtype)

    def step(self, eps: float) -> Gate | None:
        if self.squeeze is not None or not self.is_plain or has_hooks(self):
            return None
        pace = cast("float", self.momentum)
        return Gate(cast("Tensor", self.fc), self.weight, self.bias, *self.updated(), pace, eps, 1e-5, self.height)

    def forward(self, mean: Tensor, std: Tensor) -> Tensor:
        if self.squeeze is None:
            of_mean, of_std = cast("Tensor", self.fc).unbind(1)  # torch.func puts tensors in the place of parameters
            z = torch.addcmul(of_mean * mean, of_std, std)
        else:
            both = torch.cat([mean, std], dim=1)
            hidden = torch.relu(both @ self.squeeze.weight.to(both.dtype).T)
            z = hidden @ cast("nn.Linear", self.fc).weight.to(both.dtype).T
        gate = torch.sigmoid(self.normalise_features(z, self.weight, self.bias))
        return gate if self.height == 1.0 else self.height * gate
