"""What a whole-number network asks of Intel's Loihi."""

from bridge.loihi.costs import LoihiReport, report
from bridge.loihi.table import table

__all__ = ["LoihiReport", "report", "table"]
