"""A small network one of whose norms has two names, for the tests of conversions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(1))


class TiedNet(nn.Module):
    """Two convolutions with BatchNorm, one of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, eps=1e-3, momentum=0.2)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.again = self.bn1
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(self.again(x).mean((2, 3)))
