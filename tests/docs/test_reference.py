"""The reference of config keys is whole, and its defaults are the code's."""

import re
from pathlib import Path

from hicl_d2.command.safe_yaml import flatten
from hicl_d2.config import get_hicl_cfg
from hicl_d2.d2.config import add_deeplab_config, get_cfg

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "config.md").read_text()
ROWS = {
    found["key"]: (found["default"], found["comment"])
    for found in re.finditer(
        r"^\| `(?P<key>[\w.]+)` \| `(?P<default>.*?)` \| (?P<comment>.*) \|$", PAGE, re.M
    )
}


def test_every_key_of_the_project_is_there_with_what_it_is() -> None:
    detectron2 = get_cfg()
    add_deeplab_config(detectron2)
    added = set(flatten(get_hicl_cfg())) - set(flatten(detectron2))
    assert added
    assert added <= set(ROWS)
    assert all(ROWS[key][1].strip() for key in added)


def test_defaults_are_those_of_the_code() -> None:
    values = flatten(get_hicl_cfg())
    for key, (default, _) in ROWS.items():
        if key in values:
            shown = eval(default, {"__builtins__": {}})
            assert shown == values[key] or list(shown) == list(values[key]), key
