"""The official downloads that ``hicl prepare`` converts: the folders that one has, looked at before anything is imported."""

import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hicl_d2.command.cli import Parser, whole
from hicl_d2.command.errors import InputError
from hicl_d2.command.files import expanded
from hicl_d2.command.layout import DATA_ROOT, data_root


class Download(NamedTuple):
    """The folders of a data set's download, below the folder of all data sets, and what is expected there in words."""

    folders: tuple[str, ...]
    expected: str


DOWNLOADS = {
    "ade20k": Download(
        ("ADEChallengeData2016/annotations/training", "ADEChallengeData2016/annotations/validation"),
        "ADEChallengeData2016/annotations/{training,validation}/NAME.png of ADEChallengeData2016.zip below the root",
    ),
    "cityscapes": Download(
        ("cityscapes/gtFine/train", "cityscapes/gtFine/val"),
        "cityscapes/gtFine/{train,val}/CITY/*_gtFine_labelIds.png (or *_gtFine_polygons.json) of gtFine_trainvaltest.zip "
        "below the root",
    ),
    "coco_stuff_10k": Download(
        ("coco/coco_stuff_10k/annotations", "coco/coco_stuff_10k/images", "coco/coco_stuff_10k/imageLists"),
        "coco/coco_stuff_10k/annotations/NAME.mat, coco/coco_stuff_10k/images/NAME.jpg and "
        "coco/coco_stuff_10k/imageLists/{train,test}.txt of cocostuff-10k-v1.1.zip (or v1.0) below the root",
    ),
    "coco_stuff_164k": Download(
        ("coco/stuffthingmaps/train2017", "coco/stuffthingmaps/val2017"),
        "coco/stuffthingmaps/{train,val}2017/NAME.png of stuffthingmaps_trainval2017.zip below the root",
    ),
}


def prepare_arguments(arguments: Sequence[str] | None, prog: str) -> Namespace:
    """Read the command line of ``hicl prepare``; ``args.root`` is the folder of all data sets.

    Raises InputError for a root in which a folder of the download is missing.
    """
    parser = Parser(
        prog=prog,
        description="Turn the official download of a data set into the label maps that the loaders read.",
        epilog="Safe to stop and run again: every file is written whole, and what is there is kept.",
    )
    parser.add_argument("dataset", choices=sorted(DOWNLOADS))
    parser.add_argument(
        "--root",
        type=Path,
        default=None,
        metavar="DIR",
        help="folder of all data sets [$DETECTRON2_DATASETS]",
    )
    parser.add_argument(
        "--workers", type=whole(0), default=os.cpu_count() or 1, metavar="N", help="processes [%(default)s]"
    )
    parser.add_argument("--partial", action="store_true", help="go on with a download that lacks files")
    args = parser.parse_args(arguments)
    args.root = data_root() if args.root is None else expanded(args.root)
    _check_folders(args.dataset, args.root)
    return args


def _check_folders(name: str, root: Path) -> None:
    if not root.is_dir():
        raise InputError(
            f"{root} is no folder; --root (or ${DATA_ROOT}) is the folder of all data sets, by default ./datasets"
        )
    download = DOWNLOADS[name]
    missing = next((folder for folder in download.folders if not (root / folder).is_dir()), None)
    if missing is None:
        return
    above = next((up for up in root.resolve().parents[:3] if (up / missing).is_dir()), None)
    hint = "" if above is None else f"; it is in {above}: --root {above}"
    raise InputError(f"{root / missing}: no such folder; expected {download.expected}{hint}")
