"""The evaluators of Detectron2's models that predict instances: Detectron2's own, and ours for their semantic half."""

import importlib.util
import logging

from hicl_d2.command.errors import InputError, listing
from hicl_d2.d2.config import CfgNode
from hicl_d2.d2.data import MetadataCatalog
from hicl_d2.d2.evaluation import DatasetEvaluator
from hicl_d2.d2.projects import original
from hicl_d2.modeling.settings import gives_semantics

logger = logging.getLogger(__name__)

COCO_TYPES = ("coco", "coco_panoptic_seg")
# Detectron2's evaluator of each other kind of data set (metadata "evaluator_type"); it takes the data set's name.
EVALUATORS = {"lvis": "LVISEvaluator", "pascal_voc": "PascalVOCDetectionEvaluator"}


def check_kind(dataset_name: str) -> str:
    """Return the kind of data set that ``dataset_name`` is. Raises InputError for one without an evaluator of instances."""
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    known = [*COCO_TYPES, *EVALUATORS]
    if kind not in known:
        raise InputError(
            f"the data set {dataset_name} has evaluator_type {kind!r} in its metadata; "
            f"instances are scored for: {listing(known)}"
        )
    return str(kind)


def build_instance_evaluators(cfg: CfgNode, dataset_name: str, folder: str) -> list[DatasetEvaluator]:
    """Return Detectron2's evaluators of instances for ``dataset_name``, which write into ``folder``.

    Panoptic quality is scored where panopticapi is installed. Raises InputError as :func:`check_kind` does.
    """
    kind = check_kind(dataset_name)
    if kind not in COCO_TYPES:
        return [original("evaluation", EVALUATORS[kind])(dataset_name)]
    evaluators = [original("evaluation", "COCOEvaluator")(dataset_name, output_dir=folder)]
    if kind == "coco_panoptic_seg" and gives_semantics(cfg):
        if importlib.util.find_spec("panopticapi") is None:
            logger.warning(f"{dataset_name}: panoptic quality needs panopticapi, which is not installed")
        else:
            evaluators.append(original("evaluation", "COCOPanopticEvaluator")(dataset_name, folder))
    return evaluators
