"""Residual networks (He et al., CVPR 2016) as the QCFS paper trains them.

The shortcut is a 1×1 convolution with batch norm wherever the shape changes, the activation comes after the addition,
and there is no pool before the last one.
"""

from __future__ import annotations

from torch import Tensor, nn

from bridge.prepare.qcfs import QCFS


class BasicBlock(nn.Module):
    """Two 3×3 convolutions beside a shortcut, added, then QCFS; ``[B, inputs, H, W]`` to ``[B, outputs, H/s, W/s]``."""

    def __init__(self, inputs: int, outputs: int, stride: int, levels: int, threshold: float) -> None:
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            QCFS(levels, threshold),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.act = QCFS(levels, threshold)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.residual_function(x) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """A 3×3 convolution, three or four stages of `BasicBlock`, the mean over the image, and a linear layer.

    Shapes: ``[B, 3, H, W]`` in, ``[B, num_classes]`` out, images of any size: the first stage keeps it, every further
    one halves it. (The authors use the same network, without a pool at its start, for ImageNet too.) ``input_shape``
    is that of the data it was made for, which `bridge.convert` takes if it is given no example. Example:
    docs/thresholds.md.

    Args:
        blocks: how many blocks each stage has.
        channels: output channels of each stage.
        num_classes: 10 for CIFAR-10.
        levels: L of every QCFS.
        threshold: λ of every QCFS at the start. The authors' code starts at 8; smaller ones train better at few steps.
    """

    def __init__(
        self, blocks: tuple[int, ...], channels: tuple[int, ...], num_classes: int, levels: int, threshold: float
    ) -> None:
        super().__init__()
        self.input_shape = (3, 32, 32)
        first = channels[0]
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), QCFS(levels, threshold)
        )
        self.conv2_x = _stage(first, channels[0], blocks[0], 1, levels, threshold)
        self.conv3_x = _stage(channels[0], channels[1], blocks[1], 2, levels, threshold)
        self.conv4_x = _stage(channels[1], channels[2], blocks[2], 2, levels, threshold)
        self.conv5_x: nn.Module = nn.Identity()  # ResNet-20 has three stages
        if len(channels) == 4:
            self.conv5_x = _stage(channels[2], channels[3], blocks[3], 2, levels, threshold)
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2_x(x)
        x = self.conv3_x(x)
        x = self.conv4_x(x)
        x = self.conv5_x(x)
        x = self.avg_pool(x)
        out: Tensor = self.fc(self.flatten(x))
        return out


def _stage(inputs: int, outputs: int, count: int, stride: int, levels: int, threshold: float) -> nn.Sequential:
    """`count` blocks; the first one changes the shape."""
    first = BasicBlock(inputs, outputs, stride, levels, threshold)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, levels, threshold) for _ in range(count - 1)))


def resnet18(num_classes: int = 10, levels: int = 8, threshold: float = 2.0) -> ResNet:
    """ResNet-18 with 64 to 512 channels, 11.2 million weights; `ResNet` says what the arguments are.

    ```python
    model = bridge.zoo.resnet18(num_classes=100, levels=4)
    ```
    """
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, levels, threshold)


def resnet20(num_classes: int = 10, levels: int = 8, threshold: float = 2.0) -> ResNet:
    """ResNet-20 with 16, 32 and 64 channels, 0.27 million weights; `ResNet` says what the arguments are.

    ```python
    model = bridge.zoo.resnet20(num_classes=100, levels=4)
    ```
    """
    return ResNet((3, 3, 3), (16, 32, 64), num_classes, levels, threshold)


def resnet34(num_classes: int = 10, levels: int = 8, threshold: float = 2.0) -> ResNet:
    """ResNet-34 with 64 to 512 channels, 21.3 million weights; `ResNet` says what the arguments are.

    ```python
    model = bridge.zoo.resnet34(num_classes=100, levels=4)
    ```
    """
    return ResNet((3, 4, 6, 3), (64, 128, 256, 512), num_classes, levels, threshold)
