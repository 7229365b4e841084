"""Backbones with named slots: they take their norms as factories and know nothing of ours."""

from shiftnorm.models import resnets
from shiftnorm.models.all_conv import AllConv
from shiftnorm.models.densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from shiftnorm.models.densenet_cifar import DenseNetCifar
from shiftnorm.models.registry import create_model, list_models
from shiftnorm.models.residual_blocks import BasicBlock, Bottleneck, SqueezeExcitation
from shiftnorm.models.resnet import ResNet
from shiftnorm.models.resnets import *  # noqa: F403  (the roster is listed once, there)
from shiftnorm.models.resnext_cifar import ResNeXtCifar
from shiftnorm.models.wide_resnet import WideResNet

__all__ = [
    "AllConv",
    "BasicBlock",
    "Bottleneck",
    "DenseNet",
    "DenseNetCifar",
    "ResNeXtCifar",
    "ResNet",
    "SqueezeExcitation",
    "WideResNet",
    "create_model",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "list_models",
]
__all__ += resnets.__all__
