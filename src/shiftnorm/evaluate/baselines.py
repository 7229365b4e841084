"""Published errors of reference networks, as data with their source."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, final

__all__ = ["ALEXNET", "ALEXNET_ROBUSTBENCH_5K", "BASELINES", "Baseline", "find_baseline"]


@final
@dataclass(frozen=True)
class Baseline:
    """Errors of a named network that other networks' errors are divided by.

    Example:
        >>> Baseline("ours", {"fog": (20.0, 40.0)}, severities=(1, 5)).total("fog", (1, 5))
        60.0
        >>> round(ALEXNET.total("fog", (1, 2, 3, 4, 5)) / 5, 4)
        81.9324

    Args:
        name: of the network.
        errors: per corruption, top-1 errors in percent at the severities; one number, their mean, where averaged.
        clean_error: in percent; None where unknown, so that there is no relative mCE.
        severities: which severities the errors are of.
        averaged: whether only the mean over the severities is known.
        source: where the numbers are from.
        images: how many each error is of; None where unknown.
        part: which part of the data set these images are, if not all: nothing tells whether others' are the same.

    Raises: ValueError if a row has another length, or an error is not a percentage above 0.
    """

    name: str
    errors: Mapping[str, Sequence[float]]
    clean_error: float | None = None
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    averaged: bool = False
    source: str = ""
    images: int | None = None
    part: str = ""

    def __post_init__(self) -> None:
        length = 1 if self.averaged else len(self.severities)
        wrong = [name for name, row in self.errors.items() if len(row) != length]
        if wrong or not self.errors:
            raise ValueError(
                f"Baseline {self.name!r}: expected {length} errors for each corruption, got "
                f"{ {name: len(self.errors[name]) for name in wrong} or 'no corruption' }."
            )
        odd = {name: list(row) for name, row in self.errors.items() if not all(0 < value <= 100 for value in row)}
        if odd:
            raise ValueError(f"Baseline {self.name!r}: expected errors in percent, above 0 and up to 100, got {odd}.")

    def total(self, corruption: str, severities: Sequence[int]) -> float:
        """Sum of the errors over severities, in percent.

        Example:
            >>> round(ALEXNET.total("snow", [1, 5]), 3)
            166.678

        Args:
            corruption: its name.
            severities: which ones.

        Returns:
            The sum.

        Raises:
            KeyError: if the baseline lacks the corruption or a severity.
        """
        if corruption not in self.errors:
            raise KeyError(f"baseline {self.name!r} has no {corruption!r}; it has {', '.join(self.errors)}.")
        row = self.errors[corruption]
        if self.averaged:
            if tuple(sorted(severities)) != tuple(sorted(self.severities)):
                raise KeyError(
                    f"baseline {self.name!r} has only means over the severities {self.severities}, asked for "
                    f"{tuple(severities)}. Use a baseline with errors by severity."
                )
            return row[0] * len(self.severities)
        missing = [severity for severity in severities if severity not in self.severities]
        if missing:
            raise KeyError(f"baseline {self.name!r} has the severities {self.severities}, asked for {missing}.")
        return sum(row[self.severities.index(severity)] for severity in severities)


ALEXNET: Final = Baseline(
    "AlexNet",
    {
        "gaussian_noise": (69.528, 82.542, 93.554, 98.138, 99.452),
        "shot_noise": (71.224, 85.108, 93.574, 98.182, 99.146),
        "impulse_noise": (78.374, 89.808, 94.870, 98.720, 99.548),
        "defocus_blur": (65.624, 73.202, 85.036, 91.364, 94.714),
        "glass_blur": (64.308, 75.054, 88.806, 91.622, 93.344),
        "motion_blur": (58.430, 70.048, 82.108, 89.750, 92.638),
        "zoom_blur": (70.008, 76.992, 80.784, 84.198, 87.198),
        "snow": (71.726, 88.392, 86.468, 91.870, 94.952),
        "frost": (61.390, 79.734, 88.790, 89.942, 93.430),
        "fog": (67.474, 76.050, 84.378, 87.260, 94.500),
        "brightness": (45.140, 48.502, 54.048, 62.166, 72.440),
        "contrast": (64.548, 76.150, 88.874, 97.760, 99.270),
        "elastic_transform": (52.596, 70.116, 55.686, 64.076, 80.554),
        "pixelate": (52.218, 54.620, 73.728, 87.092, 91.262),
        "jpeg_compression": (51.002, 54.718, 57.294, 65.458, 74.778),
    },
    clean_error=43.478,
    source="ImageNet-C, 50,000 images: hendrycks/robustness issue #10; clean error: torchvision's AlexNet weights",
    images=50_000,
)
"""The denominator of mCE on ImageNet-C, all 50,000 images."""

ALEXNET_ROBUSTBENCH_5K: Final = Baseline(
    "AlexNet, RobustBench 5k",
    {
        "gaussian_noise": (88.16,),
        "shot_noise": (88.83,),
        "impulse_noise": (91.72,),
        "defocus_blur": (82.20,),
        "glass_blur": (83.08,),
        "motion_blur": (78.72,),
        "zoom_blur": (79.57,),
        "snow": (86.80,),
        "frost": (83.15,),
        "fog": (82.36,),
        "brightness": (55.85,),
        "contrast": (85.43,),
        "elastic_transform": (64.80,),
        "pixelate": (71.86,),
        "jpeg_compression": (60.68,),
    },
    averaged=True,
    source="ImageNet-C, RobustBench's list of 5,000 images: RobustBench's accuracies of AlexNet",
    images=5_000,
    part="RobustBench's list of 5,000 images",
)
"""The denominator of mCE on RobustBench's 5,000 images; not to be mixed with the 50,000."""

BASELINES: Final[Mapping[str, Baseline]] = {item.name: item for item in (ALEXNET, ALEXNET_ROBUSTBENCH_5K)}


def find_baseline(baseline: str | Baseline) -> Baseline:
    """A baseline by its name; a baseline is returned as it is.

    Example:
        >>> find_baseline("AlexNet").clean_error
        43.478

    Args:
        baseline: a name from `BASELINES`, or a baseline.

    Returns:
        The baseline.

    Raises:
        KeyError: if the name is unknown.
    """
    if isinstance(baseline, Baseline):
        return baseline
    if baseline not in BASELINES:
        near = difflib.get_close_matches(baseline, BASELINES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise KeyError(f"find_baseline: expected one of {sorted(BASELINES)} or a Baseline, got {baseline!r}{hint}")
    return BASELINES[baseline]
