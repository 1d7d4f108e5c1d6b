"""Files at random: every one is read right or refused in one line, and none takes forever."""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hicl_d2.command.errors import InputError
from hicl_d2.config import get_hicl_cfg, load_config
from hicl_d2.reading import check_labels, image_size, read_image, read_labels
from hicl_d2.run.manifest import PLACE_KEYS, identity
from tests.robustness.conftest import FUZZED

Report = Callable[[str, int, str], None]
pytestmark = pytest.mark.slow
DEADLINE = 30_000  # milliseconds after which a file is said to hang
fuzzed = settings(
    max_examples=FUZZED,
    deadline=DEADLINE,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


DEFAULTS = identity(get_hicl_cfg())
KEYS = [*DEFAULTS, *PLACE_KEYS]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.binary(max_size=8),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NESTED = st.dictionaries(
    st.sampled_from(KEYS) | st.text(max_size=10) | st.sampled_from(["_BASE_", "MODEL", "SOLVER"]),
    VALUES,
    max_size=4,
).map(lambda flat: yaml.safe_dump(_nest(flat)))


def _like(default: Any) -> st.SearchStrategy[Any]:
    """Return values of the kind of ``default``, most of which are valid there."""
    match default:
        case bool():
            return st.booleans()
        case int():
            return st.integers(-2, 2000) | st.integers()
        case float():
            return st.floats() | st.integers(-2, 10)
        case str():
            return st.text(max_size=12)
        case [first, *_]:
            return st.lists(_like(first), max_size=3)
        case _:
            return VALUES


RIGHT_KINDS = (
    st.lists(
        st.sampled_from(KEYS).flatmap(lambda key: st.tuples(st.just(key), _like(DEFAULTS.get(key)))),
        max_size=4,
    )
    .map(dict)
    .map(lambda flat: yaml.safe_dump(_nest(flat)))
)
SNIPPETS = (
    *("MODEL:", "  DEVICE: ", "- ", "? ", "{", "}", "[", "|", ">", "\t", '"', "'", "#", "---", "..."),
    *("&a ", "*a", "<<: *a", "!!python/name:os.system", "!!binary ", "%YAML 1.2"),
)
LINES = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=8), max_size=12).map("\n".join)
FILES = st.one_of(
    RIGHT_KINDS.map(str.encode),
    NESTED.map(str.encode),
    LINES.map(lambda text: text.encode("utf-8", "replace")),
    st.binary(max_size=60),
)


def _nest(flat: dict[str, object]) -> dict[str, object]:
    nested: dict[str, object] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = nested
        for part in path:
            inner = node.setdefault(part, {})
            node = inner if isinstance(inner, dict) else node
        node[last] = value
    return nested


def _attempt(read: Callable[[Path], Any], file: Path) -> tuple[Any, str]:
    """Return what ``read`` makes of ``file``, or None and in what words it refused."""
    try:
        return read(file), ""
    except InputError as error:
        return None, str(error)


def _read_config(content: bytes, folder: Path) -> bool:
    file, again = folder / "fuzzed.yaml", folder / "again.yaml"
    file.write_bytes(content)
    cfg, refusal = _attempt(load_config, file)
    assert "\n" not in refusal
    if cfg is None:
        return False
    again.write_text(cfg.dump())
    # What was read is a config: written and read again it is the same.
    assert json.dumps(identity(load_config(again))) == json.dumps(identity(cfg))
    return True


def test_config_files(tmp_path_factory: pytest.TempPathFactory, report: Report) -> None:
    folder = tmp_path_factory.mktemp("configs")
    seen = [0, 0]

    @fuzzed
    @given(FILES)
    def read(content: bytes) -> None:
        seen[_read_config(content, folder)] += 1

    read()
    report(
        "fuzzed config files",
        sum(seen),
        f"{seen[0]} refused in one line, {seen[1]} valid and read back the same",
    )


FORMATS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "BMP": "bmp", "GIF": "gif"}


def _original(chance: random.Random, kind: str) -> tuple[bytes, np.ndarray]:
    pixels = np.random.default_rng(chance.randrange(2**32)).integers(0, 256, (9, 11, 3), dtype=np.uint8)
    if kind == "labels":
        pixels = pixels[..., 0] % 4
    stream = io.BytesIO()
    name = "PNG" if kind == "labels" else chance.choice(list(FORMATS))
    Image.fromarray(pixels).save(stream, name)
    return stream.getvalue(), pixels


def _spoil(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.randrange(4)):
        place = chance.randrange(len(changed))
        match chance.randrange(4):
            case 0:
                changed[place] = chance.randrange(256)
            case 1:
                del changed[place:]
            case 2:
                del changed[place : place + chance.randrange(1, 9)]
            case _:
                changed[place:place] = chance.randbytes(chance.randrange(1, 9))
        if not changed:
            break
    return bytes(changed)


def _read_labels(file: Path) -> np.ndarray:
    labels = read_labels(file)
    check_labels(labels, 4, 255, file)
    return labels


def _fuzz(
    kind: str, read: Callable[[Path], np.ndarray], chance: random.Random, folder: Path
) -> tuple[int, int]:
    refused = whole = 0
    for _ in range(FUZZED):
        content, pixels = _original(chance, kind)
        spoiled = _spoil(content, chance)
        file = folder / "fuzzed.png"
        file.write_bytes(spoiled)
        found, refusal = _attempt(read, file)
        if found is None:
            assert "\n" not in refusal
            assert str(file) in refusal
            refused += 1
            continue
        height, width = image_size(file)
        assert found.shape[:2] == (height, width)
        assert found.dtype in (np.uint8, np.uint16)
        if kind == "labels":
            assert ((found < 4) | (found == 255)).all()  # a value that is no class would be a wrong figure
        if spoiled == content and (kind == "labels" or content[:4] == b"\x89PNG"):
            assert np.array_equal(found, pixels)
            whole += 1
    return refused, whole


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_image_files(kind: str, chance: random.Random, tmp_path: Path, report: Report) -> None:
    torch.set_num_threads(1)
    read = _read_labels if kind == "labels" else lambda file: read_image(file, "RGB")
    refused, whole = _fuzz(kind, read, chance, tmp_path)
    assert refused > 0
    assert whole > 0
    report(
        f"fuzzed {'image' if kind == 'images' else 'label'} files",
        FUZZED,
        f"{refused} refused in one line, {whole} unharmed ones exact, the others of the size that they say",
    )
