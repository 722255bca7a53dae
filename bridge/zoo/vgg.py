"""VGG-16 (Simonyan and Zisserman, ICLR 2015) as the QCFS paper trains it: batch norm, average pooling, dropout."""

from __future__ import annotations

from torch import Tensor, nn

from bridge.prepare.qcfs import QCFS

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Output channels of the convolutions of VGG-16, one tuple a stage; a stage ends in a pool."""
HIDDEN = 4096
SHRINKS = 2 ** len(STAGES)


class VGG(nn.Module):
    """Five stages of convolutions, each halving the image, and a classifier of three linear layers.

    Shapes: ``[B, 3, image_size, image_size]`` in, ``[B, num_classes]`` out.

    ```python
    model = bridge.zoo.VGG(num_classes=100, levels=4, image_size=64)
    ```

    Args:
        num_classes: 10 for CIFAR-10.
        levels: L of every QCFS.
        threshold: λ of every QCFS at the start. The authors' code starts at 8; smaller ones train better at few steps.
        dropout: share dropped after each activation.
        image_size: height and width of the images, a multiple of 32: 32 for CIFAR, 224 for ImageNet. It sets the size
            of the first linear layer.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, num_classes: int = 10, levels: int = 8, threshold: float = 2.0, dropout: float = 0.0, image_size: int = 32
    ) -> None:
        super().__init__()
        if image_size < SHRINKS or image_size % SHRINKS:
            raise ValueError(f"VGG: image_size must be a multiple of {SHRINKS}, got {image_size}")
        self.input_shape = (3, image_size, image_size)
        channels = (3, *(stage[-1] for stage in STAGES))
        self.layer1 = _stage(channels[0], STAGES[0], levels, threshold, dropout)
        self.layer2 = _stage(channels[1], STAGES[1], levels, threshold, dropout)
        self.layer3 = _stage(channels[2], STAGES[2], levels, threshold, dropout)
        self.layer4 = _stage(channels[3], STAGES[3], levels, threshold, dropout)
        self.layer5 = _stage(channels[4], STAGES[4], levels, threshold, dropout)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels[5] * (image_size // SHRINKS) ** 2, HIDDEN),
            QCFS(levels, threshold),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, HIDDEN),
            QCFS(levels, threshold),
            nn.Dropout(dropout),
            nn.Linear(HIDDEN, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.layer5(x)
        out: Tensor = self.classifier(x)
        return out


def _stage(inputs: int, outputs: tuple[int, ...], levels: int, threshold: float, dropout: float) -> nn.Sequential:
    """3×3 convolutions to `outputs` channels, one after the other, and a pool."""
    stage = nn.Sequential()
    for before, after in zip((inputs, *outputs), outputs, strict=False):
        stage.append(nn.Conv2d(before, after, 3, padding=1))
        stage.append(nn.BatchNorm2d(after))
        stage.append(QCFS(levels, threshold))
        stage.append(nn.Dropout(dropout))
    return stage.append(nn.AvgPool2d(2))


def vgg16(
    num_classes: int = 10, levels: int = 8, threshold: float = 2.0, dropout: float = 0.0, image_size: int = 32
) -> VGG:
    """VGG-16; `VGG` says what the arguments are. 33.6 million weights for CIFAR-10, 138 million for ImageNet.

    ```python
    model = bridge.zoo.vgg16(num_classes=100, levels=4)
    ```
    """
    return VGG(num_classes, levels, threshold, dropout, image_size)
