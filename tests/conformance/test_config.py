"""The config's keys, defaults, merging and construction are Detectron2's."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from hicl_d2.command.errors import InputError
from tests.conformance.runtimes import golden, load, needs_detectron2, plain

BASE = """
MODEL:
  META_ARCHITECTURE: SemanticSegmentor
  PIXEL_MEAN: [1, 2.5, 3]
INPUT:
  MIN_SIZE_TRAIN: [512, 640]
SOLVER:
  BASE_LR: 1.0
  STEPS: (60, 80)
  WEIGHT_DECAY_BIAS: 0.5
"""
CHILD = """
_BASE_: base.yaml
MODEL:
  PIXEL_MEAN: [4.0, 5.0, 6.0]
  RESNETS: {RES5_MULTI_GRID: [1, 1, 1]}
DATASETS:
  TRAIN: ("camvid_train",)
VERSION: 2
"""
REFUSED = {
    "unknown key": "SOLVER: {BASE_LRR: 1.0}",
    "unknown section": "SOLVERS: {BASE_LR: 1.0}",
    "number for text": "OUTPUT_DIR: 3",
    "text for number": "SOLVER: {MAX_ITER: many}",
    "value for section": "SOLVER: 3",
    "integer for fraction": "SOLVER: {BASE_LR: 1}",
    "fraction for integer": "SOLVER: {MAX_ITER: 2.5}",
}


def _config(runtime: str) -> Any:
    cfg = load(runtime, "config").get_cfg()
    load(runtime, "projects.deeplab").add_deeplab_config(cfg)
    return cfg


def _leaves(node: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value with its type's name: a tuple merges differently from a list."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        leaves |= (
            _leaves(value, f"{name}.") if isinstance(value, dict) else {name: [type(value).__name__, value]}
        )
    return leaves


def _merged(runtime: str) -> Any:
    cfg = _config(runtime)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "base.yaml").write_text(BASE)
        (Path(folder) / "child.yaml").write_text(CHILD)
        cfg.merge_from_file(str(Path(folder) / "child.yaml"))
    cfg.merge_from_list(["SOLVER.MAX_ITER", "90", "INPUT.CROP.SIZE", "[64, 32]", "MODEL.WEIGHTS", "a.pth"])
    return cfg


def _refusal(runtime: str, text: str) -> str:
    cfg = _config(runtime)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "a.yaml").write_text(text)
        with pytest.raises((KeyError, ValueError, AssertionError, AttributeError)) as caught:
            cfg.merge_from_file(str(Path(folder) / "a.yaml"))
    return caught.type.__name__


def _constructed(runtime: str) -> dict[str, Any]:
    configurable = load(runtime, "config").configurable
    cfg = load(runtime, "config").CfgNode({"A": 1, "B": 2})

    class Narrow:
        @configurable
        def __init__(self, a: Any, b: Any = 20, c: Any = 30) -> None:
            self.seen = [a, b, c]

        @classmethod
        def from_config(cls, cfg: Any, extra: int = 0) -> dict[str, Any]:
            return {"a": cfg.A + extra, "b": cfg.B}

    class Wide(Narrow):
        @classmethod
        def from_config(cls, cfg: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
            return {"a": len(args), "b": sorted(kwargs)}

    class Called(Narrow):
        @configurable()
        def __init__(self, a: Any, b: Any = 20) -> None:
            self.seen = [a, b]

    def from_config(cfg: Any) -> dict[str, Any]:
        return {"a": cfg.A}

    @configurable(from_config=from_config)
    def function(a: Any, b: Any = 20) -> list[Any]:
        return [a, b]

    return {
        "direct": [Narrow(1).seen, Narrow(a=1, c=3).seen],
        "from config": [
            Narrow(cfg).seen,
            Narrow(cfg=cfg).seen,
            Narrow(cfg, c=3).seen,
            Narrow(cfg, extra=5, b=0).seen,
        ],
        "called decorator": Called(cfg).seen,
        "all forwarded": [Wide(cfg, 1, 2, c=3).seen, Wide(cfg).seen],
        "function": [function(1), function(cfg), function(cfg, b=3), function(cfg=cfg)],
        "function keeps": function.from_config is from_config,
    }


def _misuse(runtime: str) -> dict[str, str]:
    configurable = load(runtime, "config").configurable
    cfg = load(runtime, "config").CfgNode({"A": 1})

    class Without:
        @configurable
        def __init__(self, a: Any = 1) -> None: ...

    class Unbound:
        @configurable
        def __init__(self, a: Any = 1) -> None: ...

        def from_config(self, cfg: Any) -> dict[str, Any]:
            return {}

    class Misnamed:
        @configurable
        def __init__(self, a: Any = 1) -> None: ...

        @classmethod
        def from_config(cls, config: Any) -> dict[str, Any]:
            return {}

    def method(self: Any) -> None: ...

    cases = {
        "no from_config": lambda: Without(cfg),
        "no from_config, direct": lambda: Without(1),
        "not a classmethod": lambda: Unbound(cfg),
        "first argument": lambda: Misnamed(cfg),
        "not __init__": lambda: configurable(method),
        "not a function": lambda: configurable(from_config=3),
    }
    return {name: _error(case) for name, case in cases.items()}


def _error(case: Any) -> str:
    with pytest.raises((AttributeError, TypeError, AssertionError)) as caught:
        case()
    return caught.type.__name__


def figures(runtime: str) -> dict[str, Any]:
    merged = _leaves(_merged(runtime))
    default = _leaves(_config(runtime))
    return {
        "defaults": default,
        "merged": {name: value for name, value in merged.items() if value != default[name]},
        "refused": {name: _refusal(runtime, text) for name, text in REFUSED.items()},
        "configurable": _constructed(runtime),
        "misuse": _misuse(runtime),
    }


def test_lite_equals_the_recorded_figures() -> None:
    assert plain(figures("lite")) == golden("config")


@needs_detectron2
def test_detectron2_still_gives_the_recorded_figures() -> None:
    assert plain(figures("detectron2")) == golden("config")


@needs_detectron2
def test_dumps_are_the_same_text() -> None:
    assert _merged("lite").dump() == _merged("detectron2").dump()
    assert yaml.safe_load(_merged("lite").dump())["SOLVER"]["MAX_ITER"] == 90


@needs_detectron2
def test_every_config_file_of_detectron2_merges_alike_or_is_refused_as_unsafe() -> None:
    import detectron2

    root = Path(detectron2.__file__).parents[1]
    files = sorted([*root.glob("configs/**/*.yaml"), *root.glob("projects/DeepLab/configs/**/*.yaml")])
    if not files:
        pytest.skip("this Detectron2 was installed without its config files")
    merged = 0
    for file in files:
        theirs, ours = _config("detectron2"), _config("lite")
        theirs.merge_from_file(str(file))
        try:
            ours.merge_from_file(str(file))
        except (InputError, yaml.constructor.ConstructorError):
            assert _is_unsafe_or_old(file), file
            continue
        merged += 1
        assert ours.dump() == theirs.dump(), file
    assert merged > 0.9 * len(files)


def _is_unsafe_or_old(file: Path) -> bool:
    text = file.read_text()
    base = [line.split(":", 1)[1].strip(" \"'") for line in text.splitlines() if line.startswith("_BASE_")]
    return (
        "!!python" in text
        or "VERSION: 1" in text
        or any(_is_unsafe_or_old(file.parent / name) for name in base)
    )
