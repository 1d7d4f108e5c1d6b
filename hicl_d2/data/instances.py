"""Training data of Detectron2's models that need instances (Panoptic FPN, Mask R-CNN): Detectron2's own records and mapper.

A record's label map rides along as "sem_seg", which a semantic head and the branch read.
"""

from typing import Any

from hicl_d2.command.errors import InputError, counted, listing
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.d2.projects import original
from hicl_d2.data.datasets.registry import Records
from hicl_d2.modeling.settings import base_architecture, needs_instances, reads_label_maps


def uses_instances(cfg: CfgNode, records: Records) -> bool:
    """Return whether the model of ``cfg`` needs instances and ``records`` hold some.

    Detectron2's default architecture is such a model; a config that leaves it reads semantic data as ever.
    """
    return needs_instances(cfg) and any("annotations" in record for record in records)


def instance_records(cfg: CfgNode) -> Records:
    """Return the training records as Detectron2 filters them (DATALOADER.FILTER_EMPTY_ANNOTATIONS)."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    records: Records = original("data", "get_detection_dataset_dicts")(
        list(cfg.DATASETS.TRAIN),
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints,
        proposal_files=cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
    )
    return records


def instance_mapper(cfg: CfgNode, is_train: bool) -> Any:
    """Return Detectron2's DatasetMapper for ``cfg``."""
    return original("data", "DatasetMapper")(cfg, is_train)


def check_instances(name: str, records: Records, cfg: CfgNode) -> None:
    """Raise InputError if the training data ``name`` lack what the model of ``cfg`` trains with.

    That is instances in some image, label maps in all of them where a semantic head or the branch reads them, and as many
    classes of things as the model has.
    """
    base = base_architecture(cfg)
    if not any(record.get("annotations") for record in records):
        raise InputError(
            f"the data set {name!r} has no instances (annotations), which {base} trains with; name one that has "
            "(registered with Detectron2's register_coco_instances or register_coco_panoptic_separated)"
        )
    without = [record for record in records if "sem_seg_file_name" not in record]
    if without and reads_label_maps(cfg):
        reader = base if base == "PanopticFPN" else "Hi-CL"
        raise InputError(
            f"the data set {name!r}: no label map (sem_seg_file_name) for {len(without)} of {counted(len(records), 'image')}, "
            f"and {reader} trains with them; the first is {without[0]['file_name']}"
        )
    things = MetadataCatalog.get(name).get("thing_classes") or []
    section = cfg.MODEL.RETINANET if base == "RetinaNet" else cfg.MODEL.ROI_HEADS
    key = "MODEL.RETINANET" if base == "RetinaNet" else "MODEL.ROI_HEADS"
    if base in ("PanopticFPN", "GeneralizedRCNN", "RetinaNet") and len(things) != section.NUM_CLASSES:
        raise InputError(
            f"the data set {name!r} has {counted(len(things), 'class', 'classes')} of things, but {key}.NUM_CLASSES is "
            f"{section.NUM_CLASSES}; "
            f"set {key}.NUM_CLASSES to {len(things)}"
        )


def check_panoptic(name: str, records: Records) -> None:
    """Raise InputError if the training data ``name`` lack what Detectron2's mapper of Panoptic-DeepLab reads."""
    metadata = MetadataCatalog.get(name)
    of_records, of_metadata = (
        ("pan_seg_file_name", "segments_info"),
        ("thing_dataset_id_to_contiguous_id", "ignore_label"),
    )
    lacks = [key for key in of_records if not all(key in record for record in records)]
    lacks += [key for key in of_metadata if metadata.get(key) is None]
    if lacks:
        raise InputError(
            f"the data set {name!r} has no {listing(lacks)}, which PanopticDeepLab trains with; name one with panoptic labels "
            "(cityscapes_fine_panoptic_train), or train the semantic half alone (META_ARCHITECTURE, or HICL.BASE: "
            "SemanticSegmentor)"
        )
