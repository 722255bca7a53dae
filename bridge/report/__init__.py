"""An agreement for people to look at: tables in the terminal, a plot, an HTML page."""

from typing import TYPE_CHECKING

from bridge._util.lazy import lazily

if TYPE_CHECKING:
    from bridge.report import html, plot
    from bridge.report.tables import table

__all__ = ["html", "plot", "table"]

__getattr__, __dir__ = lazily(__name__, {"bridge.report.tables": ("table",)})
