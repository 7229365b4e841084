"""Where the slots are in the residual blocks of timm."""

from __future__ import annotations

from shiftnorm.surgery.block_family import DOWNSAMPLE, END, BlockFamily, after, before, family, shortcut

__all__ = ["TIMM_BLOCKS"]

_RESNETS = (
    family(
        "timm.models.resnet.BasicBlock",
        pre=before("conv1"),
        residual=after("se", "bn2"),
        identity=DOWNSAMPLE,
        post=before("act2"),
        inner=("bn1",),
        out=("bn2",),
    ),
    family(
        "timm.models.resnet.Bottleneck",
        pre=before("conv1"),
        residual=after("se", "bn3"),
        identity=DOWNSAMPLE,
        post=before("act3"),
        inner=("bn1",),
        out=("bn3",),
    ),
    # In these the last activation is a module that runs before, too, and nothing stands between it and the sum.
    family(
        "timm.models.res2net.Bottle2neck",
        pre=before("conv1"),
        residual=after("se", "bn3"),
        identity=DOWNSAMPLE,
        inner=("bn1",),
        out=("bn3",),
    ),
    family(
        "timm.models.senet.Bottleneck",
        "timm.models.senet.SEResNetBlock",
        pre=before("conv1"),
        residual=after("se_module"),
        identity=DOWNSAMPLE,
        inner=("bn1",),
    ),
    family("timm.models.dla.DlaBasic", pre=before("conv1"), residual=after("bn2"), inner=("bn1",)),
    family(
        "timm.models.dla.DlaBottleneck",
        "timm.models.dla.DlaBottle2neck",
        pre=before("conv1"),
        residual=after("bn3"),
        inner=("bn1",),
    ),
    family(
        "timm.models.resnest.ResNestBottleneck",
        pre=before("conv1"),
        residual=after("bn3"),
        identity=DOWNSAMPLE,
        post=before("act3"),
        inner=("bn1",),
    ),
    family(
        "timm.models.sknet.SelectiveKernelBasic",
        pre=before("conv1"),
        residual=after("se", "conv2.bn"),
        identity=DOWNSAMPLE,
        post=before("act"),
        out=("conv2",),
    ),
    family(
        "timm.models.sknet.SelectiveKernelBottleneck",
        pre=before("conv1"),
        residual=after("se", "conv3.bn"),
        identity=DOWNSAMPLE,
        post=before("act"),
        inner=("conv1.bn",),
        out=("conv3",),
    ),
    family(
        "timm.models.tresnet.BasicBlock",
        pre=before("conv1"),
        residual=after("se", "conv2.bn"),
        identity=DOWNSAMPLE,
        post=before("act"),
        inner=("conv1.bn", "conv1.0.bn"),
        out=("conv2",),
    ),
    family(
        "timm.models.tresnet.Bottleneck",
        pre=before("conv1"),
        residual=after("conv3.bn"),
        identity=DOWNSAMPLE,
        post=before("act"),
        inner=("conv1.bn",),
    ),
    # Without a downsample there is no shortcut at all; where the input itself is added, it is an Identity.
    family(
        "timm.models.regnet.Bottleneck",
        pre=before("conv1"),
        residual=after("conv3.bn"),
        identity=after("downsample"),
        post=before("act3"),
        inner=("conv1.bn",),
    ),
    family(
        "timm.models.regnet.PreBottleneck",
        pre=before("conv1"),
        residual=after("conv3"),
        identity=after("downsample"),
        post=END,
        inner=("norm2",),
    ),
    family(
        "timm.models.resnetv2.Bottleneck",
        pre=before("conv1"),
        residual=after("norm3"),
        identity=DOWNSAMPLE,
        post=before("act3"),
        inner=("norm1",),
    ),
    # The projection of the shortcut reads norm1 where there is one; without one norm1 is the branch's own.
    family(
        "timm.models.resnetv2.PreActBasic",
        pre=before("norm1"),
        residual=after("conv2"),
        post=END,
        inner=("norm2",),
        lacks=("downsample",),
    ),
    family(
        "timm.models.resnetv2.PreActBasic",
        pre=before("conv1"),
        residual=after("conv2"),
        identity=after("downsample"),
        post=END,
        inner=("norm2",),
        has=("downsample",),
    ),
    family(
        "timm.models.resnetv2.PreActBottleneck",
        pre=before("norm1"),
        residual=after("conv3"),
        post=END,
        inner=("norm2",),
        lacks=("downsample",),
    ),
    family(
        "timm.models.resnetv2.PreActBottleneck",
        pre=before("conv1"),
        residual=after("conv3"),
        identity=after("downsample"),
        post=END,
        inner=("norm2",),
        has=("downsample",),
    ),
    # Its downsample reads the activated input, so that a norm in place of an empty one would not keep the shortcut.
    family(
        "timm.models.nfnet.NormFreeBlock",
        pre=before("conv1"),
        residual=before("drop_path"),
        identity=after("downsample"),
        post=END,
        out=("conv3",),
    ),
)


def _byob(name: str, kernel: str, last: str, *residual: str) -> BlockFamily:
    return family(
        f"timm.models.byobnet.{name}",
        pre=before(kernel),
        residual=after(*residual),
        identity=after("shortcut"),
        post=before("act"),
        inner=(f"{kernel}.bn",),
        out=(last,),
    )


_MOBILE = (
    family(
        "timm.models._efficientnet_blocks.ConvBnAct",
        pre=before("conv"),
        residual=after("aa", "bn1"),
        post=END,
        inner=("bn1",),
        out=("conv",),
        has=("has_skip",),
    ),
    family(
        "timm.models._efficientnet_blocks.DepthwiseSeparableConv",
        pre=before("conv_s2d", "conv_dw"),
        residual=after("bn2"),
        post=END,
        inner=("bn_s2d", "bn1"),
    ),
    family(
        "timm.models._efficientnet_blocks.InvertedResidual",
        pre=before("conv_s2d", "conv_pw"),
        residual=after("bn3"),
        post=END,
        inner=("bn_s2d", "bn1"),
    ),
    # Its first convolution has a second argument, the routing, which comes from the block's input.
    family("timm.models._efficientnet_blocks.CondConvResidual", residual=after("bn3"), post=END, inner=("bn1",)),
    family(
        "timm.models._efficientnet_blocks.EdgeResidual",
        pre=before("conv_exp"),
        residual=after("bn2"),
        post=END,
        inner=("bn1",),
    ),
    family(
        "timm.models._efficientnet_blocks.UniversalInvertedResidual",
        pre=before("dw_start"),
        residual=after("dw_end.bn", "pw_proj.bn"),
        post=END,
        inner=("dw_start.bn", "pw_exp.bn"),
        out=("pw_proj",),
    ),
    family(
        "timm.models._efficientnet_blocks.MobileAttention",
        pre=before("norm"),
        residual=after("attn"),
        post=END,
        inner=("norm",),
    ),
    # The shortcut is added to the first channels only.
    family(
        "timm.models.rexnet.LinearBottleneck",
        pre=before("conv_exp", "conv_dw"),
        residual=after("conv_pwl.bn"),
        post=END,
        inner=("conv_exp.bn", "conv_dw.bn"),
    ),
    # Its modules call in_channels what is not the number of channels they get.
    family(
        "timm.models.ghostnet.GhostBottleneckV3",
        pre=before("ghost1"),
        residual=after("ghost2"),
        identity=shortcut("shortcut"),
        post=END,
        into=("ghost1.primary_rpr_conv", "ghost1.primary_conv"),
    ),
    family(
        "timm.models.ghostnet.GhostBottleneck",
        "timm.models.repghost.RepGhostBottleneck",
        pre=before("ghost1"),
        residual=after("ghost2"),
        identity=shortcut("shortcut"),
        post=END,
        inner=("ghost1.primary_conv.1",),
    ),
)

_OTHERS = (
    # The norm and the layers behind it may run on (N, H, W, C); drop_path is the first that surely does not.
    family(
        "timm.models.convnext.ConvNeXtBlock",
        pre=before("conv_dw"),
        residual=before("drop_path"),
        identity=shortcut("shortcut"),
        post=END,
        out=("conv_dw",),
    ),
    family(
        "timm.models.inception_next.MetaNeXtBlock",
        pre=before("token_mixer"),
        residual=after("mlp"),
        post=END,
        inner=("norm",),
        out=("norm",),
        into=("norm",),
    ),
    # The input is also one of the maps that are joined, so that no place is the branch's alone before that.
    family(
        "timm.models.vovnet.OsaBlock",
        residual=after("attn", "conv_concat.bn"),
        post=END,
        inner=("conv_reduction.bn", "conv_mid.0.bn"),
        out=("conv_concat",),
    ),
    family("timm.models.hgnet.HighPerfGpuBlock", residual=after("aggregation"), post=END),
    family(
        "timm.models.cspnet.BottleneckBlock",
        pre=before("conv1"),
        residual=after("attn3", "conv3.bn"),
        post=before("act3"),
        inner=("conv1.bn",),
        out=("conv3",),
    ),
    family(
        "timm.models.cspnet.DarkBlock",
        "timm.models.cspnet.EdgeBlock",
        "timm.models.cspnext.CspNextBlock",
        pre=before("conv1"),
        residual=after("conv2.bn", "conv2"),
        post=END,
        inner=("conv1.bn",),
    ),
    _byob("BasicBlock", "conv1_kxk", "conv2_kxk", "attn_last", "conv2_kxk.bn"),
    _byob("BottleneckBlock", "conv1_1x1", "conv3_1x1", "attn_last", "conv3_1x1.bn"),
    _byob("DarkBlock", "conv1_1x1", "conv2_kxk", "attn_last", "conv2_kxk.bn"),
    _byob("EdgeBlock", "conv1_kxk", "conv2_1x1", "attn_last", "conv2_1x1.bn"),
    _byob("SelfAttnBlock", "conv1_1x1", "conv3_1x1", "conv3_1x1.bn"),
    family("timm.models.xception.Block", pre=before("rep"), residual=after("rep"), identity=after("skipbn"), post=END),
    family(
        "timm.models.xception_aligned.XceptionModule",
        pre=before("stack"),
        residual=after("stack"),
        identity=shortcut("shortcut"),
        post=END,
    ),
    family(
        "timm.models.xception_aligned.PreXceptionModule",
        pre=before("stack"),
        residual=after("stack"),
        identity=shortcut("shortcut"),
        post=END,
    ),
    family(
        "timm.models.fasternet.MLPBlock",
        pre=before("spatial_mixing"),
        residual=after("mlp"),
        post=END,
        inner=("mlp.1",),
        into=("mlp",),
    ),
    family(
        "timm.models.starnet.Block", pre=before("dwconv"), residual=after("dwconv2"), post=END, inner=("dwconv.bn",)
    ),
    family("timm.models.convmixer.Residual", pre=before("fn"), residual=after("fn"), post=END, inner=("fn.2",)),
    family(
        "timm.models.inception_resnet_v2.Block35",
        "timm.models.inception_resnet_v2.Block17",
        residual=after("conv2d"),
        post=before("act"),
    ),
    family("timm.models.inception_resnet_v2.Block8", residual=after("conv2d"), post=(*before("relu"), *END)),
)

TIMM_BLOCKS: tuple[BlockFamily, ...] = (*_RESNETS, *_MOBILE, *_OTHERS)
