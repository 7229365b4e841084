"""Where the slots are in the residual blocks of torchvision."""

from __future__ import annotations

from shiftnorm.surgery.block_family import DOWNSAMPLE, END, BlockFamily, Place, after, before, family, shortcut

__all__ = ["TORCHVISION_BLOCKS"]

# The last activation of its ResNets runs earlier in the block, too: no module of the block sees the sum alone.
_OPEN = (Place("slot", "post"),)

TORCHVISION_BLOCKS: tuple[BlockFamily, ...] = (
    family(
        "torchvision.models.resnet.BasicBlock",
        pre=before("conv1"),
        residual=after("bn2"),
        identity=DOWNSAMPLE,
        post=_OPEN,
        inner=("bn1",),
    ),
    family(
        "torchvision.models.resnet.Bottleneck",
        pre=before("conv1"),
        residual=after("bn3"),
        identity=DOWNSAMPLE,
        post=_OPEN,
        inner=("bn1",),
    ),
    family(
        "torchvision.models.video.resnet.BasicBlock",
        pre=before("conv1"),
        residual=after("conv2"),
        identity=DOWNSAMPLE,
        post=before("relu"),
        inner=("conv1.1",),
    ),
    family(
        "torchvision.models.video.resnet.Bottleneck",
        pre=before("conv1"),
        residual=after("conv3"),
        identity=DOWNSAMPLE,
        post=before("relu"),
        inner=("conv1.1",),
    ),
    family(
        "torchvision.models.densenet._DenseLayer",
        "timm.models.densenet.DenseLayer",
        pre=before("norm1"),
        residual=after("conv2"),
        post=after("conv2"),
        inner=("norm1",),
        dense=True,
    ),
    family(
        "torchvision.models.regnet.ResBottleneckBlock",
        pre=before("f"),
        residual=after("f"),
        identity=shortcut("proj"),
        post=before("activation"),
        inner=("f.a.1",),
    ),
    family(
        "torchvision.models.mobilenetv2.InvertedResidual",
        pre=before("conv"),
        residual=after("conv"),
        post=END,
        inner=("conv.0.1",),
    ),
    family(
        "torchvision.models.mobilenetv3.InvertedResidual",
        "torchvision.models.efficientnet.MBConv",
        "torchvision.models.efficientnet.FusedMBConv",
        pre=before("block"),
        residual=after("block"),
        post=END,
        inner=("block.0.1",),
    ),
    family(
        "torchvision.models.mnasnet._InvertedResidual",
        pre=before("layers"),
        residual=after("layers"),
        post=END,
        inner=("layers.1",),
    ),
    # Half of the channels pass by, or go through branch1 where the stride is 2.
    family(
        "torchvision.models.shufflenetv2.InvertedResidual",
        pre=before("branch2"),
        residual=after("branch2"),
        post=END,
        inner=("branch2.1",),
        out=("branch2", "branch2"),
        lacks=("branch1",),
    ),
    family(
        "torchvision.models.shufflenetv2.InvertedResidual",
        pre=before("branch2"),
        residual=after("branch2"),
        identity=after("branch1"),
        post=END,
        inner=("branch2.1",),
        out=("branch1", "branch2"),
        has=("branch1",),
    ),
    family("torchvision.models.convnext.CNBlock", pre=before("block"), residual=after("block"), post=END),
)
