"""The formulas of ``reference.py`` at the cost of the authors' eager modules, for the benchmark to compare with.

Each module makes the full-size temporaries and the separate reductions that its authors' code makes: mean and variance
in two passes, gates and statistics expanded before they are used, the style batch copied, one elementwise pass per
operation. The random ones act in every training forward, where the authors toss a coin: what is timed is the forward
in which they act.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and unbiased deviation of each plane, (N, C, 1, 1): one copy and one reduction for each of the two."""
    n, c = x.shape[:2]
    variance = x.contiguous().reshape(n, c, -1).var(dim=2)
    mean = x.contiguous().reshape(n, c, -1).mean(dim=2)
    return mean.reshape(n, c, 1, 1), (variance + eps).sqrt().reshape(n, c, 1, 1)


class CrossNorm(nn.Module):
    """Two-instance, without crop."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        style = x[torch.randperm(x.shape[0]).to(x.device)]
        style_mean, style_std = statistics(style, 1e-5)
        mean, std = statistics(x, 1e-5)
        standard = (x - mean.expand(x.shape)) / std.expand(x.shape)
        return standard * style_std.expand(x.shape) + style_mean.expand(x.shape)


class SelfNorm(nn.Module):
    """One branch, the form every network of the authors uses."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.g_fc = nn.Conv1d(num_features, num_features, kernel_size=2, groups=num_features, bias=False)
        self.g_bn = nn.BatchNorm1d(num_features)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        mean, std = statistics(x, 1e-12)
        pair = torch.cat((mean.squeeze(3), std.squeeze(3)), dim=-1)
        gate = self.g_bn(self.g_fc(pair)).sigmoid().reshape(n, c, 1, 1)
        return x * gate.expand_as(x)


class CNSN(nn.Module):
    """CrossNorm, then SelfNorm, each with its own passes."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.crossnorm = CrossNorm(num_features)
        self.selfnorm = SelfNorm(num_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.selfnorm(self.crossnorm(x))


class TrackedNorm(nn.Module):
    """What BatchNorm keeps: weight, bias and running statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))


class BatchInstanceNorm(TrackedNorm):
    """A whole BatchNorm and a whole InstanceNorm, scaled and added."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.gate = nn.Parameter(torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        batch_gain, instance_gain = self.weight * self.gate, self.weight * (1 - self.gate)
        by_batch = F.batch_norm(x, self.running_mean, self.running_var, batch_gain, self.bias, self.training)
        by_instance = F.batch_norm(x.reshape(1, n * c, h, w), None, None, training=True).reshape(n, c, h, w)
        return by_batch + by_instance * instance_gain.reshape(1, c, 1, 1)


class RepresentativeBatchNorm(TrackedNorm):
    """A pass to calibrate the input (which the authors overwrite), BatchNorm, a pooling, and three passes more."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.center_weight = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale_weight = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale_bias = nn.Parameter(torch.ones(1, num_features, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        centred = x + self.center_weight * F.adaptive_avg_pool2d(x, 1)
        standard = F.batch_norm(centred, self.running_mean, self.running_var, training=self.training)
        gate = (self.scale_weight * F.adaptive_avg_pool2d(standard, 1) + self.scale_bias).sigmoid()
        return self.weight.reshape(1, -1, 1, 1) * gate * standard + self.bias.reshape(1, -1, 1, 1)


class SwitchNorm(TrackedNorm):
    """Mean and variance by separate reductions; division, scaling and shifting as separate passes."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))
        self.running_var.zero_()

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[:2]
        p = x.reshape(n, c, -1)
        mean_in, var_in = p.mean(-1, keepdim=True), p.var(-1, keepdim=True)
        power = var_in + mean_in**2
        mean_ln = mean_in.mean(1, keepdim=True)
        var_ln = power.mean(1, keepdim=True) - mean_ln**2
        if self.training:
            mean_bn = mean_in.mean(0, keepdim=True)
            var_bn = power.mean(0, keepdim=True) - mean_bn**2
            with torch.no_grad():
                self.running_mean.mul_(0.9).add_(0.1 * mean_bn.flatten())
                self.running_var.mul_(0.9).add_(0.1 * var_bn.flatten())
        else:
            mean_bn, var_bn = self.running_mean.reshape(1, c, 1), self.running_var.reshape(1, c, 1)
        mean_share, var_share = self.mean_weight.softmax(0), self.var_weight.softmax(0)
        mean = mean_share[0] * mean_in + mean_share[1] * mean_ln + mean_share[2] * mean_bn
        var = var_share[0] * var_in + var_share[1] * var_ln + var_share[2] * var_bn
        standard = ((p - mean) / (var + 1e-5).sqrt()).reshape(x.shape)
        return standard * self.weight.reshape(1, c, 1, 1) + self.bias.reshape(1, c, 1, 1)


class IBN(nn.Module):
    """Two copies of the halves, two norms, and a third copy to join them."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.half = num_features // 2
        self.IN = nn.InstanceNorm2d(self.half, affine=True)
        self.BN = nn.BatchNorm2d(num_features - self.half)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.split((self.half, x.shape[1] - self.half), dim=1)
        return torch.cat((self.IN(first.contiguous()), self.BN(second.contiguous())), dim=1)


class MixStyle(nn.Module):
    """Partners drawn at random; statistics detached."""

    def __init__(self, num_features: int, alpha: float = 0.1) -> None:
        super().__init__()
        self.num_features = num_features
        self.beta = torch.distributions.Beta(alpha, alpha)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        n = x.shape[0]
        mean = x.mean(dim=(2, 3), keepdim=True).detach()
        std = (x.var(dim=(2, 3), keepdim=True) + 1e-6).sqrt().detach()
        standard = (x - mean) / std
        lam = self.beta.sample((n, 1, 1, 1)).to(x.device)
        partner = torch.randperm(n)
        mixed_mean = mean * lam + mean[partner] * (1 - lam)
        mixed_std = std * lam + std[partner] * (1 - lam)
        return standard * mixed_std + mixed_mean


class DSU(nn.Module):
    """Noise on mean and deviation, as wide as the batch's spread, which is repeated for every instance."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    @staticmethod
    def perturbed(value: Tensor) -> Tensor:
        spread = (value.var(dim=0, keepdim=True) + 1e-6).sqrt().repeat(value.shape[0], 1)
        return value + torch.randn_like(spread) * spread

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        n, c = x.shape[:2]
        mean = x.mean(dim=(2, 3))
        std = (x.var(dim=(2, 3)) + 1e-6).sqrt()
        new_mean, new_std = self.perturbed(mean), self.perturbed(std)
        standard = (x - mean.reshape(n, c, 1, 1)) / std.reshape(n, c, 1, 1)
        return standard * new_std.reshape(n, c, 1, 1) + new_mean.reshape(n, c, 1, 1)
