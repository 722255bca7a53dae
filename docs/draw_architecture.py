"""Draws docs/architecture.svg and the tree in docs/architecture.md from the code: its imports, folders and docstrings.

    python docs/draw_architecture.py

The rows of the picture are the layers that import-linter keeps (pyproject.toml). An arrow goes from a room to one that
it imports; arrows that follow from others are left out.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "architecture.svg"
MARK = "<!-- tree -->"
WIDTH, BOX, HEIGHT, GAP, ROW = 900, 124, 34, 20, 76
SWEEPS = 30
STYLE = """
  text { font: 600 14px sans-serif; fill: #1f2937; }
  rect { fill: #e8ecfb; stroke: #5b6bbf; } .outside { fill: #fdebd3; stroke: #c4802c; }
  path { fill: none; stroke: #8a8fa3; stroke-width: 1.2; }
"""


def purpose(path: Path) -> str:
    """The first sentence of a module's docstring, or of a package's, on one line."""
    source = path / "__init__.py" if path.is_dir() else path
    text = " ".join((ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return text.partition(". ")[0].removesuffix(".")


def layers() -> list[list[str]]:
    """The rooms of bridge from top to bottom, those of one layer side by side, as pyproject.toml has them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (rows,) = (contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    return [row.split(" | ") for row in rows]


def imports() -> dict[str, set[str]]:
    """By room of bridge, and for the exporters together, the rooms that they import; "" is the front door."""
    graph = grimp.build_graph("bridge", "exporters", cache_dir=None)

    def room(module: str) -> str:
        package, _, rest = module.partition(".")
        return package if package == "exporters" else rest.partition(".")[0]

    found: dict[str, set[str]] = {}
    for module in graph.modules:
        for other in graph.find_modules_directly_imported_by(module):
            if room(module) != room(other):
                found.setdefault(room(module), set()).add(room(other))
    return found


def reduced(edges: dict[str, set[str]]) -> list[tuple[str, str]]:
    """The `edges` of a graph without cycles but for those that longer ways make needless."""

    def reached(start: str) -> set[str]:
        return {start}.union(*(reached(other) for other in edges.get(start, ())))

    return [
        (one, other)
        for one, others in sorted(edges.items())
        for other in sorted(others)
        if not any(other in reached(between) for between in others - {other})
    ]


def places(rows: list[list[str]], edges: list[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Where each box is: its row's height, and as near as others allow to the middle of the boxes it is tied to."""
    x = {name: WIDTH * (i + 0.5) / len(row) for row in rows for i, name in enumerate(row)}
    for _ in range(SWEEPS):
        for row in rows:
            for name in row:
                tied = [x[b if a == name else a] for a, b in edges if name in (a, b)]
                x[name] = sum(tied) / len(tied)
            row.sort(key=x.__getitem__)
            for left, right in pairwise(row):
                x[right] = max(x[right], x[left] + BOX + GAP)
            beyond = max(0.0, x[row[-1]] + BOX / 2 + GAP - WIDTH)
            x |= {name: max(x[name] - beyond, BOX / 2 + GAP + i * (BOX + GAP)) for i, name in enumerate(row)}
    return {name: (x[name], at * ROW + GAP) for at, row in enumerate(rows) for name in row}


def picture() -> str:
    """The picture, SVG. The two lowest layers, which all rooms may import, are left out, and so is the front door."""
    rows = [row for row in layers() if row not in (["_util"], ["errors"])]
    next(row for row in rows if "validation" in row).append("exporters")
    shown = {name for row in rows for name in row}
    edges = reduced({one: others & shown for one, others in imports().items() if one in shown})
    at = places(rows, edges)
    arrows, boxes = [], []
    for one, other in edges:
        (x, y), (to_x, to_y) = at[one], at[other]
        y += HEIGHT
        bend = (to_y - y) / 2
        curve = f"M{x:.0f} {y} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y - 4}"
        arrows.append(f'<path marker-end="url(#tip)" d="{curve}"/>')
    for name, (x, y) in at.items():
        kind = ' class="outside"' if name == "exporters" else ""
        boxes.append(f'<rect{kind} x="{x - BOX / 2:.0f}" y="{y}" width="{BOX}" height="{HEIGHT}" rx="6"/>')
        boxes.append(f'<text text-anchor="middle" x="{x:.0f}" y="{y + 22}">{name}</text>')
    body = "\n  ".join([*arrows, *boxes])
    left, right = (end(x for x, _ in at.values()) for end in (min, max))
    view = f"{left - BOX / 2 - GAP:.0f} 0 {right - left + BOX + 2 * GAP:.0f} {len(rows) * ROW}"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" role="img">
  <title>Which room imports which</title>
  <style>{STYLE}  </style>
  <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
    <path d="M0 0 8 4 0 8z" style="fill:#8a8fa3;stroke:none"/></marker></defs>
  {body}
</svg>
"""


def _below(folder: Path) -> Iterator[Path]:
    """Modules and packages in `folder`, packages last, by name."""
    found = [path for path in folder.iterdir() if not path.name.startswith("__") and path.name != "__pycache__"]
    modules = [path for path in found if path.suffix == ".py"]
    yield from sorted(modules)
    yield from sorted(path for path in found if (path / "__init__.py").is_file())


def _lines(folder: Path, depth: int) -> Iterator[str]:
    for path in _below(folder):
        name = f"{path.name}/" if path.is_dir() else path.name
        yield f"{'    ' * depth}* `{name}`: {purpose(path)}"
        if path.is_dir():
            yield from _lines(path, depth + 1)


def tree() -> str:
    """The tree, Markdown: every room and every module in it with what it is for."""
    parts = []
    for package in ("bridge", "exporters"):
        parts += [f"**`{package}/`**: {purpose(ROOT / package)}.", "", *_lines(ROOT / package, 0), ""]
    return "\n".join(parts).rstrip()


def page(text: str) -> str:
    """The page `text` with the tree of today between its two marks."""
    before, _, after = text.split(MARK)
    return f"{before}{MARK}\n\n{tree()}\n\n{MARK}{after}"


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
