"""The two passes every norm is made of, their algebra, and the backends that run them."""

from __future__ import annotations

from shiftnorm.ops.attending import Attention, attend
from shiftnorm.ops.dispatch import BACKENDS, Backend, choose, explain, is_forced, is_traced, use_backend
from shiftnorm.ops.epilogue import apply_activated, normalize_activated
from shiftnorm.ops.passes import apply, moments, normalize
from shiftnorm.ops.retargeting import Exchange, Gate, Pool, has_retargeting, retarget
from shiftnorm.ops.switching import Switch, switch
from shiftnorm.ops.types import Affine, Moments

__all__ = [
    "BACKENDS",
    "Affine",
    "Attention",
    "Backend",
    "Exchange",
    "Gate",
    "Moments",
    "Pool",
    "Switch",
    "apply",
    "apply_activated",
    "attend",
    "choose",
    "explain",
    "has_retargeting",
    "is_forced",
    "is_traced",
    "moments",
    "normalize",
    "normalize_activated",
    "retarget",
    "switch",
    "use_backend",
]
