"""Several norms in a row for the price of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import takewhile
from typing import Any, cast, final

import torch
from torch import Tensor, nn

from shiftnorm.norms.base import MomentNorm, NormLayer, check_input, has_hooks
from shiftnorm.norms.fused import run_fused

__all__ = ["Chain"]


@final
class Chain(NormLayer):
    """Run norms one after the other, fusing every run of moment norms into one moments pass and one apply pass.

    After an affine (gain, mean) the moments of a plane are exactly (mean, gain^2 * var), so the second norm of a run
    needs no look at the output of the first: gains multiply and the last mean wins.

    Example:
        >>> from shiftnorm.norms import BatchNorm, CrossNorm, SelfNorm
        >>> chain = Chain(BatchNorm(16), CrossNorm(), SelfNorm(16))
        >>> chain(torch.randn(4, 16, 8, 8)).shape
        torch.Size([4, 16, 8, 8])

    Args:
        norms: the layers in order. Nested chains are unpacked. Modules that are no moment norms (EFDMix, a CrossNorm
            with a crop, a pooling layer) are called in their place and end the run before them; a ReLU, SiLU or GELU
            behind a run of two or more is part of its second pass where Triton runs.

    Shape: as its norms.
    State: that of its norms, under their index.
    Modes: as its norms. A norm with hooks of its own is called by itself, so that they fire with what they expect.
    Raises: TypeError for something that is no module, ValueError for no norm at all or differing channel counts.
    Cost: two reads and one write of x for every run of moment norms.
    Source: this project; the identity above is elementary.
    Differences: equal to the unfused sequence up to rounding.
    """

    def __init__(self, *norms: nn.Module) -> None:
        flat: list[nn.Module] = []
        for norm in norms:
            if not isinstance(norm, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise TypeError(f"Chain: expected modules, got {norm!r}.")
            flat.extend(norm if isinstance(norm, Chain) else [norm])
        if not flat:
            raise ValueError("Chain: expected at least one norm, got none.")
        counts = {norm.num_features for norm in flat if isinstance(norm, NormLayer) and norm.num_features is not None}
        if len(counts) > 1:
            raise ValueError(f"Chain: expected norms of one channel count, got {sorted(counts)}.")
        super().__init__(counts.pop() if counts else None)
        for index, norm in enumerate(flat):
            self.add_module(str(index), norm)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[nn.Module]:
        # children() would leave out a module's second occurrence
        return iter(cast("Iterable[nn.Module]", self._modules.values()))

    def __getitem__(self, index: int) -> nn.Module:
        return list(self)[index]

    def draw(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Any, ...]:
        """The draws of all norms, None for those that have none.

        Example:
            >>> from shiftnorm.norms import BatchNorm, SelfNorm
            >>> Chain(BatchNorm(3), SelfNorm(3)).draw(torch.randn(2, 3, 4))
            (None, None)
        """
        return tuple(
            norm.draw(x, generator) if isinstance(norm, NormLayer) and not _is_identity(norm) else None for norm in self
        )

    def forward(self, x: Tensor, *, draw: tuple[Any, ...] | None = None, mask: Tensor | None = None) -> Tensor:
        """Run the norms.

        Example:
            >>> from shiftnorm.norms import BatchNorm, SelfNorm
            >>> Chain(BatchNorm(3), SelfNorm(3))(torch.randn(2, 3, 4)).shape
            torch.Size([2, 3, 4])

        Args:
            x: (N, C, *), floating point.
            draw: what :meth:`draw` returned, to replay it; None draws anew.
            mask: as in MomentNorm.forward.
        """
        check_input(self, x)
        draws = self.draw(x) if draw is None else draw
        steps = [step for step in zip(self, draws, strict=True) if not _is_identity(step[0])]
        while steps:
            run = list(takewhile(_is_fusible, steps))
            if len(run) > 1:
                norms, own = [norm for norm, _ in run if isinstance(norm, MomentNorm)], [draw for _, draw in run]
                following = steps[len(run) :]
                activation = _activation(following[0][0]) if following else "none"
                x = run_fused(norms, x, own, mask, activation)
                steps = following if activation == "none" else following[1:]
            else:
                x = _run_alone(*steps.pop(0), x, mask)
        return x

    def from_official(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Translate the authors' state_dict of the same sequence (CNSN's ``selfnorm.*``) into ours.

        Example:
            >>> from shiftnorm.norms import CNSN
            >>> norm = CNSN(3)
            >>> sorted(norm.to_official())[:2]
            ['selfnorm.g_bn.bias', 'selfnorm.g_bn.num_batches_tracked']
            >>> len(norm.from_official(norm.to_official())) == len(norm.state_dict())
            True
        """
        ours: dict[str, Tensor] = {}
        left = dict(state)
        for name, norm in self._layers():
            prefix = _prefix(name, norm)
            own = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
            ours.update({f"{name}.{key}": tensor for key, tensor in norm.from_official(own).items()})
        if left:
            raise KeyError(f"Chain.from_official: no norm of this chain knows the keys {sorted(left)}.")
        return ours

    def to_official(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Translate ours into the authors'.

        Example:
            >>> from shiftnorm.norms import CNSN
            >>> CNSN(3).to_official()["selfnorm.g_fc.weight"].shape
            torch.Size([3, 1, 2])
        """
        state = self.state_dict() if state is None else state
        theirs: dict[str, Tensor] = {}
        for name, norm in self._layers():
            own = {key.removeprefix(f"{name}."): value for key, value in state.items() if key.startswith(f"{name}.")}
            theirs.update({_prefix(name, norm) + key: value for key, value in norm.to_official(own).items()})
        return theirs

    def _layers(self) -> list[tuple[str, NormLayer]]:
        return [(name, norm) for name, norm in self._modules.items() if isinstance(norm, NormLayer)]


def _prefix(name: str, norm: NormLayer) -> str:
    return getattr(norm, "official_prefix", f"{name}.")


def _is_identity(norm: nn.Module) -> bool:
    return isinstance(norm, MomentNorm) and norm.is_identity


def _is_fusible(step: tuple[nn.Module, Any]) -> bool:
    norm = step[0]
    return isinstance(norm, MomentNorm) and not norm.is_regional and not has_hooks(norm)


def _run_alone(norm: nn.Module, draw: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    if isinstance(norm, NormLayer):
        return norm(x, draw=draw, mask=mask)
    shape, y = tuple(x.shape), norm(x)
    if y.shape != shape:
        raise ValueError(
            f"Chain: expected {type(norm).__name__} to keep the shape {shape}, got {tuple(y.shape)}. "
            "The draws of the norms behind it are made for the input: split the chain there."
        )
    return y


_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.SiLU: "silu", nn.GELU: "gelu"}


def _activation(module: nn.Module) -> str:
    """The name under which the passes know a module, or "none": they would see neither its hooks nor a subclass."""
    if has_hooks(module) or getattr(module, "approximate", "none") != "none":
        return "none"
    return _ACTIVATIONS.get(type(module), "none")
