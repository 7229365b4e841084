"""What every norm shares: draws, the contract of ``affine``, the input check and the authors' state_dict keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn

from shiftnorm.norms.draws import is_known
from shiftnorm.norms.fused import run_fused
from shiftnorm.ops import Affine, Exchange, Gate, Moments, Pool, is_forced, is_traced

__all__ = ["MomentNorm", "NormLayer", "OfficialTensor", "check_input", "has_hooks"]


class OfficialTensor(NamedTuple):
    """Where a tensor of ours stands in the authors' state_dict: its key there and its shape (-1 where C goes).

    Example:
        >>> OfficialTensor("weight", (1, -1, 1, 1)).key
        'weight'
    """

    key: str
    shape: tuple[int, ...] | None = None


class NormLayer(nn.Module):
    """The outer contract of every layer of this package: draw, replay, and the authors' state_dict and back.

    Example:
        >>> from shiftnorm.norms import InstanceNorm
        >>> isinstance(InstanceNorm(3), NormLayer)
        True

    Args:
        num_features: channels C, checked against every input; None accepts any number.

    Raises:
        TypeError: if ``num_features`` is not an int.
        ValueError: if it is below 1.
    """

    official_keys: ClassVar[Mapping[str, OfficialTensor]] = {}
    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int | None) -> None:
        super().__init__()
        checked: Any = num_features  # what the annotation promises a caller may not have kept
        if checked is not None and (not isinstance(checked, int) or isinstance(checked, bool)):
            raise TypeError(f"{type(self).__name__}: expected num_features to be an int, got {num_features!r}.")
        if num_features is not None and num_features < 1:
            raise ValueError(f"{type(self).__name__}: expected num_features to be at least 1, got {num_features}.")
        self.num_features = num_features

    def init_affine(
        self,
        num_features: int,
        *,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Register ``weight`` (C,) of ones and ``bias`` (C,) of zeros, or None for both.

        Example:
            >>> from shiftnorm.norms import InstanceNorm
            >>> InstanceNorm(3, affine=True).weight.shape
            torch.Size([3])

        Args:
            num_features: channels C.
            affine: False registers None, as torch's norms do.
            device: of the parameters.
            dtype: of the parameters.
        """
        if affine:
            self.weight = nn.Parameter(torch.ones(num_features, device=device, dtype=dtype))
            self.bias = nn.Parameter(torch.zeros(num_features, device=device, dtype=dtype))
        else:
            self.register_parameter("weight", None)
            self.register_parameter("bias", None)

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> Any:
        """The random numbers of one call, as plain tensors on x's device; None if the layer has none.

        ``norm(x, draw=norm.draw(x))`` is ``norm(x)``, and passing the same draw again replays it exactly.

        Example:
            >>> from shiftnorm.norms import InstanceNorm
            >>> InstanceNorm(3).draw(torch.randn(2, 3, 4)) is None
            True

        Args:
            x: the input; only its shape, device and dtype are looked at.
            generator: a generator on x's device; None uses torch's default one.
        """
        del x, generator
        return None

    def rests(self, draw: Any) -> bool:
        """Whether the draw is known, without asking a device, to return x untouched: its ``acts`` on a CPU, untraced.

        Example:
            >>> from shiftnorm.norms import CrossNorm, CrossNormDraw
            >>> CrossNorm().rests(CrossNormDraw(torch.tensor(False), torch.tensor([1, 0])))
            True
        """
        acts = getattr(draw, "acts", None)
        return acts is not None and is_known(acts) and not acts

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the authors' state_dict of this layer into ours.

        Example:
            >>> from shiftnorm.norms import RepresentativeBatchNorm
            >>> norm = RepresentativeBatchNorm(3)
            >>> norm.from_official(norm.to_official())["weight"].shape
            torch.Size([3])

        Args:
            state: the layer's own entries, without a prefix.

        Raises:
            KeyError: if a key is missing or unknown; the text names both.
        """
        own = self.state_dict()
        names = {official.key: name for name, official in self._official(own).items()}
        _check_keys(type(self).__name__, expected=names, got=state)
        return {names[key]: tensor.reshape(own[names[key]].shape) for key, tensor in state.items()}

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Translate our state_dict (or tensors under the same names, such as gradients) into the authors'.

        Example:
            >>> from shiftnorm.norms import RepresentativeBatchNorm
            >>> RepresentativeBatchNorm(3).to_official()["weight"].shape
            torch.Size([1, 3, 1, 1])
        """
        state = self.state_dict() if state is None else state
        table = self._official(state)
        return {
            table[name].key: tensor.reshape(cast("tuple[int, ...]", table[name].shape or tensor.shape))
            for name, tensor in state.items()
        }

    def _official(self, state: Mapping[str, Tensor]) -> dict[str, OfficialTensor]:
        return {name: self.official_keys.get(name, OfficialTensor(name)) for name in state}


def _check_keys(who: str, *, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or unknown:
        raise KeyError(
            f"{who}.from_official: expected the keys {sorted(expected)}; missing {missing}, unknown {unknown}."
        )


class MomentNorm(NormLayer, ABC):
    """A norm that re-targets the moments of every plane; a subclass says how in one method, :meth:`affine`.

    Everything else is here: the input check, the pass that reads the moments, the pass that applies the affine, their
    fused gradients, mixed precision, memory formats and replayable draws.

    Example:
        >>> from shiftnorm.ops import Affine, Moments
        >>> class Centre(MomentNorm):
        ...     def affine(self, m: Moments) -> Affine:
        ...         return Affine(torch.ones_like(m.mean), torch.zeros_like(m.mean))
        >>> Centre(3)(torch.randn(2, 3, 8)).mean(2).abs().max() < 1e-6
        tensor(True)
    """

    constant_moments: ClassVar[bool] = False
    """True if no gradient flows through the moments (MixStyle)."""

    algebra_backend: str | Callable[..., Any] | None = None
    """The compiler of :meth:`affine`, see ``compile_algebra``; None runs it as it stands."""

    @property
    def is_identity(self) -> bool:
        """Whether the layer returns x untouched now, without a pass over it.

        Example:
            >>> from shiftnorm.norms import MixStyle
            >>> MixStyle().eval().is_identity
            True
        """
        return False

    @property
    def needs_moments(self) -> bool:
        """Whether ``affine`` looks at the moments of x; if not, it is given mean 0 and variance 1, and x is read once.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3).eval().needs_moments
            False
        """
        return True

    @property
    def is_regional(self) -> bool:
        """Whether the layer looks at, or acts in, a part of the plane; a Chain then runs it by itself.

        Example:
            >>> from shiftnorm.norms import CrossNorm
            >>> CrossNorm(crop="style").is_regional
            True
        """
        return False

    @abstractmethod
    def affine(self, m: Moments, *args: Any, **kwargs: Any) -> Affine:
        """The new gain and mean of every plane from its moments; a random norm is given its draw and regions too."""

    def step(self, m: Moments, draw: Any) -> Pool | Exchange | Gate | None:
        """What :meth:`affine` computes, in the terms of ``ops.retarget``; None where only the formula says it.

        Example:
            >>> from shiftnorm.norms import InstanceNorm
            >>> InstanceNorm(3).step(Moments(torch.zeros(2, 3), torch.ones(2, 3), 9), None) is None
            True
        """
        del m, draw
        return None

    def regions(self, x: Tensor, draw: Any) -> tuple[Tensor, ...]:
        """Masks (N or 1, 1, *) of the parts of x whose moments ``affine`` also wants, after the draw.

        Example:
            >>> from shiftnorm.norms import InstanceNorm
            >>> InstanceNorm(3).regions(torch.randn(2, 3, 4), None)
            ()
        """
        del x, draw
        return ()

    def acting_region(self, x: Tensor, draw: Any) -> Tensor | None:
        """A mask of the part of x the layer acts in, x staying as it is elsewhere; None for everywhere.

        Example:
            >>> from shiftnorm.norms import InstanceNorm
            >>> InstanceNorm(3).acting_region(torch.randn(2, 3, 4), None) is None
            True
        """
        del x, draw
        return None

    def at_once(self, x: Tensor) -> Tensor | None:
        """The output by one kernel of ours that reads x once, where there is one; None otherwise.

        Example:
            >>> from shiftnorm.norms import SelfNorm
            >>> SelfNorm(3).at_once(torch.randn(2, 3, 4)) is None
            True
        """
        del x
        return None

    def native(self, x: Tensor) -> Tensor | None:
        """The output by a kernel of torch's own where that is faster and the norm stands alone; None otherwise.

        Example:
            >>> from shiftnorm.norms import SelfNorm
            >>> SelfNorm(3).native(torch.randn(2, 3, 4)) is None
            True
        """
        del x
        return None

    def forward(self, x: Tensor, *, draw: Any = None, mask: Tensor | None = None) -> Tensor:
        """Normalise x.

        Example:
            >>> from shiftnorm.norms import BatchNorm
            >>> BatchNorm(3)(torch.randn(2, 3, 4, 4)).shape
            torch.Size([2, 3, 4, 4])

        Args:
            x: (N, C, *), floating point.
            draw: what :meth:`draw` returned, to replay it; None draws anew.
            mask: (N, 1, *) or broadcastable; only elements where it is nonzero count in the moments.

        Returns:
            Tensor of x's shape, dtype and memory format.
        """
        check_input(self, x)
        if self.is_identity:
            return x
        if mask is None and not is_traced(x):
            y = self.at_once(x)
            if y is None and not is_forced():
                y = self.native(x)
            if y is not None:
                return y
        return run_fused([self], x, [self.draw(x) if draw is None else draw], mask)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to the calls of a module, which must then be called.

    Example:
        >>> has_hooks(nn.ReLU())
        False
    """
    own = cast("Any", module)  # torch has no public question for this
    return bool(own._forward_pre_hooks or own._forward_hooks or own._backward_pre_hooks or own._backward_hooks)


def check_input(norm: NormLayer, x: Tensor) -> None:
    """Refuse what a norm cannot take, with what was expected, what came and what to do.

    Example:
        >>> from shiftnorm.norms import SelfNorm
        >>> SelfNorm(64)(torch.zeros(8, 7, 7, 64))
        Traceback (most recent call last):
        ...
        ValueError: SelfNorm: expected x of shape (N, 64, *), got (8, 7, 7, 64). If channels are last, ...

    Raises:
        TypeError: if x is not a floating-point tensor.
        ValueError: if x has another number of channels, fewer than two dimensions or planes without elements.
    """
    who, channels = type(norm).__name__, norm.num_features
    if not torch.is_tensor(x):
        raise TypeError(f"{who}: expected a tensor, got {type(x).__name__}.")
    if not x.is_floating_point():
        raise TypeError(f"{who}: expected a floating-point tensor, got {x.dtype}. Convert it with x.float().")
    if x.dim() < 2:
        raise ValueError(f"{who}: expected x of shape (N, {channels or 'C'}, *), got {tuple(x.shape)}.")
    if channels is not None and x.shape[1] != channels:
        hint = " If channels are last, pass x.movedim(-1, 1)." if x.shape[-1] == channels else ""
        raise ValueError(f"{who}: expected x of shape (N, {channels}, *), got {tuple(x.shape)}.{hint}")
    if 0 in x.shape[1:]:
        raise ValueError(f"{who}: expected planes with at least one element, got x of shape {tuple(x.shape)}.")
