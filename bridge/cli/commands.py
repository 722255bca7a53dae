"""The command ``qcfs-bridge``.

Exit status: 0, done and agreed; 1, something disagrees; 2, bad input, with a message that says what to do; 3, a file
cannot be written: no space, no permission.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from torch import Tensor

    from bridge.network import SpikingNetwork

STEPS = 8
"""Time steps where none are given."""

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)

Source = Annotated[str, typer.Argument(help="A .nir file, an .onnx file, or module:function, which returns a model.")]
Images = Annotated[
    str, typer.Argument(help="A .npy file [B, ...], an .npz file (or file.npz:array), or a folder of pictures.")
]
Example = Annotated[
    str | None,
    typer.Option("--images", help="Images that a torch model takes, if it does not tell their shape."),
]
Steps = Annotated[
    int | None, typer.Option(help="Time steps T: 8, or a staged or grouped network's latency, if left out.", min=1)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to standard output, and nothing else.")]


def _print_version(asked: bool) -> None:
    if asked:
        from bridge._util.environment import version

        print(f"qcfs-bridge {version('qcfs-bridge')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Exact spiking networks from QCFS-trained ones, on every neuromorphic framework."""


@app.command()
def doctor() -> None:
    """Show which backends can be used here, and how to get the others. Exit status 1 if one cannot."""
    from bridge.backends.doctor import diagnose

    raise typer.Exit(0 if diagnose(Console()) else 1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for networks, agreements and pictures.")] = Path("out"),
) -> None:
    """Train a small network on handwritten digits, convert it, and compare it on every backend."""
    with _bad_input():
        from bridge.cli.demo import run as run_demo

        agreed = run_demo(out, Console())
    raise typer.Exit(0 if agreed else 1)


@app.command()
def convert(
    source: Source,
    out: Annotated[Path, typer.Argument(help="The .nir file to write.")],
    images: Example = None,
    weight_bits: Annotated[
        int | None, typer.Option(help="Also quantize: whole numbers with weights of so many bits. Needs --images.")
    ] = None,
    scheme: Annotated[
        str | None, typer.Option(help="Thresholds per_channel (if not given) or per_layer, with --weight-bits.")
    ] = None,
    calibrate: Annotated[
        int | None, typer.Option(help="Also fit the network to so many time steps. Needs --images.", min=1)
    ] = None,
    mean: Annotated[
        str | None, typer.Option(help="With --std, where the images are pixels: the ANN takes (p / 255 - mean) / std.")
    ] = None,
    std: Annotated[str | None, typer.Option(help="See --mean. Numbers, one a channel: 0.49,0.48,0.45.")] = None,
    schedule: Annotated[
        str, typer.Option(help="plain; staged or grouped: spike counts equal the ANN's activations.")
    ] = "plain",
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps of a layer's window, or members of a group, with --schedule staged or grouped; else its own L.",
            min=1,
        ),
    ] = None,
) -> None:
    """Convert a network and write it as NIR."""
    with _bad_input():
        from bridge.cli.sources import ann_input
        from bridge.errors import InputError
        from bridge.network import RATE_STEPS

        if out.suffix.lower() == ".onnx":
            raise InputError(f"{out}: convert writes NIR, as a .nir file; in Python, network.ann_to_onnx writes ONNX")
        if scheme is not None and weight_bits is None:
            raise InputError(f"--scheme {scheme} is for --weight-bits, which is not given")
        example = None if images is None else _images(images)
        network = _network(source, example, schedule, steps)
        if example is None and (weight_bits is not None or calibrate is not None):
            raise InputError("--weight-bits and --calibrate need calibration images: give them with --images")
        if weight_bits is None and calibrate is None and (mean is not None or std is not None):
            raise InputError("--mean and --std say what pixels stand for, for --weight-bits and --calibrate")
        pixels_are = _normalisation(mean, std, network.graph.input.shape[0])
        if example is not None and (calibrate is not None or weight_bits is not None):
            example = ann_input(example, pixels_are)
        if example is not None and calibrate is not None:
            network = network.calibrate(example, calibrate)
        if example is not None and weight_bits is not None:
            network = network.quantize(
                weight_bits, example, scheme or "per_channel", normalisation=pixels_are, steps=calibrate or RATE_STEPS
            )
        network.save(out)
    Console(stderr=True).print(f"{network}: wrote {out}", markup=False, soft_wrap=True)


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A network of the zoo: resnet20, vgg16, mnist, …")],
    data: Annotated[str, typer.Argument(help="cifar10, mnist, fashion-mnist, or digits, which needs no files.")],
    out: Annotated[Path, typer.Argument(help="Folder for weights, model card, metrics and the checkpoint.")],
    folder: Annotated[Path | None, typer.Option(help="Where the data's files are.")] = None,
    recipe: Annotated[str, typer.Option(help="paper, 300 epochs, or short, 40.")] = "paper",
    change: Annotated[list[str] | None, typer.Option("--set", help="name=value of the recipe; repeatable.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights, order and augmentation.")] = 0,
    held_out: Annotated[int, typer.Option(help="Training images to report accuracy on, not the test images.")] = 0,
    initial: Annotated[Path | None, typer.Option(help="Weights to begin with, in the place of random ones.")] = None,
) -> None:
    """Train a network with QCFS. Called again after a kill, it goes on where it was."""
    with _bad_input():
        from bridge.zoo.training.train import run as run_training

        result = run_training(
            model,
            data,
            out,
            recipe=recipe,
            changes=change or [],
            folder=folder,
            seed=seed,
            held_out=held_out,
            initial=initial,
        )
    Console(stderr=True).print(f"{result.accuracy:.2%} right: wrote {result.weights}", markup=False, soft_wrap=True)


@app.command()
def inspect(source: Source, images: Example = None, as_json: AsJson = False) -> None:
    """Show a network's layers: kind, shape, inputs, parameters; and what a staged or grouped one costs."""
    with _bad_input():
        from bridge.report.layers import rows, table
        from bridge.report.tables import costs

        network = _network(source, None if images is None else _images(images))
        found = rows(network.graph)
        if as_json:
            _print_json(found)
        else:
            Console().print(table(f"{network}", found))
            if network.latency is not None:
                price = network.cost()
                Console().print(costs({price.schedule: price.to_dict()}))


@app.command()
def run(
    source: Source,
    images: Images,
    out: Annotated[Path, typer.Argument(help="The .npz file to write: spikes of every layer, and the readout.")],
    steps: Steps = None,
    backend: Annotated[str, typer.Option(help="A backend's name, or reference.")] = "reference",
) -> None:
    """Run a network on images and keep all its spikes."""
    with _bad_input():
        from bridge.backends import registry

        x = _images(images)
        network = _network(source, x)
        steps = _steps(network, steps)
        if backend == "reference":
            record = network.run(x, steps)
        else:
            chosen = registry.usable(backend)
            given = network.pixels(x) if network.graph.integer else x
            record = chosen.run(chosen.export(network.to_nir()), given.numpy(), steps)
        record.save(out)
    Console(stderr=True).print(f"{record.images} images, {steps} steps: wrote {out}", markup=False, soft_wrap=True)


@app.command()
def validate(
    source: Source,
    images: Images,
    steps: Steps = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="A backend's name, or the .npz file of a recorded run; may be repeated.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="A .npy or .npz file of true classes [B].")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="name=N: run only N images on that backend.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for agreement.json and report.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a network on every backend and tell where, when and why one disagrees. Exit status 1 if one does."""
    with _bad_input():
        from bridge.backends.recorded import Recorded
        from bridge.cli.sources import labels as read_labels

        x = _images(images)
        network = _network(source, x)
        backends = None
        if backend:
            backends = [Recorded(name) if name.endswith(".npz") else name for name in backend]
        truth = None if labels is None else read_labels(*_path(labels))
        agreement = network.validate(x, _steps(network, steps), backends, labels=truth, images=_limits(limit))
        if out is not None:
            agreement.save(out / "agreement.json")
            agreement.report(out / "report.html")
        if as_json:
            _print_json(agreement.to_dict())
        else:
            Console().print(agreement.table())
    raise typer.Exit(0 if agreement.agreed else 1)


@app.command()
def compare(
    one: Annotated[Path, typer.Argument(help="A recorded run (.npz).")],
    other: Annotated[Path, typer.Argument(help="Another run of the same network on the same images.")],
    as_json: AsJson = False,
) -> None:
    """Compare two recorded runs, spike by spike. Exit status 1 if they differ."""
    with _bad_input():
        import numpy as np

        from bridge.errors import InputError
        from bridge.records import SpikeRecord, differing
        from bridge.report.differences import table

        records = SpikeRecord.load(one), SpikeRecord.load(other)
        if records[0].images != records[1].images:
            raise InputError(f"{one} has {records[0].images} images, {other} {records[1].images}: record the same ones")
        counts = {layer: found.tolist() for layer, found in differing(*records).items()}
        readout = float(np.abs(records[0].readout - records[1].readout).max())
        if as_json:
            _print_json({"differing": counts, "readout_difference": readout})
        else:
            Console().print(table(counts, readout))
    raise typer.Exit(1 if readout or any(map(any, counts.values())) else 0)


@app.command()
def report(
    agreement: Annotated[Path, typer.Argument(help="An agreement.json.")],
    out: Annotated[Path, typer.Argument(help="The .html file to write.")],
) -> None:
    """Make the HTML report of an agreement that was saved."""
    with _bad_input():
        from bridge.agreement import Agreement

        Agreement.load(agreement).report(out)
    Console(stderr=True).print(f"wrote {out}", markup=False, soft_wrap=True)


def _steps(network: SpikingNetwork, steps: int | None) -> int:
    """T: as given, else a staged network's latency, else `STEPS`."""
    if steps is not None:
        return steps
    return network.latency if network.latency is not None else STEPS


@contextmanager
def _bad_input() -> Iterator[None]:
    """Turn an error that a user can mend into its message and exit status 2; 3 if the machine refuses to write."""
    from bridge.errors import BridgeError, FileError

    try:
        yield
    except BridgeError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(3 if isinstance(error, FileError) else 2) from error


def _network(source: str, images: Tensor | None, schedule: str = "plain", steps: int | None = None) -> SpikingNetwork:
    from bridge.cli.sources import network

    return network(source, images, schedule, steps)


def _images(text: str) -> Tensor:
    from bridge.cli.sources import images

    return images(*_path(text))


def _path(text: str) -> tuple[Path, str | None]:
    """The path and, in ``file.npz:name``, the array's name."""
    path, colon, key = text.rpartition(":")
    return (Path(path), key) if colon and path.endswith(".npz") else (Path(text), None)


def _normalisation(mean: str | None, std: str | None, channels: int) -> tuple[list[float], list[float]] | None:
    """What was given with --mean and --std, one for each of the channels; a single number is for all."""
    from bridge.errors import InputError

    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise InputError("--mean and --std go together, such as --mean 0 --std 1 for pixels / 255")
    try:
        means, stds = ([float(one) for one in text.split(",")] for text in (mean, std))
    except ValueError as error:
        raise InputError(f"--mean {mean} --std {std}: expected numbers with commas between, one a channel") from error
    return (means * channels if len(means) == 1 else means), (stds * channels if len(stds) == 1 else stds)


def _limits(texts: list[str] | None) -> dict[str, int]:
    from bridge.errors import InputError

    result = {}
    for text in texts or []:
        name, _, count = text.partition("=")
        if not count.isdecimal():
            raise InputError(f"--limit {text}: expected name=N, such as lava=60")
        result[name] = int(count)
    return result


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1))
