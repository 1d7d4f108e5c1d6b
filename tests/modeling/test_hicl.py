"""The HiCL meta-architecture keeps its promises: same keys, same base, silent at inference, a gradient for every parameter."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg
from hicl_d2.contrast.grid import align_labels
from hicl_d2.d2.checkpoint import DetectionCheckpointer
from hicl_d2.d2.modeling import META_ARCH_REGISTRY, build_model
from hicl_d2.d2.utils import EventStorage
from hicl_d2.modeling import hicl as hicl_module
from hicl_d2.modeling.hicl import upload_labels


def make_cfg(meta_architecture="HiCL", **hicl):
    cfg = get_hicl_cfg()
    cfg.SEED = 3
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.BACKBONE.NAME = "build_dilated_resnet_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 32
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res5"]
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME = "DeepLabV3PlusHead"
    head.IN_FEATURES = ["res2", "res5"]
    head.NUM_CLASSES = 4
    head.ASPP_CHANNELS = head.CONVS_DIM = 32
    head.NORM = "BN"
    head.LOSS_TYPE = "cross_entropy"
    cfg.INPUT.CROP.ENABLED = False
    cfg.MODEL.HICL.WINDOWS = [1, 2, 4]
    cfg.MODEL.HICL.ANCHORS = 64
    cfg.MODEL.HICL.COMPONENTS = 64
    cfg.MODEL.HICL.DIM = cfg.MODEL.HICL.HIDDEN_DIM = 16
    cfg.MODEL.HICL.WARMUP_ITERS = 0
    for key, value in hicl.items():
        setattr(cfg.MODEL.HICL, key, value)
    return cfg


def make_model(*args, seed=7, **hicl):
    torch.manual_seed(seed)
    return build_model(make_cfg(*args, **hicl))


def make_batch(sizes=((64, 64), (64, 64)), seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for height, width in sizes:
        blocks = torch.randint(0, 4, (height // 16 + 1, width // 16 + 1), generator=generator)
        label = blocks.repeat_interleave(16, 0).repeat_interleave(16, 1)[:height, :width].clone()
        label[:3] = 255
        image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": label, "height": height, "width": width})
    return batch


def seeded(model, *args, **kwargs):
    """Call a model with the dropout that every call here has."""
    torch.manual_seed(0)
    return model(*args, **kwargs)


@pytest.fixture(scope="module")
def batch():
    return make_batch()


def test_checkpoint_keys_of_the_base_are_unchanged():
    base, model = make_model("SemanticSegmentor"), make_model()
    keys = set(model.state_dict())
    assert set(base.state_dict()) == {key for key in keys if not key.startswith("hicl.")}
    assert any(key.startswith("hicl.") for key in keys)


def test_the_model_keeps_its_class_and_becomes_the_base_again_when_detached(batch):
    base, model = make_model("SemanticSegmentor"), make_model()
    assert type(model) is type(base)
    assert type(copy.deepcopy(model)) is type(base)
    assert model.hicl.detach() is model
    assert list(model.state_dict()) == list(base.state_dict())
    for training in (True, False):
        losses = [seeded(each.train(training), batch) for each in (base, model)]
        values = [each if training else each[0] for each in losses]
        assert values[0].keys() == values[1].keys()
        assert all(torch.equal(values[0][key], values[1][key]) for key in values[0] if key != "panoptic_seg")


def test_the_base_has_the_same_parameters_and_random_state_with_and_without_the_branch():
    base = make_model("SemanticSegmentor")
    state = torch.get_rng_state()
    model = make_model()
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in base.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


def test_switched_off_it_is_the_base_with_the_same_losses_and_random_state(batch):
    base, off = make_model("SemanticSegmentor"), make_model(ENABLED=False)
    assert type(off) is type(base)
    losses = []
    for model in (base, off):
        torch.manual_seed(1)
        losses.append((model(batch), torch.get_rng_state()))
    assert losses[0][0].keys() == losses[1][0].keys()
    assert all(torch.equal(losses[0][0][key], losses[1][0][key]) for key in losses[0][0])
    assert torch.equal(losses[0][1], losses[1][1])


def test_the_branch_leaves_the_other_losses_and_the_random_state_alone(batch):
    results = []
    for model in (make_model("SemanticSegmentor"), make_model()):
        torch.manual_seed(1)
        results.append((model(batch), torch.get_rng_state()))
    (plain, plain_state), (losses, state) = results
    assert torch.equal(plain["loss_sem_seg"], losses["loss_sem_seg"])
    assert torch.equal(plain_state, state)
    assert losses["loss_hicl"] > 0


def test_inference_is_bit_identical_and_captures_nothing(batch):
    base, model = make_model("SemanticSegmentor").eval(), make_model().eval()
    with torch.no_grad():
        for expected, found in zip(base(batch), model(batch), strict=True):
            assert torch.equal(expected["sem_seg"], found["sem_seg"])
    assert all(tap.value is None for tap in model.hicl.attachment.taps.values())


def test_checkpoints_load_both_ways(tmp_path):
    base, model = make_model("SemanticSegmentor", seed=1), make_model(seed=2)
    DetectionCheckpointer(base, str(tmp_path)).save("base")
    DetectionCheckpointer(model, str(tmp_path)).save("hicl")
    trained = {key: value.clone() for key, value in model.state_dict().items()}

    DetectionCheckpointer(model).load(str(tmp_path / "base.pth"))
    for key, value in base.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key

    DetectionCheckpointer(base).load(str(tmp_path / "hicl.pth"))
    for key, value in base.state_dict().items():
        assert torch.equal(trained[key], value), key


def test_a_checkpoint_from_before_the_step_count_loads_without_complaint(tmp_path, caplog):
    model, again = make_model(seed=2), make_model(seed=3)
    old = {key: value for key, value in model.state_dict().items() if key != "hicl.steps"}
    torch.save({"model": old}, tmp_path / "old.pth")
    with caplog.at_level("INFO"):
        DetectionCheckpointer(again).load(str(tmp_path / "old.pth"))
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in old.items())
    assert "steps" not in caplog.text
    assert not again.load_state_dict(old, strict=True).missing_keys


def test_training_mode_without_gradients_gives_the_same_losses(batch):
    """As where batch statistics are computed anew."""
    model, twin = make_model(), make_model()
    expected = seeded(model, batch)
    with torch.no_grad():
        found = seeded(twin, batch)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_labels_and_images_may_be_passed_by_keyword(batch):
    model, twin = make_model(), make_model()
    found, expected = seeded(model, batched_inputs=batch), seeded(twin, batch)
    assert torch.equal(found["loss_hicl"], expected["loss_hicl"])


@pytest.mark.parametrize("iteration", [0, 5])
def test_every_parameter_gets_a_gradient_also_while_the_ramp_is_zero(batch, iteration):
    model = make_model(START_ITER=5, WARMUP_ITERS=2)
    with EventStorage(iteration):
        sum(model(batch).values()).backward()
    missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []


def test_before_its_start_the_branch_adds_zero_whatever_the_features_are(batch):
    model = make_model(START_ITER=5).train()
    spoilt = [{**entry, "image": torch.full_like(entry["image"].float(), float("inf"))} for entry in batch]
    with EventStorage(0):
        assert float(model(spoilt)["loss_hicl"].detach()) == 0


def test_the_loss_follows_the_ramp(batch):
    model = make_model(START_ITER=2, WARMUP_ITERS=4, WEIGHT=0.5).train()
    values = []
    for iteration in (1, 4, 6, 100):
        with EventStorage(iteration):
            torch.manual_seed(0)
            values.append(float(model(batch)["loss_hicl"]))
    full = make_model(WEIGHT=0.5)
    torch.manual_seed(0)
    assert values[0] == 0
    assert 0 < values[1] < values[2]
    assert values[2] == pytest.approx(float(full(batch)["loss_hicl"]), rel=0.2)


def test_labels_are_padded_like_the_images():
    model = make_model()
    losses = model(make_batch(((64, 48), (48, 64))))
    assert torch.isfinite(losses["loss_hicl"])


def test_labels_travel_in_a_quarter_of_their_size_and_mean_the_same():
    labels = torch.tensor([[0, 3, 255, 65535], [1, 2, -1, 40000]])
    assert upload_labels(labels, labels.device) is labels
    assert upload_labels(labels, torch.device("meta")).dtype == torch.int16
    long, short = (
        align_labels(each[None], (1, 2), num_classes=4, ignore_value=255).planes
        for each in (labels, labels.to(torch.int16))
    )
    assert torch.equal(long.clamp(max=4), short.clamp(max=4))
    assert int((long < 4).sum()) == 4


@pytest.mark.parametrize("ignore_value", [255, 65535])
def test_labels_are_uploaded_before_the_model_starts_and_padded_after(ignore_value, monkeypatch):
    events = []

    def upload(labels, device):
        events.append("upload")
        return labels.to(torch.int16)

    monkeypatch.setattr(hicl_module, "upload_labels", upload)
    cfg = make_cfg()
    cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = ignore_value
    model = build_model(cfg)
    model.backbone.register_forward_pre_hook(lambda *given: events.append("model"))
    batch = make_batch(((64, 48), (48, 64)))
    for entry in batch:
        entry["sem_seg"][entry["sem_seg"] == 255] = ignore_value
    torch.manual_seed(0)
    found = model(batch)["loss_hicl"]
    assert events == ["upload", "upload", "model"]
    monkeypatch.undo()
    torch.manual_seed(0)
    assert torch.equal(found, model(batch)["loss_hicl"])


def test_diagnostics_go_to_the_event_storage_and_not_into_the_losses(batch):
    model = make_model(LOG_PERIOD=1)
    with EventStorage(0) as storage:
        losses = model(batch)
        names = set(storage.latest())
    assert set(losses) == {"loss_sem_seg", "loss_hicl"}
    assert {"hicl/loss", "hicl/w1/kept", "hicl/w4/kept"} <= names


@pytest.mark.parametrize("key", ["FEATURE", "LOGITS", "IMAGE"])
def test_an_unknown_module_is_one_line_with_the_candidates(key):
    with pytest.raises(
        InputError, match=rf"MODEL.HICL.{key}.*predicto.*did you mean sem_seg_head.predictor.*candidates"
    ):
        make_model(**{key: "sem_seg_head.predicto"})


def test_a_module_that_is_not_called_is_an_error_in_training(batch):
    @META_ARCH_REGISTRY.register()
    class Unused(nn.Module):
        def __init__(self, cfg):
            super().__init__()
            self.backbone = nn.Conv2d(3, 8, 4, 4)
            self.other = nn.Conv2d(8, 4, 1)

        def forward(self, batched_inputs):
            return {"loss": self.backbone(torch.stack([x["image"] for x in batched_inputs]).float()).sum()}

    try:
        model = make_model(BASE="Unused", FEATURE="other", LOGITS="")
        with pytest.raises(RuntimeError, match="other was not called in this training step"):
            model(batch)
    finally:
        META_ARCH_REGISTRY._obj_map.pop("Unused")


def test_missing_labels_are_named(batch):
    unlabeled = [{"image": batch[0]["image"], "sem_seg": batch[0]["sem_seg"]}, {"image": batch[1]["image"]}]
    model = make_model()
    with pytest.raises((InputError, KeyError)):
        model(unlabeled)


def test_a_deep_copy_works_on_its_own(batch):
    model = make_model()
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    taps, twins = model.hicl.attachment.taps, twin.hicl.attachment.taps
    assert all(twins[role] is not tap for role, tap in taps.items())
    torch.manual_seed(0)
    expected = model(batch)["loss_hicl"]
    torch.manual_seed(0)
    assert torch.equal(twin(batch)["loss_hicl"], expected)
    assert all(tap.value is None for tap in (*taps.values(), *twins.values()))


def test_it_can_be_pickled(batch):
    model = make_model()
    twin = pickle.loads(pickle.dumps(model))
    torch.manual_seed(0)
    expected = model(batch)["loss_hicl"]
    torch.manual_seed(0)
    assert torch.equal(twin(batch)["loss_hicl"], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_branch_computes_in_float32_under_autocast(batch, dtype):
    model = make_model()
    with torch.autocast("cpu", dtype=dtype):
        losses = model(batch)
    assert losses["loss_hicl"].dtype == torch.float32
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.hicl.parameters())


def test_hicl_of_hicl_is_refused():
    with pytest.raises(InputError, match="BASE"):
        make_model(BASE="HiCL")
