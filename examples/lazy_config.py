"""Hi-CL in a LazyConfig of Detectron2, on a model of its own zoo: Panoptic FPN, whose semantic head the branch reads.

With Detectron2's lazyconfig_train_net.py, at the end of a config of your own:

    from detectron2.config import LazyCall as L
    from hicl_d2.modeling.hicl import with_hicl
    model = L(with_hicl)(model=model, feature="sem_seg_head.predictor", logits="sem_seg_head.predictor", num_classes=54,
                         windows=[1, 2, 4, 8])
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.config import instantiate

from hicl_d2.modeling.hicl import with_hicl


def get_model(device: str = "cpu") -> object:
    """Return the model built from Detectron2's own lazy config, with Hi-CL attached."""
    plain = model_zoo.get_config("common/models/panoptic_fpn.py").model
    bottom_up = plain.backbone.bottom_up  # from scratch: frozen norms are for pretrained weights
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    bottom_up.freeze_at = 0
    model = L(with_hicl)(
        model=plain,
        feature="sem_seg_head.predictor",
        logits="sem_seg_head.predictor",
        num_classes=plain.sem_seg_head.num_classes,
        windows=[1, 2, 4, 8],
        warmup_iters=0,
    )
    return instantiate(model).to(device)


if __name__ == "__main__":
    print(get_model().hicl)  # noqa: T201
