"""Values of a data set of one's own are of their kind, or one line names the key; names stand in one line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hicl_d2.config import load_config
from hicl_d2.d2.data import DatasetCatalog, MetadataCatalog
from hicl_d2.data import register_custom, register_semantic_dataset
from hicl_d2.data.custom import KEYS, forget_custom
from hicl_d2.data.names import LONGEST, file_stem
from tests.test_reading import refusal

NAME = "names_test"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    forget_custom()
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.remove(NAME)


def config(tmp_path: Path, key: str, value: str, name: str = NAME) -> Path:
    keys = {"IMAGES": "i", "LABELS": "m", "CLASSES": "[a, b]", key: value}
    block = ", ".join(f"{key}: {value}" for key, value in keys.items())
    path = tmp_path / "c.yaml"
    path.write_text(f"DATASETS:\n  CUSTOM:\n    {name}: {{{block}}}\n")
    return path


# A value of every kind, as YAML writes it.
WRITTEN = {
    "a boolean": "off",
    "nothing": "null",
    "a number": "5",
    "a share": "0.5",
    "infinity": ".inf",
    "text": "word",
    "a number as text": '"5"',
    "a list of numbers": "[1, 2]",
    "a list of lists": "[[1, 2], [3]]",
    "a list of text": "[x, y]",
    "a section": "{x: 1}",
    "a date": "2024-11-26",
}
TEXT = {"text", "a number as text", "a date"}
TAKEN = {
    **dict.fromkeys(("IMAGES", "LABELS", "IMAGE_ENDING", "LABEL_ENDING", "CACHE", "LIST"), TEXT),
    "CLASSES": {"a list of text"},
    "IGNORE": {"a number", "a number as text"},
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_takes_its_own_kind_and_refuses_every_other_by_its_name(tmp_path: Path, key: str) -> None:
    for kind, written in WRITTEN.items():
        cfg = load_config(config(tmp_path, key, written))
        if kind in TAKEN.get(key, ()) or (key == "LABEL_VALUES" and kind == "a list of numbers"):
            register_custom(cfg)
            continue
        message = refusal(lambda cfg=cfg: register_custom(cfg))
        places = (f"DATASETS.CUSTOM.{NAME}.{key}", NAME)
        assert any(place in message for place in places), (kind, message)
        assert "\n" not in message
        if kind in ("a boolean", "nothing") and TAKEN.get(key) == TEXT:
            assert "quote it" in message


COLOURS = [
    "[[1, 2], [3, 4]]",
    "[[1, 2, 3], [1, 2, 256]]",
    "[[1, 2, 3], [1, 2, -1]]",
    "[[1, 2, 3], [1, 2, 3.5]]",
    "[[1, 2, 3], [1, 2, off]]",
    '["#ff0000", "#00ff00"]',
    "[red, green]",
    "[[1, 2, 3, 4], [1, 2, 3, 4]]",
    "[{r: 1}, {r: 2}]",
    "[1, 2, 3]",
    "[[[1, 2, 3]], [[1, 2, 3]]]",
    "{a: [1, 2, 3], b: [4, 5, 6]}",
]


@pytest.mark.parametrize("value", COLOURS)
@pytest.mark.parametrize("key", ["COLOURS", "IGNORED_COLOURS"])
def test_what_is_no_colour_is_named_with_its_place(tmp_path: Path, key: str, value: str) -> None:
    cfg = load_config(config(tmp_path, key, value))
    assert f"DATASETS.CUSTOM.{NAME}.{key}" in refusal(lambda: register_custom(cfg))


@pytest.mark.parametrize(
    "value",
    [
        "[off, on]",
        "[a, null]",
        "[0, 1]",
        "[a, 20241126]",
        "[a, 1.5]",
        "[a, [b]]",
        "[]",
        "[a, a]",
        '["a", ""]',
        "3",
        "cat",
    ],
)
def test_class_names_that_yaml_made_something_else_are_refused(tmp_path: Path, value: str) -> None:
    cfg = load_config(config(tmp_path, "CLASSES", value))
    assert f"DATASETS.CUSTOM.{NAME}.CLASSES" in refusal(lambda: register_custom(cfg))


QUOTED = [
    "off",
    "on",
    "null",
    "0",
    "20241126",
    "1e3",
    "~",
    "0x10",
    "None",
    "True",
    "2024-11-26",
    "[1]",
    "a/b",
    "..",
    "a|b",
    "é ü",
    "日本　語",
]


def test_quoted_text_stays_text(tmp_path: Path) -> None:
    names = ", ".join(f"'{name}'" for name in QUOTED)
    path = config(tmp_path, "CLASSES", f"[{names}], BACKGROUND: '0', IMAGE_ENDING: '1', LABEL_ENDING: '0'")
    cfg = load_config(path)
    register_custom(cfg)
    assert MetadataCatalog.get(NAME).stuff_classes == QUOTED
    block = cfg.DATASETS.CUSTOM[NAME]
    assert (block.BACKGROUND, block.IMAGE_ENDING, block.LABEL_ENDING) == ("0", "1", "0")
    again = load_config(
        path, [f"DATASETS.CUSTOM.{NAME}.BACKGROUND", "20241126", f"DATASETS.CUSTOM.{NAME}.IGNORE", "77"]
    )
    register_custom(again)
    assert again.DATASETS.CUSTOM[NAME].BACKGROUND == "20241126"
    assert MetadataCatalog.get(NAME).ignore_label == 77


@pytest.mark.parametrize(
    "name",
    [
        "v1.0_train",
        "balloon/train",
        "a.b.c",
        "20241126",
        "0",
        "off",
        "a|b",
        "..",
        ".hidden",
        "a b",
        "é",
        "x" * LONGEST,
    ],
)
def test_a_data_set_may_be_called_anything_that_stands_in_one_line(tmp_path: Path, name: str) -> None:
    path = config(tmp_path, "IGNORE", "255", f"'{name}'")
    path.write_text(path.read_text() + f"  TRAIN: ['{name}']\n  TEST: ['{name}']\n")
    cfg = load_config(path, [f"DATASETS.CUSTOM.{name}.CLASSES", "['x', 'y', 'z']"])
    register_custom(cfg)
    assert (list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.CUSTOM)) == ([name], [name])
    assert MetadataCatalog.get(name).stuff_classes == ["x", "y", "z"]
    assert set(cfg.DATASETS.CUSTOM[name]) == {"IMAGES", "LABELS", "CLASSES", "IGNORE"}


BAD_NAMES = [
    "",
    " ",
    "a\nb",
    "a\tb",
    "a\rb",
    "\x1b[31mred",
    "a\0b",
    "a\u2028b",
    "x" * (LONGEST + 1),
    "\x7f",
    "\ud800",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_line_is_refused(name: str) -> None:
    for arguments in (("i", "m", ["a", name]), ("i", "m", [name])):
        message = refusal(lambda arguments=arguments: register_semantic_dataset(NAME, *arguments))
        assert f"the data set '{NAME}': classes[" in message
        assert "\n" not in message
        assert message.isprintable()
        assert len(message) < 300
    assert "the name of a data set" in refusal(lambda: register_semantic_dataset(name, "i", "m", ["a"]))


@pytest.mark.parametrize("name", ["off", "null", "20241126", "1.5"])
def test_a_block_without_quotes_around_such_a_name_is_told_to_quote_it(tmp_path: Path, name: str) -> None:
    message = refusal(lambda: load_config(config(tmp_path, "IGNORE", "255", name)))
    assert f"c.yaml:3: YAML reads the key {name} as" in message
    assert "quote it" in message


@pytest.mark.parametrize("written", ["[off]", "[20241126]", "[null, a]", "(1, 2)", "5", "a"])
@pytest.mark.parametrize("key", ["TRAIN", "TEST"])
def test_lists_of_data_sets_hold_text(tmp_path: Path, key: str, written: str) -> None:
    (tmp_path / "c.yaml").write_text(f"DATASETS:\n  {key}: {written}\n")
    assert f"c.yaml:2: DATASETS.{key} must be" in refusal(lambda: load_config(tmp_path / "c.yaml"))


def test_arguments_in_python_may_be_of_numpy_and_pathlib(tmp_path: Path) -> None:
    colours = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)
    arguments: Any = (NAME, tmp_path / "i", tmp_path / "m", np.array(["a", "b"]), np.int64(7))
    register_semantic_dataset(*arguments, colours=colours)
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.stuff_classes, metadata.ignore_label) == (["a", "b"], 7)
    assert metadata.stuff_colors == colours.tolist()


def test_a_file_name_is_one_part_of_a_path_and_another_one_for_another_name() -> None:
    names = [
        *QUOTED,
        "balloon/train",
        "balloon_train",
        "../../x",
        "/etc/passwd",
        ".",
        "a" * 200,
        "a" * 201,
        "a\\b",
        "a:b",
        "日" * 100,
    ]
    stems = [file_stem(name) for name in names]
    assert len(set(stems)) == len(names)
    for name, stem in zip(names, stems, strict=True):
        assert Path(f"{stem}.png").name == f"{stem}.png"
        assert not stem.startswith(".")
        assert len(f".{stem}.png.1234567.tmp".encode()) < 256
        if name == "é ü":
            assert stem == name
