"""Which of torchvision's classifiers convert, and whether every backend then spikes alike: makes docs/torchvision.md.

    python benchmarks/torchvision_table.py [NAME ...]

Random weights, batch-norm statistics and λ fitted on random images, T = 4. Results are kept in
docs/results/torchvision.json as they come; models that are in it already are not run again (delete their entries to do
so). The page has those of benchmarks/timm_table.py, too.
"""

from __future__ import annotations

import contextlib
import json
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

import bridge
from bridge.errors import ConversionError

DOCS = Path(__file__).parent.parent / "docs"
PAGE = DOCS / "torchvision.md"
RESULTS = {name: DOCS / "results" / f"{name}.json" for name in ("torchvision", "timm")}
STEPS, LEVELS, IMAGES = 4, 4, 2
BACKENDS = ("spikingjelly", "snntorch", "onnxruntime")

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


def measured(model: nn.Module, size: int, steps: int = STEPS) -> dict[str, Any]:
    """One row of a table: `model`, on images of this `size`."""
    x = torch.rand(8, 3, size, size)
    settle(model, x)
    replaced = bridge.replace_activations(model, levels=LEVELS, max_pool="avg")
    model = bridge.fit_thresholds(replaced, x, method="max")
    return compared(model, x[:IMAGES], steps) | {"size": size}


def compared(model: nn.Module, x: torch.Tensor, steps: int) -> dict[str, Any]:
    """What comes of a `model` with QCFS, after a `.nir` file and on every backend."""
    network = bridge.convert(model, x)
    record = network.run(x, steps)
    with TemporaryDirectory() as folder:
        network.save(Path(folder) / "net.nir")
        again = bridge.load(Path(folder) / "net.nir").run(x, steps)
    same = all(np.array_equal(record.packed[layer], again.packed[layer]) for layer in network.layers)
    agreement = network.validate(x, steps, BACKENDS)
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "layers": len(network.layers),
        "neurons": sum(agreement.neurons.values()),
        "rate": float(np.mean([record.spikes(layer).mean() for layer in network.layers])),
        "round_trip": same and np.array_equal(record.readout, again.readout),
        "agreed": agreement.agreed,
        "differing": {backend: agreement.backends[backend].total_differing for backend in BACKENDS},
        "ties": {backend: agreement.backends[backend].ties for backend in BACKENDS},
        "versions": {b: dict(agreement.backends[b].versions) for b in BACKENDS},
    }


def refused(model: nn.Module, size: int) -> dict[str, Any]:
    """What a `model` that cannot be exact is told."""
    with contextlib.suppress(ConversionError):  # there may be no ReLU in it at all
        model = bridge.replace_activations(model.eval(), levels=LEVELS, max_pool="avg")
    try:
        bridge.convert(model, torch.rand(1, 3, size, size))
    except ConversionError as error:
        lines = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
        places = [line.partition(": ")[0] for line in lines]
        kinds = sorted({each.partition("(")[2].rstrip(")") for each in places})
        return {"refused": True, "listed": len(lines), "kinds": kinds, "first": lines[0]}
    return {"refused": False, "listed": 0, "kinds": [], "first": ""}


def measure(name: str) -> dict[str, Any]:
    """One row of the table of what converts."""
    return measured(*make(name))


def refusal(name: str) -> dict[str, Any]:
    """One row of the table of what does not."""
    return refused(*make(name))


def page() -> str:
    """docs/torchvision.md, of the results so far."""
    results = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in RESULTS.items() if path.exists()}
    rows = [row for of_one in results.values() for row in of_one.values()]
    versions: dict[str, dict[str, str]] = next((row["versions"] for row in rows if "versions" in row), {})
    named = ", ".join(f"{p} {v}" for packages in versions.values() for p, v in packages.items())
    text = [
        "# torchvision's and timm's classifiers",
        "",
        "Made by `benchmarks/torchvision_table.py` and `benchmarks/timm_table.py`: random weights, maximum pooling",
        "replaced by average pooling, λ from `bridge.fit_thresholds(method='max')`, "
        f"L = {LEVELS}, T = {STEPS}, {IMAGES} images,",
        "float32. *Round trip*: the `.nir` file read back gives the same spikes and readout. *Differing*: spikes that",
        f"differ from the reference's, of neurons × T × {IMAGES} images, and how many float ties they all follow from",
        f"([neuron.md](neuron.md)). Backends: {named}.",
    ]
    for name, title in (("torchvision", "torchvision"), ("timm", "timm: one model of each family with plain ReLU")):
        if name in results:
            text += ["", f"## {title}", "", *_converted(results[name])]
            text += ["", f"## {name}: refused, as they should be", "", *_not_converted(results[name])]
    return "\n".join(text) + "\n"


def _converted(results: dict[str, dict[str, Any]]) -> list[str]:
    """The table of what converts."""
    columns = ["model", "parameters", "input", "spiking layers", "neurons", "mean rate", "round trip", *BACKENDS]
    heads = [*columns[: -len(BACKENDS)], *(f"{backend}: differing" for backend in BACKENDS)]
    rows = [heads, ["---"] * len(heads)]
    for name, row in results.items():
        if "error" in row:
            rows.append([name, row["error"], *[""] * (len(heads) - 2)])
        elif "refused" not in row:
            cells = [name, f"{row['parameters'] / 1e6:.1f} M", f"{row['size']}²", row["layers"], f"{row['neurons']:,}"]
            cells += [f"{row['rate']:.3f}", "equal" if row["round_trip"] else "DIFFERS"]
            rows.append(cells + [_differing(row, backend) for backend in BACKENDS])
    return [_line(row) for row in rows]


def _differing(row: dict[str, Any], backend: str) -> str:
    count, ties = row["differing"][backend], row["ties"][backend]
    if not row["agreed"]:
        return f"{count:,}: NOT ALL FROM TIES"
    return f"{count:,} from {ties:,} tie{'s' if ties > 1 else ''}" if count else "0"


def _not_converted(results: dict[str, dict[str, Any]]) -> list[str]:
    """The table of what is refused."""
    rows = [["model", "operations listed", "kinds", "the first of them"], ["---"] * 4]
    for name, row in results.items():
        if "refused" in row:
            listed = row["listed"] if row["refused"] else "NOT REFUSED"
            rows.append([name, listed, ", ".join(row["kinds"]), row["first"]])
    return [_line(row) for row in rows]


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def kept(package: str, names: Mapping[str, Callable[[], dict[str, Any]]], asked: list[str]) -> None:
    """Measure the models `asked` for that are not measured yet, all by default, and write the page."""
    path = RESULTS[package]
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in asked or names:
        if name in results and "error" not in results[name]:
            continue
        try:
            results[name] = names[name]()
        except Exception as error:  # the table says so
            results[name] = {"error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300]}
        print(name, {key: value for key, value in results[name].items() if key != "versions"}, flush=True)
        ordered = {name: results[name] for name in names if name in results}
        path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


def main(asked: list[str]) -> None:
    """Measure the models `asked` for, all by default, and write the page."""
    rows = {name: partial(measure, name) for name in CONVERTED} | {name: partial(refusal, name) for name in REFUSED}
    kept("torchvision", rows, asked)


if __name__ == "__main__":
    main(sys.argv[1:])
