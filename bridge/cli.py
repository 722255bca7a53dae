"""The command ``qcfs-bridge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def main() -> None:
    """Exact spiking networks from QCFS-trained ones, on every neuromorphic framework."""


@app.command()
def doctor() -> None:
    """Show which backends can be used here, and how to get the others. Exit status 1 if one cannot."""
    from bridge.doctor import diagnose

    raise typer.Exit(0 if diagnose(Console()) else 1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for digits.nir, agreement.json and rate_error.png.")] = Path("out"),
) -> None:
    """Train a small network on handwritten digits, convert it, and compare it on every backend."""
    from bridge.demo import run
    from bridge.errors import BridgeError

    try:
        agreed = run(out, Console())
    except BridgeError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    raise typer.Exit(0 if agreed else 1)


if __name__ == "__main__":
    app()
