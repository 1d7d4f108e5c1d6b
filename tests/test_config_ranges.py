"""Numbers of a config that no run could use are refused with their key, whichever key it is."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.config_ranges import check_ranges


def _keys(cfg: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in cfg.items():
        if isinstance(value, Mapping):
            yield from _keys(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


DEFAULTS = dict(_keys(get_hicl_cfg()))
WHOLE = [key for key, value in DEFAULTS.items() if type(value) is int]
REAL = [key for key, value in DEFAULTS.items() if isinstance(value, float)]
LISTS = [
    key for key, v in DEFAULTS.items() if isinstance(v, list | tuple) and v and isinstance(v[0], int | float)
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "empty.yaml"
    path.write_text("")
    return path


def test_there_are_keys_of_every_kind() -> None:
    assert (len(WHOLE) > 80, len(REAL) > 60, len(LISTS) > 20) == (True, True, True)


@pytest.mark.parametrize("key", WHOLE)
def test_whole_number_of_twenty_digits(key: str, file: Path) -> None:
    for value in (10**20, -(10**20), 10**400):
        with pytest.raises(InputError, match=rf"^{key} is "):
            load_config(file, [key, str(value)])


@pytest.mark.parametrize("key", REAL)
def test_number_that_is_not_finite_or_beyond_float32(key: str, file: Path) -> None:
    values = ("-1e999", "1e300", "-1e300") if key.endswith("NORM_TYPE") else ("1e999", "-1e999", "1e300")
    for value in values:
        with pytest.raises(InputError, match=rf"^{key} is "):
            load_config(file, [key, value])
    file.write_text(_nested(key, ".nan"))
    with pytest.raises(InputError, match=rf"^{key} is nan"):
        load_config(file)


@pytest.mark.parametrize("key", LISTS)
def test_number_in_a_list(key: str, file: Path) -> None:
    with pytest.raises(InputError, match=rf"^{key} (is|must be)|command line: {key} must"):
        load_config(file, [key, f"[{10**20}]"])
    file.write_text(_nested(key, "[.inf]"))
    with pytest.raises(InputError, match=key):
        load_config(file)


def _nested(key: str, value: str) -> str:
    *sections, last = key.split(".")
    lines = [f"{'  ' * depth}{name}:" for depth, name in enumerate(sections)]
    return "\n".join([*lines, f"{'  ' * len(sections)}{last}: {value}"]) + "\n"


def test_the_largest_element_is_a_norm() -> None:
    cfg = get_hicl_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = float("inf")
    check_ranges(cfg)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("SOLVER.MAX_ITER", 0, "1 or more"),
        ("SOLVER.IMS_PER_BATCH", 2**16 + 1, "65536 or less"),
        ("SOLVER.MOMENTUM", 1.5, "1 or less"),
        ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", 0.0, "1 or more"),
        ("SOLVER.WEIGHT_DECAY", -1e-9, "0 or more"),
        ("SOLVER.WEIGHT_DECAY_NORM", -1e-9, "0 or more"),
        ("SOLVER.BACKBONE_MULTIPLIER", -1.0, "0 or more"),
        ("DATALOADER.NUM_WORKERS", 1025, "1024 or less"),
        ("MODEL.PIXEL_STD", [1.0, 0.0, 1.0], "1e-06 or more"),
        ("MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 1.5, "1 or less"),
        ("MODEL.SWIN.DROP_PATH_RATE", -0.1, "0 or more"),
        ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 70_000, "65535 or less"),
        ("MODEL.MASK_FORMER.DEC_LAYERS", 10**9, "1000 or less"),
        ("MODEL.MASK_FORMER.OVERSAMPLE_RATIO", 0.5, "1 or more"),
        ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", 1.5, "1 or less"),
        ("MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO", -0.1, "0 or more"),
        ("MODEL.MASK_FORMER.NHEADS", 0, "1 or more"),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", 0, "1 or more"),
        ("MODEL.MASK_FORMER.DIM_FEEDFORWARD", 0, "1 or more"),
        ("MODEL.SEM_SEG_HEAD.MASK_DIM", 0, "1 or more"),
        ("MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 0, "1 or more"),
        ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", -1, "0 or more"),
        ("MODEL.SWIN.DEPTHS", [2, 2, 10**6, 2], "1000 or less"),
        ("INPUT.MIN_SIZE_TRAIN", [2**31 - 1], "1048576 or less"),
    ],
)
def test_bound_of_a_key(key: str, value: Any, bound: str) -> None:
    cfg = get_hicl_cfg()
    *sections, last = key.split(".")
    node = cfg
    for name in sections:
        node = node[name]
    node[last] = value
    with pytest.raises(InputError, match=rf"^{key} is .*; it must be {bound}$"):
        check_ranges(cfg)


@pytest.mark.parametrize("text", ["a\udcff", "a\0b"])
def test_text_that_is_none(text: str) -> None:
    cfg = get_hicl_cfg()
    cfg.DATASETS.TRAIN = ("good", text)
    with pytest.raises(InputError, match=r"^DATASETS.TRAIN is 'a\\(udcff|x00b)'; it must be text \(UTF-8\)$"):
        check_ranges(cfg)


def test_a_number_of_thousands_of_digits_in_a_file_is_one_line(file: Path) -> None:
    file.write_text("SOLVER:\n  MAX_ITER: 0x" + 20_000 * "f" + "\n")
    with pytest.raises(InputError, match=r"empty.yaml:2: not valid YAML: a whole number of thousands"):
        load_config(file)


def test_the_defaults_are_in_range() -> None:
    check_ranges(get_hicl_cfg())
