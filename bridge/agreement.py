"""An agreement: what a validation found, and what can be done with it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge._util.typed import typed
from bridge.errors import InputError
from bridge.report import html, tables
from bridge.report.outcome import FORMAT, Outcome


@dataclass(frozen=True, eq=False, repr=False)
class Agreement(Outcome):
    """The outcome of `bridge.SpikingNetwork.validate`: its data are those of `bridge.report.outcome.Outcome`.

    Example: docs/agreement.md.
    """

    def table(self) -> tables.Tables:
        """Tables, as a notebook, ``rich.print`` and ``print`` show them."""
        return tables.table(self)

    def report(self, path: str | Path) -> None:
        """Write the report, one HTML page, whole or not at all.

        Raises `InputError` if `path` cannot be written, or the agreement lacks what the page shows.
        """
        html.write(self, path)

    @staticmethod
    def load(path: str | Path) -> Agreement:
        """What `save` wrote to `path`. Raises `InputError` if there is no such file, or it holds something else."""
        try:
            saved = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(saved, dict):
                raise InputError(f"{path}: expected the object that Agreement.save writes, got {type(saved).__name__}")
            if saved["format"] != FORMAT:
                raise InputError(f"{path}: written as format {saved['format']}, this version reads {FORMAT}")
            values = {name: value for name, value in saved.items() if name not in ("format", "agreed")}
            values["reference"] = _stored(saved["reference"])
            values["backends"] = {name: _stored(backend) for name, backend in saved["backends"].items()}
            agreement: Agreement = typed(values, Agreement)
            agreement._expect_steps()
        except InputError:
            raise
        except Exception as error:  # a file that somebody changed can hold anything, however deep
            raise InputError(f"{path}: no agreement can be read from it ({type(error).__name__}: {error})") from error
        return agreement


def _stored(backend: dict[str, Any]) -> dict[str, Any]:
    """What is saved of a backend without what follows from it."""
    return {name: value for name, value in backend.items() if name not in ("total_differing", "first", "agreed")}
