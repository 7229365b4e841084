"""Random numbers that are a function of where they are used, and of nothing else."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

__all__ = ["Stream"]

MASK = 2**64 - 1
# Odd constants with bits well spread: of the Weyl sequence, and of the two rounds of mixing (Stafford's variant 13).
STEP = 0x9E3779B97F4A7C15
FIRST = 0xBF58476D1CE4E5B9
SECOND = 0x94D049BB133111EB
CALL = 0xD6E8FEB86659FD93


def _signed(number: int) -> int:
    number &= MASK
    return number - 2**64 if number >= 2**63 else number


STEP_, FIRST_, SECOND_, CALL_ = map(_signed, (STEP, FIRST, SECOND, CALL))


def _mix(z: Tensor) -> Tensor:
    """Mix the bits of an int64 tensor in place."""
    # Tensors have no logical right shift. An arithmetic one under an exclusive-or loses the highest bit, which only
    # makes this a function that is not one-to-one; the last step adds, because there the bit would be seen.
    z.bitwise_xor_(z >> 30).mul_(FIRST_)
    z.bitwise_xor_(z >> 27).mul_(SECOND_)
    return z.add_(z >> 31)


class Stream:
    """Random numbers for the images of a batch, each a function of (seed, corruption, severity, image, call, position).

    An image has the same numbers whatever batch it comes in, at whatever place, in which process and on which device:
    they are made by mixing the bits of a counter, on the device, without a generator that has a state. Integers are the
    same on every device; floats may differ in the last bits where a device computes functions differently.

    Example:
        >>> whole = Stream(0, "fog", 3, torch.arange(8)).normal(2, 5)
        >>> tail = Stream(0, "fog", 3, torch.arange(6, 8)).normal(2, 5)
        >>> whole.shape, torch.equal(whole[6:], tail)
        (torch.Size([8, 2, 5]), True)

    Args:
        seed: any integer.
        name: of the corruption.
        severity: of the corruption.
        indices: (N,) int64, the images' numbers in their data set; their device is that of the random numbers.

    State:
        The number of calls made: every call gives new numbers.
    """

    def __init__(self, seed: int, name: str, severity: int, indices: Tensor) -> None:
        digest = hashlib.blake2b(f"{seed}/{name}/{severity}".encode(), digest_size=8).digest()
        self.device = indices.device
        self._keys = _mix((indices.to(torch.int64) * STEP_).add_(int.from_bytes(digest, "little", signed=True)))
        self._calls = 0

    def __len__(self) -> int:
        return len(self._keys)

    def bits(self, count: int) -> Tensor:
        """``count`` random 64-bit words for each image.

        Example:
            >>> Stream(0, "fog", 3, torch.arange(2)).bits(3).shape
            torch.Size([2, 3])

        Args:
            count: words for each image.

        Returns:
            (N, count) int64, every bit random, a new tensor.
        """
        self._calls += 1
        keys = _mix(self._keys + _signed(CALL * self._calls))
        steps = torch.arange(count, device=self.device).mul_(STEP_)
        return _mix(keys[:, None] + steps)

    def words(self, *shape: int) -> Tensor:
        """Random 32-bit words.

        Example:
            >>> Stream(0, "fog", 3, torch.arange(2)).words(3, 4).shape
            torch.Size([2, 3, 4])

        Args:
            shape: for each image.

        Returns:
            (N, *shape) int32, every bit random, a new tensor.
        """
        count = math.prod(shape)
        pairs = self.bits((count + 1) // 2).view(torch.int32)
        return pairs[:, :count].reshape(len(self), *shape)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), multiples of 2**-24.

        Example:
            >>> u = Stream(0, "fog", 3, torch.arange(1)).uniform(10_000)
            >>> bool((u >= 0).all() and (u < 1).all()), round(float(u.mean()), 2)
            (True, 0.5)

        Args:
            shape: for each image.

        Returns:
            (N, *shape) float32.
        """
        return (self.words(*shape) >> 8).to(torch.float32).mul_(2.0**-24).add_(0.5)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, by the method of Box and Muller: up to 6.6 in size.

        Example:
            >>> z = Stream(0, "fog", 3, torch.arange(1)).normal(10_000)
            >>> abs(round(float(z.mean()), 1)), round(float(z.std()), 1)
            (0.0, 1.0)

        Args:
            shape: for each image.

        Returns:
            (N, *shape) float32.
        """
        count = math.prod(shape)
        half = (count + 1) // 2
        words = self.bits(half)
        # From 31 bits, at least 2**-31: the tail needs small numbers to be fine, which counting up from 0 gives.
        radius = (words & 0x7FFFFFFF).to(torch.float32).add_(1).mul_(2.0**-31).log_().mul_(-2).sqrt_()
        angle = (words >> 32).to(torch.float32).mul_(math.pi * 2.0**-31)
        both = torch.empty((len(self), 2 * half), dtype=torch.float32, device=self.device)
        torch.cos(angle, out=both[:, :half]).mul_(radius)
        torch.sin(angle, out=both[:, half:]).mul_(radius)
        return both[:, :count].reshape(len(self), *shape)

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Whole numbers from ``low`` to ``high - 1``, all equally likely.

        Example:
            >>> sorted(set(Stream(0, "fog", 3, torch.arange(1)).integers(-1, 2, 100).flatten().tolist()))
            [-1, 0, 1]

        Args:
            low: the smallest.
            high: one more than the largest.
            shape: for each image.

        Returns:
            (N, *shape) int64.

        Raises:
            ValueError: if there is no number from ``low`` to ``high - 1``, or more than 2**31 of them.
        """
        if not 0 < high - low <= 2**31:
            raise ValueError(
                f"Stream.integers: expected low < high, at most 2**31 apart, got low={low} and high={high}"
            )
        # 32 bits times the width: no number is more than 2**-32 likelier than it should be.
        unsigned = self.words(*shape).to(torch.int64).add_(2**31)
        return unsigned.mul_(high - low).bitwise_right_shift_(32).add_(low)
