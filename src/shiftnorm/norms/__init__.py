"""Every norm; ``__all__`` is the roster that tests, the docs table and the command line read."""

from __future__ import annotations

from shiftnorm.norms.attentive_norm import AttentionWeights, AttentiveNorm
from shiftnorm.norms.base import MomentNorm, NormLayer, OfficialTensor
from shiftnorm.norms.batch_instance_norm import BatchInstanceNorm
from shiftnorm.norms.batch_norm import BatchNorm
from shiftnorm.norms.chain import Chain
from shiftnorm.norms.cnsn import CNSN
from shiftnorm.norms.compile_algebra import compile_algebra
from shiftnorm.norms.controller import CrossNormController
from shiftnorm.norms.cross_norm import CrossNorm, CrossNormDraw, restyle
from shiftnorm.norms.domain_norm import DomainNorm
from shiftnorm.norms.dsu import DSU, DSUDraw
from shiftnorm.norms.efd_mix import EFDMix, EFDMixDraw, match_distribution
from shiftnorm.norms.group_norm import GroupNorm
from shiftnorm.norms.ibn import IBN
from shiftnorm.norms.instance_norm import InstanceNorm
from shiftnorm.norms.layer_norm import LayerNorm
from shiftnorm.norms.mix_style import MixStyle, MixStyleDraw
from shiftnorm.norms.mixture_norm import MixtureDraw, MixtureNorm
from shiftnorm.norms.permuted_adain import PermutedAdaIN, PermutedAdaINDraw
from shiftnorm.norms.representative_batch_norm import RepresentativeBatchNorm
from shiftnorm.norms.running import RunningMoments
from shiftnorm.norms.self_norm import SelfNorm
from shiftnorm.norms.squeeze_excite import SqueezeExcite
from shiftnorm.norms.switch_norm import SwitchNorm

__all__ = [
    "CNSN",
    "DSU",
    "IBN",
    "AttentionWeights",
    "AttentiveNorm",
    "BatchInstanceNorm",
    "BatchNorm",
    "Chain",
    "CrossNorm",
    "CrossNormController",
    "CrossNormDraw",
    "DSUDraw",
    "DomainNorm",
    "EFDMix",
    "EFDMixDraw",
    "GroupNorm",
    "InstanceNorm",
    "LayerNorm",
    "MixStyle",
    "MixStyleDraw",
    "MixtureDraw",
    "MixtureNorm",
    "MomentNorm",
    "NormLayer",
    "OfficialTensor",
    "PermutedAdaIN",
    "PermutedAdaINDraw",
    "RepresentativeBatchNorm",
    "RunningMoments",
    "SelfNorm",
    "SqueezeExcite",
    "SwitchNorm",
    "compile_algebra",
    "match_distribution",
    "restyle",
]
