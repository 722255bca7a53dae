"""What lava-dl 0.6.0 needs to import, beyond what lava-nc needs (see `exporters.lava.compat`).

``lava.lib.dl.slayer`` imports its subpackage for object detection, which needs OpenCV and torchvision. An empty module
stands in for it meanwhile, so ``slayer.obd`` is empty; ``import lava.lib.dl.slayer.object_detection`` still gets the
real one where those are installed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from exporters.lava import compat

SLAYER = "lava.lib.dl.slayer"
OBJECT_DETECTION = f"{SLAYER}.object_detection"


def apply() -> None:
    """Import Lava's core and SLAYER. Raises `ImportError` if lava-nc, lava-dl or what they need is not installed."""
    compat.apply()
    if SLAYER in sys.modules:
        return
    sys.modules[OBJECT_DETECTION] = ModuleType(OBJECT_DETECTION)
    try:
        importlib.import_module(SLAYER)
    finally:
        del sys.modules[OBJECT_DETECTION]
