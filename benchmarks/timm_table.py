"""One model of each of timm's families with plain ReLU, beside torchvision's: a part of docs/torchvision.md.

    python benchmarks/timm_table.py [NAME ...]

As benchmarks/torchvision_table.py, which it shares all but the models with.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision_table import kept, measured, refused, torchvision_models

CONVERTED = {
    **dict.fromkeys(("test_resnet", "resnet18", "resnet18d", "resnet50s", "resnetaa50", "resnext50_32x4d"), 64),
    **dict.fromkeys(("resnetv2_50", "res2next50", "res2net50_14w_8s", "dla34", "dla46x_c", "dla60_res2net"), 64),
    **dict.fromkeys(("densenet121", "dpn68", "repvgg_a0", "gernet_s", "mobileone_s0", "regnetx_002"), 64),
    **dict.fromkeys(("selecsls42b", "vovnet39a", "hgnetv2_b0", "fasternet_l", "legacy_xception"), 64),
    **dict.fromkeys(("mnasnet_100", "spnasnet_100", "fbnetc_100", "mobilenetv2_100", "efficientnet_es"), 64),
    **dict.fromkeys(("efficientnet_lite0", "mobilenet_edgetpu_100", "mobilenetv4_conv_small"), 64),
    **dict.fromkeys(("xception41", "inception_v3", "inception_v4", "inception_resnet_v2"), 96),
    "vgg11_bn": 224,
    # Of another activation, with ReLU in its place:
    **dict.fromkeys(("cspresnet50", "cspresnext50", "cspdarknet53", "darknet17", "mobilenetv1_100"), 64),
    "convmixer_1024_20_ks9_p14": 70,
}
"""The side of the images, by the model's name: smaller than the model's own where the architecture allows."""

WITH_RELU = ("cspresnet50", "cspresnext50", "cspdarknet53", "darknet17", "mobilenetv1_100", "convmixer_1024_20_ks9_p14")

REFUSED = {
    **dict.fromkeys(("legacy_seresnet18", "skresnet18", "resnest14d", "ese_vovnet19b_slim", "hgnet_tiny"), 64),
    **dict.fromkeys(("ghostnet_100", "mnasnet_small", "repghostnet_050", "mobilenetv3_small_100", "hardcorenas_a"), 64),
    **dict.fromkeys(("resnetblur18", "hrnet_w18_small", "resnetv2_50x1_bit", "dpn48b", "tresnet_m"), 64),
    **dict.fromkeys(("visformer_tiny", "mixer_s32_224"), 224),
}


def make(name: str) -> nn.Module:
    """The model with random weights."""
    torchvision_models()  # timm imports torchvision
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm

        torch.manual_seed(0)
        options: dict[str, Any] = {"act_layer": nn.ReLU} if name in WITH_RELU else {}
        model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def measure(name: str, steps: int = 4) -> dict[str, Any]:
    """One row of the table of what converts."""
    return measured(make(name), CONVERTED[name], steps)


def refusal(name: str) -> dict[str, Any]:
    """One row of the table of what does not."""
    return refused(make(name), REFUSED[name])


def main(asked: list[str]) -> None:
    """Measure the models `asked` for, all by default, and write the page."""
    rows = {name: partial(measure, name) for name in CONVERTED} | {name: partial(refusal, name) for name in REFUSED}
    kept("timm", rows, asked)


if __name__ == "__main__":
    main(sys.argv[1:])
