"""An agreement for people to look at: a table in the terminal, a plot. (JSON is `bridge.Agreement.save`.)"""

from bridge.report.table import table

__all__ = ["table"]
