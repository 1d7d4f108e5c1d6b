"""Every model that the project adds to Detectron2's, registered.

Importing this module registers the backbones, the heads and the meta-architectures ``MaskFormer``, ``TransformersSegmentor``
and ``HiCL``. Where Detectron2, or another project that is imported too, has an object of the same name, theirs stands;
Mask2Former is also registered as ``HiCLMaskFormer``. DeepLab's heads are the exception: they replace Detectron2's, which they
equal bit for bit on every image that those accept, because Detectron2's refuse images of most sizes.
"""

from hicl_d2.d2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from hicl_d2.d2.projects import original  # Detectron2's projects register theirs first
from hicl_d2.modeling import hicl  # noqa: F401 - registers HiCL
from hicl_d2.modeling.deeplab.head import DeepLabV3Head, DeepLabV3PlusHead
from hicl_d2.modeling.dilated_resnet.backbone import (
    build_dilated_resnet_backbone,
    build_resnet_deeplab_backbone,
)
from hicl_d2.modeling.efficientnet_lite.backbone import build_efficientnet_lite_backbone
from hicl_d2.modeling.hugging_face.backbone import build_transformers_backbone
from hicl_d2.modeling.hugging_face.segmentor import TransformersSegmentor
from hicl_d2.modeling.mask_former.head import MaskFormerHead
from hicl_d2.modeling.mask_former.model import MaskFormer
from hicl_d2.modeling.panoptic_deeplab.head import PanopticDeepLabSemSegHead
from hicl_d2.modeling.panoptic_deeplab.instances import INSTANCE_HEADS, PanopticDeepLabInsEmbedHead
from hicl_d2.modeling.registration import register_if_free, register_over_detectron2
from hicl_d2.modeling.swin.backbone import D2SwinTransformer
from hicl_d2.modeling.timm.backbone import build_timm_backbone

for _backbone in (
    build_dilated_resnet_backbone,
    build_resnet_deeplab_backbone,
    build_transformers_backbone,
    build_timm_backbone,
    build_efficientnet_lite_backbone,
    D2SwinTransformer,
):
    register_if_free(BACKBONE_REGISTRY, _backbone)
for _head in (DeepLabV3Head, DeepLabV3PlusHead, PanopticDeepLabSemSegHead):
    register_over_detectron2(SEM_SEG_HEADS_REGISTRY, _head)
register_if_free(SEM_SEG_HEADS_REGISTRY, MaskFormerHead)
_instance_heads = original(INSTANCE_HEADS, "INS_EMBED_BRANCHES_REGISTRY")
if _instance_heads is not None:
    register_over_detectron2(_instance_heads, PanopticDeepLabInsEmbedHead)
for _name in ("MaskFormer", "HiCLMaskFormer"):
    register_if_free(META_ARCH_REGISTRY, MaskFormer, _name)
register_if_free(META_ARCH_REGISTRY, TransformersSegmentor)
