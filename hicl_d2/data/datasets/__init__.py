"""The data sets that the project knows by name. Registering reads nothing; files are listed on use."""

from hicl_d2.data.datasets.ade20k import register_ade20k
from hicl_d2.data.datasets.camvid import register_camvid
from hicl_d2.data.datasets.cityscapes import register_cityscapes
from hicl_d2.data.datasets.coco_stuff import register_coco_stuff
from hicl_d2.data.datasets.parts import register_parts


def register_all() -> None:
    """Register every data set of the project; calling it again changes nothing."""
    register_camvid()
    register_cityscapes()
    register_ade20k()
    register_coco_stuff()
    register_parts()


__all__ = ["register_all"]
