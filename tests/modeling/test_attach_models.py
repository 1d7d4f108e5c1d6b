"""Real models: attach, the meta-architecture HiCL and a contrast called by hand have one loss and one gradient."""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
import transformers as T
from torch import Tensor, nn

import hicl_d2.modeling  # noqa: F401 - registers HiCL
from hicl_d2.config import get_hicl_cfg
from hicl_d2.contrast import Contrast, attach
from hicl_d2.d2.modeling import META_ARCH_REGISTRY, build_model

CLASSES = 5
SEED = 3
SETTINGS: dict[str, Any] = {
    "windows": [1, 2], "anchors": 64, "components": 64, "dim": 8, "hidden_dim": 8
}  # fmt: skip
WIDTHS: dict[str, Any] = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]


def segformer(**settings: Any) -> nn.Module:
    return T.SegformerForSemanticSegmentation(
        T.SegformerConfig(
            **WIDTHS, **settings, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16, num_labels=CLASSES
        )
    )


def upernet() -> nn.Module:
    backbone = T.ConvNextConfig(**WIDTHS, out_features=STAGES)
    return T.UperNetForSemanticSegmentation(
        T.UperNetConfig(
            backbone_config=backbone,
            hidden_size=16,
            num_labels=CLASSES,
            pool_scales=[1, 2],
            auxiliary_in_channels=24,
            auxiliary_channels=8,
        )
    )


def dpt() -> nn.Module:
    return T.DPTForSemanticSegmentation(
        T.DPTConfig(
            hidden_size=16,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=64,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 8, 8, 8],
            fusion_hidden_size=16,
            num_labels=CLASSES,
        )
    )


def mask2former() -> nn.Module:
    backbone = T.SwinConfig(
        image_size=64,
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        window_size=4,
        out_features=STAGES,
    )
    return T.Mask2FormerForUniversalSegmentation(
        T.Mask2FormerConfig(
            backbone_config=backbone,
            feature_size=32,
            mask_feature_size=32,
            hidden_dim=32,
            encoder_feedforward_dim=16,
            dim_feedforward=16,
            encoder_layers=1,
            decoder_layers=2,
            num_attention_heads=2,
            num_queries=6,
            num_labels=CLASSES,
        )
    )


class Case(NamedTuple):
    """A model, and where in it a contrast reads."""

    build: Callable[[], nn.Module]
    feature: str
    side: str
    logits: str | None


CASES = {
    "SegFormer": Case(segformer, "decode_head.classifier", "input", "decode_head.classifier"),
    "UPerNet": Case(upernet, "decode_head.classifier", "input", "decode_head.classifier"),
    "DPT": Case(dpt, "head.head.4", "input", "head.head.4"),
    "Mask2Former": Case(mask2former, "model.pixel_level_module.decoder.mask_projection", "output", None),
}


class Adapter(nn.Module):
    """A model of transformers as a meta-architecture."""

    def __init__(self, cfg: Any) -> None:
        super().__init__()
        self.backbone = nn.Identity()
        torch.manual_seed(1)
        self.net = CASES[cfg.MODEL.WEIGHTS].build()

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        output = self.net(pixel_values=self.backbone(torch.stack([x["image"] for x in batched_inputs])))
        return {"loss_sem_seg": next(iter(output.values())).float().mean()}


@pytest.fixture
def registered() -> Iterator[None]:
    META_ARCH_REGISTRY.register(Adapter)
    yield
    META_ARCH_REGISTRY._obj_map.pop("Adapter")


def make_batch(size: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randint(CLASSES, (2, size // 8, size // 8), generator=generator)
    labels = patches.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :3] = 255
    return torch.randn(2, 3, size, size, generator=generator), labels


def with_meta_architecture(name: str) -> nn.Module:
    case, cfg = CASES[name], get_hicl_cfg()
    cfg.SEED, cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = SEED, "cpu", name
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "HiCL", CLASSES
    hicl = cfg.MODEL.HICL
    hicl.BASE, hicl.WARMUP_ITERS = "Adapter", 0
    hicl.FEATURE, hicl.FEATURE_SIDE = f"net.{case.feature}", case.side
    hicl.LOGITS = f"net.{case.logits}" if case.logits else ""
    for key, value in SETTINGS.items():
        hicl[key.upper()] = value
    return build_model(cfg).train()


def attach_to(net: nn.Module, case: Case, **settings: Any) -> Contrast:
    options = {"feature": case.feature, "side": case.side, "logits": case.logits, "num_classes": CLASSES}
    return attach(net, **{**options, "seed": SEED, **SETTINGS, **settings})


def run(net: nn.Module, images: Tensor) -> Any:
    """Call ``net`` with the dropout that every call here has."""
    torch.manual_seed(5)
    return net(images)


def by_hand(net: nn.Module, case: Case, contrast: Contrast, images: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of ``contrast`` on what hooks of the test's own see."""
    seen: dict[str, Any] = {}
    module = net.get_submodule(case.feature)
    handle = module.register_forward_hook(
        lambda module, args, output: seen.update(input=args[0], output=output)
    )
    run(net, images)
    handle.remove()
    logits = seen["output"] if case.logits else None
    return 0.1 * contrast(seen[case.side], labels, logits, seed=SEED * 1_000_003 * 4096).loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {
        name: p.grad
        for name, p in module.named_parameters()
        if p.grad is not None and not name.startswith("hicl.")
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-8, msg=name)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("registered")
def test_attached_by_config_attached_by_name_and_called_by_hand_are_one(name: str) -> None:
    case, (images, labels) = CASES[name], make_batch()
    configured = with_meta_architecture(name)
    net, plain = copy.deepcopy(configured.net), copy.deepcopy(configured.net)
    branch = attach_to(net, case)
    contrast = copy.deepcopy(branch)
    expected = by_hand(plain, case, contrast, images, labels)
    expected.backward()
    run(net, images)
    loss = branch.loss(labels)
    loss.backward()
    batch = [{"image": image, "sem_seg": label} for image, label in zip(images, labels, strict=True)]
    found = run(configured, batch)["loss_hicl"]
    found.backward()
    assert loss > 0
    assert torch.equal(loss, expected)
    assert torch.equal(found, expected)
    assert gradients(plain)
    assert_same(gradients(net), gradients(plain))
    assert_same(gradients(configured.net), gradients(plain))
    assert_same(gradients(branch), gradients(contrast))
    assert_same(gradients(configured.hicl), gradients(contrast))


@pytest.mark.parametrize("inside", [False, True])
def test_transformers_own_gradient_checkpointing_changes_nothing(inside: bool) -> None:
    """Inside: of a layer that is recomputed, whose tokens are read."""
    case, (images, labels) = CASES["SegFormer"], make_batch()
    torch.manual_seed(1)
    net = segformer(hidden_dropout_prob=0.0, classifier_dropout_prob=0.0, drop_path_rate=0.0).train()
    last = [name for name, m in net.named_modules() if ".mlp." in name and isinstance(m, nn.Linear)][-1]
    place = {"feature": last, "side": "output", "logits": None, "grid": (2, 2)} if inside else {}
    results, calls = [], []
    for checkpointed in (False, True):
        twin = copy.deepcopy(net)
        if checkpointed:
            twin.gradient_checkpointing_enable()
        branch = attach_to(twin, case, **place)
        twin.get_submodule(last).register_forward_pre_hook(lambda *_: calls.append(1))
        logits = F.interpolate(twin(images).logits, size=labels.shape[1:], mode="bilinear")
        (F.cross_entropy(logits, labels, ignore_index=255) + branch.loss(labels)).backward()
        results.append(gradients(twin) | gradients(branch))
        assert branch.attachment.taps["feature"].value is None
    assert len(calls) == 3  # once, and twice where it is recomputed
    assert_same(results[1], results[0])


def test_a_module_that_mask2former_calls_once_a_layer_is_refused() -> None:
    case, (images, labels) = CASES["Mask2Former"], make_batch()
    net = case.build().train()
    branch = attach_to(net, case, logits="class_predictor", to_logits=nn.Identity())
    net(images)
    with pytest.raises(RuntimeError, match=r"class_predictor was called \d+ times in one forward"):
        branch.loss(labels)


class WithPredictions(nn.Module):
    """Mask2Former with a module that its predictions pass."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mask2former()
        self.predictions = nn.Identity()

    def forward(self, images: Tensor) -> Any:
        return self.predictions(self.net(pixel_values=images))


def semantic_scores(output: Any) -> Tensor:
    """Return class scores (B, K, h, w) of a Mask2Former's queries."""
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    return torch.einsum("bqk,bqhw->bkhw", classes, output.masks_queries_logits.sigmoid())


def test_scores_of_queries_are_read_by_a_conversion() -> None:
    images, labels = make_batch()
    torch.manual_seed(1)
    model = WithPredictions().train()
    branch = attach(
        model,
        feature="net.model.pixel_level_module.decoder.mask_projection",
        side="output",
        logits="predictions",
        to_logits=semantic_scores,
        num_classes=CLASSES,
        confidence_low=(0.4,),
        **SETTINGS,
    )
    seen = {}
    model.net.model.pixel_level_module.decoder.mask_projection.register_forward_hook(
        lambda module, args, output: seen.update(features=output)
    )
    output = model(images)
    loss = branch.loss(labels)
    assert torch.equal(loss, 0.1 * branch(seen["features"], labels, semantic_scores(output), seed=0).loss)
    assert loss != 0.1 * branch(seen["features"], labels, seed=0).loss


class UNet(nn.Module):
    """A U-Net of two levels whose last features are at stride 1."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(self.block(*pair) for pair in ((3, 8), (8, 16), (16, 24)))
        self.up = nn.ModuleList(self.block(*pair) for pair in ((24 + 16, 16), (16 + 8, 8)))
        self.head = nn.Conv2d(8, CLASSES, 1)

    @staticmethod
    def block(channels: int, out: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        fine = self.down[0](images)
        middle = self.down[1](F.max_pool2d(fine, 2))
        coarse = self.down[2](F.max_pool2d(middle, 2))
        x = self.up[0](torch.cat([F.interpolate(coarse, scale_factor=2), middle], 1))
        return self.head(self.up[1](torch.cat([F.interpolate(x, scale_factor=2), fine], 1)))


@pytest.mark.parametrize(("side", "windows"), [("input", (4, 8, 16, 32)), ("coarse", (1, 2, 4, 8))])
def test_a_unet_at_stride_1_has_windows_of_the_same_image_pixels(side: str, windows: tuple[int, ...]) -> None:
    images, labels = make_batch()
    torch.manual_seed(1)
    net = UNet()
    plain = copy.deepcopy(net)
    at = Case(UNet, "head", "input", "head") if side == "input" else Case(UNet, "down.2", "output", None)
    branch = attach_to(net, at, windows="auto", example=images)
    assert tuple(level.window for level in branch.levels) == windows
    contrast = copy.deepcopy(branch)
    expected = by_hand(plain, at, contrast, images, labels)
    expected.backward()
    run(net, images)
    loss = branch.loss(labels)
    loss.backward()
    assert torch.equal(loss, expected)
    assert_same(gradients(net), gradients(plain))


def torchvision_deeplab() -> Case:
    models = pytest.importorskip("torchvision.models.segmentation")
    build = models.deeplabv3_resnet50
    return Case(
        lambda: build(weights=None, weights_backbone=None, num_classes=CLASSES),
        "classifier.4",
        "input",
        "classifier.4",
    )


def smp_unet() -> Case:
    smp = pytest.importorskip("segmentation_models_pytorch")
    return Case(
        lambda: smp.Unet("resnet18", encoder_weights=None, classes=CLASSES),
        "segmentation_head.0",
        "input",
        "segmentation_head.0",
    )


@pytest.mark.slow
@pytest.mark.parametrize("make", [torchvision_deeplab, smp_unet])
def test_models_of_other_libraries_attach_where_they_are_installed(make: Callable[[], Case]) -> None:
    case, (images, labels) = make(), make_batch()
    torch.manual_seed(1)
    net = case.build().train()
    plain = copy.deepcopy(net)
    branch = attach_to(net, case, windows="auto", example=images)
    contrast = copy.deepcopy(branch)
    expected = by_hand(plain, case, contrast, images, labels)
    expected.backward()
    run(net, images)
    loss = branch.loss(labels)
    loss.backward()
    assert loss > 0
    assert torch.equal(loss, expected)
    assert_same(gradients(net), gradients(plain))
