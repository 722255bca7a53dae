"""The agreement as a page for the browser: one file, readable anywhere, that asks nothing of the network.

The template beside this file holds everything: tables that Jinja fills in, and a script that draws the rest as plain
SVG and tables from the agreement's own JSON. They are lines, bars, dots and cells; a plotting library would make every
report megabytes larger and draw nothing more.
"""

from __future__ import annotations

import math
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from bridge._util.files import replacing
from bridge.errors import InputError
from bridge.report.outcome import COSTS, PARTS, Outcome

LISTED = 20
"""How many of a backend's divergences the page shows."""


def write(agreement: Outcome, path: str | Path) -> None:
    """Write the page, whole or not at all.

    Its ``<script type="application/json" id="agreement">`` holds `Agreement.to_dict`.

    Raises:
        InputError: `path` cannot be written, or the agreement does not hold what the page shows.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # and layers in their order, not sorted
    source = resources.files("bridge.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    try:
        page = (
            environment.from_string(source)
            .render(
                agreement=agreement,
                data=_finite(agreement.to_dict()),
                parts=PARTS,
                listed=LISTED,
                schedule=agreement.schedule,
                cost_names=COSTS,
            )
            .encode()
        )
    except Exception as error:  # one that was not made by `validate` can lack anything
        raise InputError(
            f"the agreement lacks what the report shows ({type(error).__name__}: {error}); make it with "
            "SpikingNetwork.validate"
        ) from error
    with replacing(path) as file:
        file.write(page)


def _finite(value: Any) -> Any:
    """`value` with None for NaN and infinity, which a broken backend's membranes may hold and JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
