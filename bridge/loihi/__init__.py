"""What an integer network asks of Intel's Loihi: cores, memory, operations, energy."""

from typing import TYPE_CHECKING

from bridge._util.lazy import lazily

if TYPE_CHECKING:
    from bridge.loihi.costs import LoihiReport, report
    from bridge.loihi.tables import side_by_side, table

__all__ = ["LoihiReport", "report", "side_by_side", "table"]

__getattr__, __dir__ = lazily(
    __name__, {"bridge.loihi.costs": ("LoihiReport", "report"), "bridge.loihi.tables": ("side_by_side", "table")}
)
