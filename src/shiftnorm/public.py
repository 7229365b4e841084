"""What `import shiftnorm` offers; the package itself loads it when the first name is asked for."""

from __future__ import annotations

from shiftnorm import norms
from shiftnorm.norms import *  # noqa: F403  (the roster is listed once, there)
from shiftnorm.ops import Affine, Moments, apply, explain, moments, normalize, use_backend

__all__ = ["Affine", "Moments", "apply", "explain", "moments", "normalize", "use_backend"]
__all__ += norms.__all__
