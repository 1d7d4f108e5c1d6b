"""What a training run and the harness that starts it agree on: names, formats, places."""

import os
from pathlib import Path

from hicl_d2.command.files import expanded

# A finished run's result, and the version of its format.
RESULT = "result.json"
RESULT_SCHEMA = 1
# What a run is and where it began.
MANIFEST = "manifest.json"
# Config keys that say where a run happens and is followed, and not what it computes.
PLACE_KEYS = ("OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS", "TRACKING.WRITERS", "TRACKING.PROJECT")
DATA_ROOT = "DETECTRON2_DATASETS"


def data_root() -> Path:
    """Return the folder that holds the data sets: $DETECTRON2_DATASETS, or ``datasets`` as in Detectron2."""
    return expanded(os.environ.get(DATA_ROOT) or "datasets")
