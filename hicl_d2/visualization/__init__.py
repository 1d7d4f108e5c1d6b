"""Pictures of label maps: colours, overlays, and image, truth and prediction side by side. PIL only."""

from hicl_d2.visualization.colours import overlay, paint, palette
from hicl_d2.visualization.pictures import draw_pictures
from hicl_d2.visualization.sheet import side_by_side

__all__ = ["draw_pictures", "overlay", "paint", "palette", "side_by_side"]
