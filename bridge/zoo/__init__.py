"""The networks of the QCFS paper (Bu et al., ICLR 2022), ready to train, or to load with `bridge.load_checkpoint`.

They follow the authors' code (``putshua/ANN_SNN_QCFS``) layer for layer and carry its parameter names, numbers inside
`nn.Sequential` included, so that its checkpoints fit. Only λ is called ``threshold`` here; the loader knows.
"""

from typing import TYPE_CHECKING

from bridge._util.lazy import lazily

if TYPE_CHECKING:
    from bridge.zoo.resnet import ResNet, resnet18, resnet20, resnet34
    from bridge.zoo.vgg import VGG, vgg16

__all__ = ["VGG", "ResNet", "resnet18", "resnet20", "resnet34", "vgg16"]

__getattr__, __dir__ = lazily(
    __name__,
    {"bridge.zoo.resnet": ("ResNet", "resnet18", "resnet20", "resnet34"), "bridge.zoo.vgg": ("VGG", "vgg16")},
)
