"""The table of README and docs/backends.md: spikes that differ from the reference, on every backend usable here.

    python benchmarks/every_backend.py --folder cifar-10-batches-bin    # some minutes; without the folder, digits only

The trained networks of the package at T = 8, in floating point and in whole numbers. A whole-number network must differ
in no spike; in a float one the ties of rounding are counted apart (docs/neuron.md).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import renew

import bridge
from bridge import Agreement, registry
from bridge._util.environment import environment
from bridge._util.files import replacing
from bridge.zoo.data import dataset
from bridge.zoo.pretrained import DATA, pretrained

ROOT = Path(__file__).parent.parent
STEPS = 8
NETWORKS = {"digits": "digits CNN", "resnet20-cifar10": "ResNet-20"}
IMAGES = {"digits": 450, "resnet20-cifar10": 16}
SLOW = {
    "digits": {"lava": 40, "lava-fixed": 40, "nengo": 40},
    "resnet20-cifar10": {"lava": 2, "lava-fixed": 2, "nengo": 1, "slayer": 4},
}
"""Images for backends that take long for one."""
CALIBRATION = 300
MARK = "<!-- every backend -->"
"""Stands before and after the table in a page."""

Cells = dict[str, dict[str, int]]
"""By backend: images, spikes compared, how many differ, how many of these are ties, and whether it agreed."""


def cells(agreement: Agreement) -> Cells:
    neurons = sum(agreement.neurons.values())
    return {
        name: {
            "images": found.images,
            "spikes": found.images * agreement.steps * neurons,
            "differing": found.total_differing,
            "ties": found.ties,
            "agreed": int(found.agreed),
        }
        for name, found in agreement.backends.items()
    }


def measured(name: str, folder: Path | None, images: int, names: Sequence[str]) -> dict[str, Cells]:
    """The float and the whole-number network called `name`, on its first test images and the backends `names`."""
    data = dataset(DATA[name], folder)
    x, labels = data.normalise(data.test.x[:images]), data.test.y[:images]
    network = bridge.convert(pretrained(name), x[:1])
    result: dict[str, Cells] = {"float": {}, "8-bit": {}}

    def run(kind: str, network: bridge.SpikingNetwork, x: Any) -> None:
        for backend in names:
            if backend in result[kind]:
                continue
            limits = {slow: count for slow, count in SLOW[name].items() if slow == backend and count < len(x)}
            try:
                agreement = network.validate(x, STEPS, [backend], labels=labels, images=limits)
            except bridge.GraphError:
                continue  # it cannot run this kind exactly, and says so
            result[kind] |= cells(agreement)
            print(name, kind, backend, result[kind][backend], flush=True)

    run("float", network, x)
    calibration = data.normalise(data.train.x[:CALIBRATION])
    for scheme in ("per_channel", "per_layer"):  # some neurons have one threshold for all channels
        whole = network.quantize(8, calibration, scheme, normalisation=(data.mean, data.std))
        run("8-bit", whole, whole.pixels(x))
    return result


def table(results: Mapping[str, Mapping[str, Cells]]) -> str:
    """Markdown: a row a backend, a column a network and kind."""
    columns = [(name, kind) for name in NETWORKS if name in results for kind in ("float", "8-bit")]
    backends = sorted({backend for name, kind in columns for backend in results[name][kind]})
    heads = [f"{NETWORKS[name]}, {kind}" for name, kind in columns]
    lines = [f"| T = {STEPS} | {' | '.join(heads)} |", "|---|" + "---:|" * len(columns)]
    for backend in backends:
        found = [results[name][kind].get(backend) for name, kind in columns]
        lines.append(f"| {backend} | {' | '.join(map(cell, found))} |")
    return "\n".join(lines)


def cell(found: Mapping[str, int] | None) -> str:
    """``0 of 11.3 M``, with ties apart; a backend that disagrees is set in bold."""
    if found is None:
        return "—"
    count = found["ties"]
    ties = f" ({count} {'tie' if count == 1 else 'ties'})" if count else ""
    text = f"{found['differing']:,} of {found['spikes'] / 1e6:.3g} M{ties}"
    return text if found["agreed"] else f"**{text}**"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything, save it, renew the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where CIFAR-10 is")
    parser.add_argument("--backends", nargs="+", help="default: all that are usable")
    parser.add_argument("--images", type=int, help="at most so many")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "every_backend.json")
    parser.add_argument("--pages", type=Path, nargs="*", default=[ROOT / "README.md", ROOT / "docs" / "backends.md"])
    chosen = parser.parse_args(arguments)
    names = chosen.backends or [name for name in registry.names() if registry.get(name).available().usable]
    results: dict[str, Any] = json.loads(chosen.out.read_text(encoding="utf-8")) if chosen.out.exists() else {}
    for name in NETWORKS:
        if DATA[name] == "digits" or chosen.folder:
            images = min(IMAGES[name], chosen.images or IMAGES[name])
            new = measured(name, chosen.folder, images, names)
            old = results.get(name, {})
            results[name] = {kind: {**old.get(kind, {}), **new[kind]} for kind in new}
            results["made"] = {name: value for name, value in environment().items() if name != "command"}
            with replacing(chosen.out) as file:
                file.write((json.dumps(results, indent=1) + "\n").encode())
    for path in chosen.pages:
        renew(path, MARK, table(results))


if __name__ == "__main__":
    main()
