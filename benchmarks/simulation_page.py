"""The results of benchmarks/simulation.py as a page, Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from contenders import ANN, CONTENDERS, FLOAT32, INT8, MEMORY_BATCH, VIA_BACKEND


def short(value: float) -> str:
    """`value` to three digits, and all before the point."""
    decimals = 0 if value <= 0 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def speed_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """Images a second, a row a contender, a column a T, of cases with the same batch."""
    cases = sorted(cases, key=lambda case: case["steps"])
    rows = []
    for name in CONTENDERS:
        if any(name in case["seconds"] or name in case["left_out"] for case in cases):
            rows.append([name, *(_speed_cell(case["images_per_second"].get(name)) for case in cases)])
    return grid(["images/s", *(f"T = {case['steps']}" for case in cases)], rows)


def _speed_cell(figures: Mapping[str, float] | None) -> str:
    if figures is None:
        return "—"
    return f"{short(figures['median'])} ({short(figures['low'])}–{short(figures['high'])})"


def ratio_table(cases: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many times as fast the engine is as each other, int8 and float32, of cases with the same batch."""
    cases = sorted(cases, key=lambda case: case["steps"])
    rows = []
    for name in CONTENDERS:
        if any(name in found for case in cases for found in case["ratios"].values()):
            rows.append([name, *(_ratio_cell(case, engine, name) for case in cases for engine in (INT8, FLOAT32))])
    head = ["faster than", *(f"T = {case['steps']}, {kind}" for case in cases for kind in ("int8", "float32"))]
    return grid(head, rows)


def _ratio_cell(case: Mapping[str, Any], engine: str, other: str) -> str:
    if engine == other:
        return ""
    ratio = case["ratios"].get(engine, {}).get(other)
    return "—" if ratio is None else f"{short(ratio)} ×"


def memory_table(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """MiB of one run of `MEMORY_BATCH` images, a row a contender, a column a T."""
    steps = sorted({int(step) for row in figures.values() for step in row})
    rows = [
        [name, *(short(row[str(step)]) if str(step) in row else "—" for step in steps)] for name, row in figures.items()
    ]
    return grid(["MiB", *(f"T = {step}" for step in steps)], rows)


def conversion_table(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Seconds by network and by what is done."""
    measured = {key: row for key, row in results.items() if row.get("conversion_seconds")}
    jobs = dict.fromkeys(job for row in measured.values() for job in row["conversion_seconds"])
    rows = []
    for row in measured.values():
        times = row["conversion_seconds"]
        cells = [
            f"{short(statistics.median(times[job]))} ({short(min(times[job]))}–{short(max(times[job]))})"
            if job in times
            else "—"
            for job in jobs
        ]
        rows.append([row["title"], *cells])
    return grid(["seconds", *jobs], rows)


def page(results: Mapping[str, Any]) -> str:
    """All results as Markdown."""
    facts, settings = results["machine"], results["settings"]
    versions = ", ".join(f"{package} {version}" for package, version in facts["versions"].items())
    lines = [
        "Made by `benchmarks/simulation.py`: random weights, float32 and 8-bit whole numbers. Median and lowest to",
        f"highest of {settings['rounds']} rounds, in each of which all were timed in turn. {facts['date']}, "
        f"{facts['threads']} threads,",
        f"{facts['cpu capability']}, int8 operators {'used' if facts['int8 operators'] else 'missing'}, numba "
        f"{'used' if facts['numba'] else 'missing'}. {versions}.",
        "",
    ]
    for row in results["networks"].values():
        lines += [f"## {row['title']}", "", check_line(row), ""]
        for batch in sorted({case["batch"] for case in row["cases"]}):
            cases = [case for case in row["cases"] if case["batch"] == batch]
            plural = "image" if batch == 1 else "images"
            lines += [f"### {batch} {plural} at a time", "", *speed_table(cases), ""]
            lines += ["How many times as fast the engine is, in int8 and in float32:", "", *ratio_table(cases), ""]
        if row.get("memory_mib"):
            lines += [f"### Peak memory of one run of {MEMORY_BATCH} images", "", *memory_table(row["memory_mib"]), ""]
    if any(row.get("conversion_seconds") for row in results["networks"].values()):
        lines += ["## Conversion", "", *conversion_table(results["networks"]), ""]
    return "\n".join([*lines, *footnotes(results)]) + "\n"


def check_line(row: Mapping[str, Any]) -> str:
    """What was compared before anything was timed."""
    done = row["check"]
    ties = ""
    if done["of these by themselves"]:
        ties = (
            f", which follow from {done['of these by themselves']} at most "
            f"{done['largest distance from the level']:.1g} from the level"
        )
    return (
        f"{row['parameters'] / 1e6:.2f} M weights, {row['neurons']:,} neurons, mean rate {done['mean rate']:.3f}. Of "
        f"{done['spikes compared']:,} spikes and silences, {done['int8 spikes that differ']:,} differ from the "
        f"reference's in int8 and {done['float spikes that differ']:,} in float32{ties}."
    )


def footnotes(results: Mapping[str, Any]) -> list[str]:
    """What the marks mean, and who is not there."""
    rows = results["networks"].values()
    taking_part = {name for row in rows for case in row["cases"] for name in case["seconds"]}
    lines = []
    if any(case["left_out"] for row in rows for case in row["cases"]):
        lines.append(
            f"- —: left out, since one run takes, or would take, more than {results['settings']['limit']:g} s."
        )
    for name in VIA_BACKEND:
        if name in taking_part:
            lines.append(f"- {name} runs through its backend's `run`, which records every spike.")
    if ANN in taking_part:
        lines.append(f"- {ANN}: T times the time of one pass of the torch model.")
    skipped = {name: reason for row in rows for name, reason in row["skipped"].items() if name not in taking_part}
    skipped |= results["missing"]
    lines += [f"- {name} is not in the tables: {reason}." for name, reason in skipped.items()]
    if any(row.get("memory_mib") for row in rows):
        lines.append(
            "- Memory: beyond what the process held after a first run of one image, so without weights and programs."
        )
    if any(row.get("conversion_seconds") for row in rows):
        lines.append("- ann2snn (SpikingJelly) takes no QCFS: it converts the same network with ReLU in its place.")
    return lines
