"""Writes the tables of docs/conversion.md from the rules: what has one, what is moved or kept, what is refused.

    python docs/draw_conversion.py

What is between two marks of that page is replaced; the rest of it is written by hand.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from bridge.converters import remedies
from bridge.converters.torch_models import rules
from bridge.converters.torch_models.refusals import PRODUCTS, REMEDIES
from bridge.converters.torch_models.tracer import MOVES, READS_DATA, SAME_VALUES

PAGE = Path(__file__).resolve().parent / "conversion.md"
MOVED = "nothing, or a layer that moves data, where the next layer needs one"
WHATEVER_IT_IS_CALLED = {
    "a map that is made larger": remedies.ENLARGES,
    "a vector that becomes a map": remedies.UNFLATTENS,
    "a map turned, mirrored or with its channels moved, where no layer can take it so": remedies.TURNS,
    "positions mixed where a map is still read": remedies.AS_MATRIX,
    "images of a batch mixed": remedies.MIXES_IMAGES,
    "data written into a tensor that was there": remedies.WRITES,
    "a TorchScript module": remedies.SCRIPTED,
    "any other function that is not affine": remedies.NOT_AFFINE,
}


def _shown(names: Iterable[str]) -> str:
    """Function names without those of aten alone, and without operators that are another function here."""
    known = dict.fromkeys(name if name.endswith("__") else name.rstrip("_") for name in names)
    plain = [name for name in known if not _is_another(name, known)]
    return ", ".join(f"`{name}`" for name in plain)


def _is_another(name: str, known: Collection[str]) -> bool:
    """Whether a reader knows the function of this `name` by one of the other `known` names, or not at all."""
    core = name.strip("_")
    if (core[:1] in ("r", "i") and core[1:] in known) or (core != name and core in known):  # __rmatmul__ beside matmul
        return True
    return name.startswith("_") and not name.startswith("__")


def _says(rule: Callable[..., Any]) -> str:
    """The first sentence of a rule's docstring."""
    text = inspect.getdoc(getattr(rule, "func", rule)) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("``", "`")


def _table(heads: tuple[str, str], rows: Iterable[tuple[str, str]]) -> str:
    lines = [heads, ("---", "---"), *rows]
    return "\n".join(f"| {one} | {other} |" for one, other in lines)


def with_a_rule() -> str:
    """The functions that have a rule, by rule, and those that only move data or keep it."""
    by_rule: dict[Callable[..., Any], list[str]] = {}
    for name, rule in (*rules.FUNCTIONS.items(), *rules.SHORT_CUTS.items()):
        by_rule.setdefault(getattr(rule, "func", rule), []).append(name)
    rows = [(_shown(names), _says(rule)) for rule, names in by_rule.items()]
    rows.append(("`bridge.QCFS`, and what computes the same", _says(rules.activation)))
    rows.append(
        (
            _shown(sorted(MOVES, key=lambda name: (name.lower(), name))),
            "nothing, or a layer that moves data where the next layer needs one",
        )
    )
    rows.append((_shown(sorted(SAME_VALUES)), "nothing: the values stay"))
    return _table(("function, method or operator", "becomes"), rows)


def refused() -> str:
    """What is refused, by reason: functions by their name, and what any function may do."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in REMEDIES.items():
        by_reason.setdefault(reason, []).append(name)
    rows = [(_shown(names), reason) for reason, names in by_reason.items()]
    rows.append((f"{_shown(sorted(PRODUCTS))} of two signals", remedies.PRODUCT))
    rows.append((f"{_shown(sorted(READS_DATA))} and tests on what they return", remedies.DEPENDS_ON_DATA))
    rows += WHATEVER_IT_IS_CALLED.items()
    return _table(("function, or what it does", "why, and what to do"), rows)


TABLES = {"<!-- rules -->": with_a_rule, "<!-- refused -->": refused}


def page(text: str) -> str:
    """The page `text` with the tables of today, each between two of its marks."""
    for mark, table in TABLES.items():
        before, _, after = text.split(mark)
        text = f"{before}{mark}\n\n{table()}\n\n{mark}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
