"""Backbones with named slots: they take their norms as factories and know nothing of ours."""

from shiftnorm.models.wide_resnet import WideResNet

__all__ = ["WideResNet"]
