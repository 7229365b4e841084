"""Normalization layers for distribution shift, on one fast core."""

from __future__ import annotations

from shiftnorm import norms
from shiftnorm.norms import *  # noqa: F403  (the roster is listed once, there)
from shiftnorm.ops import Affine, Moments, apply, explain, moments, normalize, use_backend

__version__ = "0.2.0"

__all__ = ["Affine", "Moments", "apply", "explain", "moments", "normalize", "use_backend"]
__all__ += norms.__all__
