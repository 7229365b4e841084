"""Random numbers of the random norms: on the device, from a torch generator, in forms that compile."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from shiftnorm.ops import is_traced

__all__ = ["check_partners", "draw_beta", "draw_partners", "draw_permutation", "is_known"]


def draw_beta(
    shape: tuple[int, ...], alpha: float, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Samples of Beta(alpha, alpha) in float32, also for alpha so small that its gamma variates underflow.

    Example:
        >>> draw_beta((4, 1), 0.1, torch.device("cpu")).shape
        torch.Size([4, 1])

    Args:
        shape: of the result.
        alpha: both parameters of the distribution.
        device: of the result.
        generator: a generator on the device; None uses torch's default one.
    """
    # Gamma(alpha) is Gamma(alpha + 1) * U^(1 / alpha), and -log U is exponential. For small alpha both variates
    # underflow, so only their logarithms are taken. torch.distributions takes no generator.
    above = torch.full((2, *shape), alpha + 1, device=device, dtype=torch.float32)
    gamma = torch._standard_gamma(above, generator=generator)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    # torch.rand(shape, generator=None) would not compile for changing batch sizes; the in-place form does.
    exponential = torch.empty_like(above).exponential_(generator=generator)
    first, second = (torch.log(gamma) - exponential / alpha).unbind()
    return torch.sigmoid(first - second)


def draw_permutation(size: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A random permutation of ``range(size)``.

    Example:
        >>> draw_permutation(3, torch.device("cpu")).sort().values
        tensor([0, 1, 2])
    """
    if generator is None:
        # Named, even a generator of None makes the compiler treat every batch size as a new constant.
        return torch.randperm(size, device=device)
    return torch.randperm(size, device=device, generator=generator)


def draw_partners(
    x: Tensor, mix: Literal["random", "crossdomain"] = "random", generator: torch.Generator | None = None
) -> Tensor:
    """A random partner for every sample of x, (N,) on x's device.

    Example:
        >>> draw_partners(torch.zeros(4, 3, 8), "crossdomain")[:2].min() >= 2
        tensor(True)

    Args:
        x: (N, C, *); only its batch size and device are looked at.
        mix: "random" permutes the batch; "crossdomain" swaps its halves, each in random order.
        generator: a generator on x's device; None uses torch's default one.
    """
    size = x.shape[0]
    if mix == "crossdomain":
        # Sorting shuffles both halves at once: tensors of half the batch would not export for any batch size.
        index = torch.arange(size, device=x.device)
        noise = torch.empty(size, device=x.device, dtype=torch.float32).uniform_(generator=generator)
        return size - 1 - (noise + (2 * index >= size)).argsort()
    return draw_permutation(size, x.device, generator)


def check_partners(who: str, partners: Tensor, samples: int) -> None:
    """Refuse a draw that was made for a batch of another size.

    Example:
        >>> check_partners("MixStyle", torch.tensor([0]), 4)
        Traceback (most recent call last):
        ...
        ValueError: MixStyle: expected a draw for 4 samples, got one for 1. Draw again with norm.draw(x).

    Raises:
        ValueError: if the draw has another number of samples.
    """
    if partners.shape[0] != samples:
        raise ValueError(
            f"{who}: expected a draw for {samples} samples, got one for {partners.shape[0]}. "
            "Draw again with norm.draw(x)."
        )


def is_known(flag: Tensor) -> bool:
    """Whether a drawn flag may be asked for: on a CPU it costs nothing, elsewhere it would wait for the device, and in
    a traced call fix the answer.

    Example:
        >>> is_known(torch.tensor(True)), is_known(torch.empty((), device="meta"))
        (True, False)
    """
    return flag.is_cpu and flag.numel() == 1 and not is_traced(flag)
