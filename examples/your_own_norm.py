"""Write a norm of your own: one method, and it is as fast as ours, chains with them and works in any network.

python examples/your_own_norm.py
"""

from __future__ import annotations

import torch
from torch import nn

from shiftnorm import Affine, BatchNorm, Chain, MomentNorm, Moments, SelfNorm
from shiftnorm.models import WideResNet


class TideNorm(MomentNorm):
    """Normalise every plane by a learned mixture of its own moments and those of its batch."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features)
        self.eps = eps
        self.init_affine(num_features)
        self.tide = nn.Parameter(torch.zeros(num_features))

    def affine(self, m: Moments) -> Affine:
        own, batch = torch.sigmoid(self.tide), m.pooled(over="batch")
        var = own * m.var + (1 - own) * batch.var
        gain = self.weight * torch.rsqrt(var + self.eps)
        return Affine(gain, self.bias + gain * (1 - own) * (m.mean - batch.mean))


def main() -> None:
    x = torch.randn(8, 16, 32, 32).to(memory_format=torch.channels_last)
    y = TideNorm(16)(x)
    print("alone      ", tuple(y.shape), "channels_last kept:", y.is_contiguous(memory_format=torch.channels_last))

    chain = Chain(BatchNorm(16), TideNorm(16), SelfNorm(16))  # three norms, one pass for moments and one to apply
    print("in a chain ", tuple(chain(x).shape))

    compiled = torch.compile(TideNorm(16), fullgraph=True, backend="aot_eager")
    print("compiled   ", tuple(compiled(x).shape))

    net = WideResNet(depth=10, widen_factor=1, norm=TideNorm)
    loss = nn.functional.cross_entropy(net(torch.randn(8, 3, 32, 32)), torch.arange(8))
    loss.backward()
    tides = [module.tide.grad.norm() for module in net.modules() if isinstance(module, TideNorm)]
    print(f"in a network: {len(tides)} TideNorms, every one with a gradient: {all(tide > 0 for tide in tides)}")


if __name__ == "__main__":
    main()
