"""Whether MODEL.EFFICIENTNET_LITE makes a backbone, and what strides its features have."""

from hicl_d2.command.errors import InputError
from hicl_d2.d2.config import CfgNode

# Factors on width and depth of each variant.
SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
FEATURES = ("res2", "res3", "res4", "res5")
STRIDES = (8, 16, 32)
# Norms that the network can have; those in groups do not divide its widths.
BATCH_NORMS = ("BN", "SyncBN", "FrozenBN", "naiveSyncBN", "nnSyncBN")


def check_efficientnet_lite(cfg: CfgNode) -> None:
    """Raise InputError for settings of MODEL.EFFICIENTNET_LITE that make no backbone."""
    settings = cfg.MODEL.EFFICIENTNET_LITE
    keys = (("VARIANT", tuple(SCALES)), ("OUTPUT_STRIDE", STRIDES), ("NORM", (*BATCH_NORMS, "")))
    for key, choices in keys:
        if settings[key] not in choices:
            wanted = ", ".join(str(choice) or "empty" for choice in choices)
            raise InputError(
                f"MODEL.EFFICIENTNET_LITE.{key} is {settings[key]!r}; it must be one of {wanted}"
            )
    wrong = [name for name in settings.OUT_FEATURES if name not in FEATURES]
    if wrong or not settings.OUT_FEATURES:
        asked = f"names {wrong[0]}" if wrong else "is empty"
        raise InputError(
            f"MODEL.EFFICIENTNET_LITE.OUT_FEATURES {asked}; what it can name: {', '.join(FEATURES)}"
        )
    if not 0.0 <= settings.DROP_PATH_RATE < 1.0:
        raise InputError(
            f"MODEL.EFFICIENTNET_LITE.DROP_PATH_RATE is {settings.DROP_PATH_RATE}; it must be from 0 to below 1"
        )


def efficientnet_lite_strides(settings: CfgNode) -> dict[str, int]:
    """Return the stride of each feature that MODEL.EFFICIENTNET_LITE gives out."""
    strides = dict(zip(FEATURES, (4, 8, 16, 32), strict=True))
    return {name: min(strides[name], settings.OUTPUT_STRIDE) for name in settings.OUT_FEATURES}
