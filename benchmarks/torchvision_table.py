"""Which of torchvision's classifiers convert, and whether every backend then spikes alike: makes docs/torchvision.md.

    python benchmarks/torchvision_table.py [NAME ...]

Random weights, batch-norm statistics and λ fitted on random images, T = 4. Results are kept in
docs/results/torchvision.json as they come; models that are in it already are not run again (delete their entries to do
so).
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import bridge
from bridge.errors import ConversionError

DOCS = Path(__file__).parent.parent / "docs"
STEPS, LEVELS, IMAGES = 4, 4, 2
BACKENDS = ("spikingjelly", "snntorch")

CONVERTED = [
    "alexnet",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "vgg11_bn",
    "vgg13_bn",
    "vgg16_bn",
    "vgg19_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "mobilenet_v2",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "squeezenet1_0",
    "squeezenet1_1",
    "googlenet",
    "inception_v3",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_1_6gf",
    "regnet_x_3_2gf",
    "regnet_x_8gf",
    "regnet_x_16gf",
    "regnet_x_32gf",
]
REFUSED = [
    "efficientnet_b0",
    "efficientnet_v2_s",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_16",
    "swin_t",
]


def torchvision_models() -> Any:
    """torchvision.models, also beside a torch without torchvision's compiled operators, which no classifier needs."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        try:
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        except RuntimeError:  # it is there
            return __import__("torchvision.models").models
    import torchvision.models

    torchvision_models.library = library  # type: ignore[attr-defined]  # operators live as long as their library
    return torchvision.models


def make(name: str) -> tuple[nn.Module, int]:
    """The model with random weights, and the image size: smaller than its own 224 where the architecture allows."""
    models = torchvision_models()
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    size = 224 if name.startswith(("alexnet", "vgg", "vit", "swin")) else 96
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(models, name)(weights=None, **options), size


def settle(model: nn.Module, x: torch.Tensor) -> None:
    """Give batch norm the statistics of random images, as training would: with its initial ones signals die out."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the mean over all batches
        model.train()
        for _ in range(2):
            model(x)
        model.eval()


def measure(name: str) -> dict[str, Any]:
    """One row of the table."""
    model, size = make(name)
    x = torch.rand(8, 3, size, size)
    settle(model, x)
    replaced = bridge.replace_activations(model, levels=LEVELS, max_pool="avg")
    model = bridge.fit_thresholds(replaced, x, method="max")
    x = x[:IMAGES]
    network = bridge.convert(model, x)
    record = network.run(x, STEPS)
    with TemporaryDirectory() as folder:
        network.save(Path(folder) / "net.nir")
        again = bridge.load(Path(folder) / "net.nir").run(x, STEPS)
    same = all(np.array_equal(record.packed[layer], again.packed[layer]) for layer in network.layers)
    agreement = network.validate(x, STEPS, BACKENDS)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "size": size,
        "layers": len(network.layers),
        "neurons": sum(agreement.neurons.values()),
        "rate": float(np.mean([record.spikes(layer).mean() for layer in network.layers])),
        "round_trip": same and np.array_equal(record.readout, again.readout),
        "differing": {backend: agreement.backends[backend].total_differing for backend in BACKENDS},
        "versions": {b: dict(agreement.backends[b].versions) for b in BACKENDS},
    }


def refusal(name: str) -> dict[str, Any]:
    """What a model that cannot be exact is told."""
    model, size = make(name)
    x = torch.rand(1, 3, size, size)
    with contextlib.suppress(ConversionError):  # there may be no ReLU in it at all
        model = bridge.replace_activations(model.eval(), levels=LEVELS, max_pool="avg")
    try:
        bridge.convert(model, x)
    except ConversionError as error:
        lines = str(error).splitlines()
        kinds = sorted({line.split("(")[1].split(")")[0] for line in lines if line.startswith("  - ") and "(" in line})
        return {
            "refused": True,
            "listed": len(lines) - 1,
            "kinds": kinds,
            "first": lines[min(1, len(lines) - 1)].strip(),
        }
    return {"refused": False, "listed": 0, "kinds": [], "first": ""}


def table(results: dict[str, dict[str, Any]]) -> str:
    """The page."""
    versions = next((row["versions"] for row in results.values() if "versions" in row), {})
    named = ", ".join(f"{p} {v}" for packages in versions.values() for p, v in packages.items())
    rows = [
        "# torchvision's classifiers",
        "",
        "Made by `benchmarks/torchvision_table.py`: random weights, maximum pooling replaced by average pooling, λ",
        f"from `bridge.fit_thresholds(method='max')`, L = {LEVELS}, T = {STEPS}, {IMAGES} images, float32.",
        "*Round trip*: the `.nir` file read back gives the same spikes and readout. *Differing*: spikes that differ",
        f"from the reference's, of neurons × T × {IMAGES} images. Backends: {named}.",
        "",
        "| model | parameters | input | spiking layers | neurons | mean rate | round trip | "
        + " | ".join(f"{backend}: differing" for backend in BACKENDS)
        + " |",
        "|---|---|---|---|---|---|---|" + "---|" * len(BACKENDS),
    ]
    for name in CONVERTED:
        row = results.get(name)
        if row is None:
            continue
        if "error" in row:
            rows.append(f"| {name} | {row['error']} |" + " |" * (6 + len(BACKENDS)))
            continue
        cells = [f"{row['parameters'] / 1e6:.1f} M", f"{row['size']}²", row["layers"], f"{row['neurons']:,}"]
        cells += [f"{row['rate']:.3f}", "equal" if row["round_trip"] else "DIFFERS"]
        cells += [row["differing"][backend] for backend in BACKENDS]
        rows.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    rows += [
        "",
        "## Refused, as they should be",
        "",
        "| model | offending layers listed | kinds | the first of them |",
        "|---|---|---|---|",
    ]
    for name in REFUSED:
        if name in results:
            row = results[name]
            listed = row["listed"] if row["refused"] else "NOT REFUSED"
            rows.append(f"| {name} | {listed} | {', '.join(row['kinds'])} | {row['first'].lstrip('- ')} |")
    return "\n".join(rows) + "\n"


def main(names: list[str]) -> None:
    path = DOCS / "results" / "torchvision.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in names or [*CONVERTED, *REFUSED]:
        if name in results and "error" not in results[name]:
            continue
        try:
            results[name] = refusal(name) if name in REFUSED else measure(name)
        except Exception as error:  # the table says so
            results[name] = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]}
        print(name, {key: value for key, value in results[name].items() if key != "versions"}, flush=True)
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (DOCS / "torchvision.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
