"""Files at random: every one is read right or refused in one line, and none takes forever."""

import io
import json
import math
import random
import struct
import zlib
from collections import Counter
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
from hicl_d2.data.coco import draw_coco, read_coco
from hicl_d2.engine.checkpoint import Checkpoints
from hicl_d2.harness.cells import Cell
from hicl_d2.harness.folder import attempts, digest, states
from hicl_d2.harness.matrix import read_matrix
from hicl_d2.harness.progress import describe
from hicl_d2.harness.results import measures
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


# ----------------------------------------------------------------------------------------------------------
# Grammars of the other formats. Each input is read in a folder of its own, and nothing else may be there afterwards.

NUMBERS = st.one_of(
    st.integers(-3, 40), st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=4)
)
POLYGONS = st.lists(st.lists(st.integers(-5, 30) | NUMBERS, max_size=8), max_size=3)
RUNS = st.fixed_dictionaries(
    {
        "size": st.sampled_from([[9, 11], [11, 9], [9], [10**9, 10**9], None])
        | st.lists(NUMBERS, max_size=3),
        "counts": st.text(max_size=12) | st.lists(NUMBERS, max_size=5) | st.just([50, 49]),
    }
)
ANNOTATIONS = st.fixed_dictionaries(
    {"image_id": st.just(1) | NUMBERS, "category_id": st.sampled_from([1, 2]) | NUMBERS},
    optional={"segmentation": POLYGONS | RUNS | VALUES, "bbox": VALUES, "id": NUMBERS, "iscrowd": NUMBERS},
)
IMAGES = st.fixed_dictionaries(
    {
        "id": st.just(1) | NUMBERS,
        "file_name": st.just("a.png") | st.sampled_from(["../out.png", "/etc/x.png", ""]) | NUMBERS,
        "height": st.just(9) | NUMBERS,
        "width": st.just(11) | NUMBERS,
    }
)
CATEGORIES = [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}]
COCO = st.fixed_dictionaries(
    {
        "images": st.just([{"id": 1, "file_name": "a.png", "height": 9, "width": 11}])
        | st.lists(IMAGES, max_size=2)
        | VALUES,
        "annotations": st.lists(ANNOTATIONS, max_size=3) | VALUES,
        "categories": st.just(CATEGORIES) | VALUES,
    }
).map(lambda content: json.dumps(content, default=str).encode())


def _read_coco(file: Path) -> list[np.ndarray]:
    drawn = []
    for image in read_coco(file, file.parent, ["one", "two"]):
        if image.size[0] * image.size[1] < 10_000:
            drawn.append(draw_coco(image.size, image.objects, 255, str(image.path)))
    return drawn


def test_coco_annotations(tmp_path_factory: pytest.TempPathFactory, report: Report) -> None:
    folder = tmp_path_factory.mktemp("coco")
    seen = [0, 0]

    @fuzzed
    @given(
        st.one_of(
            COCO, VALUES.map(lambda value: json.dumps(value, default=str).encode()), st.binary(max_size=60)
        )
    )
    def read(content: bytes) -> None:
        file = folder / "fuzzed.json"
        file.write_bytes(content)
        drawn, refusal = _attempt(_read_coco, file)
        assert "\n" not in refusal
        for labels in drawn or []:
            assert set(np.unique(labels)) <= {0, 1, 255}
        assert [path.name for path in folder.iterdir()] == ["fuzzed.json"]
        seen[drawn is not None] += 1

    read()
    report("fuzzed COCO annotations", sum(seen), f"{seen[0]} refused in one line, {seen[1]} drawn")


def _png(width: int, height: int, bits: int, colour: int, rest: tuple[int, int, int], body: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        code = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", code)

    header = struct.pack(">IIBBBBB", width, height, bits, colour, *rest)
    palette = chunk(b"PLTE", bytes(range(12))) if colour == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(body))
        + chunk(b"IEND", b"")
    )


SIDES = st.integers(0, 12) | st.sampled_from([5000, 40_000, 2**31 - 1, 2**32 - 1])
PNGS = st.builds(
    _png,
    SIDES,
    SIDES,
    st.sampled_from([1, 2, 4, 8, 16]) | st.integers(0, 255),
    st.sampled_from([0, 2, 3, 4, 6]) | st.integers(0, 255),
    st.tuples(*[st.just(0) | st.integers(0, 255)] * 3),
    st.binary(max_size=400) | st.just(bytes(2000)),
)


@pytest.mark.parametrize("kind", ["image", "label"])
def test_png_headers(kind: str, tmp_path_factory: pytest.TempPathFactory, report: Report) -> None:
    folder = tmp_path_factory.mktemp("png")
    seen = [0, 0]

    @fuzzed
    @given(PNGS)
    def read(content: bytes) -> None:
        file = folder / "fuzzed.png"
        file.write_bytes(content)
        found, refusal = _attempt(
            read_labels if kind == "label" else lambda path: read_image(path, "RGB"), file
        )
        assert "\n" not in refusal
        if found is not None:
            assert found.shape[:2] == struct.unpack(">II", content[16:24])[::-1]
        seen[found is not None] += 1

    read()
    report(f"fuzzed PNG headers of {kind}s", sum(seen), f"{seen[0]} refused in one line, {seen[1]} read")


ORIGINAL = {"backbone.weight": torch.ones(2, 3, 1, 1), "backbone.bias": torch.zeros(2)}
PLAIN = st.one_of(
    SCALARS,
    st.sampled_from(
        [
            torch.ones(2, 3, 1, 1),
            torch.zeros(2),
            torch.full((2,), float("nan")),
            torch.ones(0),
            torch.ones(2, dtype=torch.int8),
            torch.ones(2, dtype=torch.complex64),
            torch.ones(2, 2).to_sparse(),
            torch.ones(2, device="meta"),
        ]
    ),
)
NAMES = st.sampled_from([*ORIGINAL, "model", "state_dict", "trainer", "iteration"]) | SCALARS
CHECKPOINTS = st.recursive(
    PLAIN, lambda inner: st.dictionaries(NAMES, inner, max_size=4) | st.lists(inner, max_size=3), max_leaves=8
)


class _Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Conv2d(3, 2, 1)


def _saved(content: Any, chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=chance.random() < 0.8)
    return _spoil(buffer.getvalue(), chance) if chance.random() < 0.5 else buffer.getvalue()


@pytest.mark.filterwarnings("ignore")
def test_checkpoints(tmp_path_factory: pytest.TempPathFactory, report: Report) -> None:
    folder = tmp_path_factory.mktemp("weights")
    seen = [0, 0]

    def load(file: Path) -> torch.nn.Module:
        model = _Small()
        Checkpoints(model, str(folder / "none")).load_weights(str(file), whole=False)
        return model

    @fuzzed
    @given(CHECKPOINTS, st.randoms(use_true_random=False))
    def read(content: Any, chance: random.Random) -> None:
        file = folder / "fuzzed.pth"
        file.write_bytes(_saved(content, chance))
        model, refusal = _attempt(load, file)
        assert "\n" not in refusal
        if model is not None:
            assert all(parameter.isfinite().all() for parameter in model.parameters())
        assert [path.name for path in folder.iterdir()] == ["fuzzed.pth"]
        seen[model is not None] += 1

    read()
    report("fuzzed checkpoints", sum(seen), f"{seen[0]} refused in one line, {seen[1]} loaded")


MATRIX = {
    "name": "smoke",
    "config": "configs/{dataset}/{model}.yaml",
    "datasets": ["parts"],
    "models": ["deeplab_v3_plus_R_18"],
    "methods": {"baseline": None, "hicl": {"config": "configs/{dataset}/{model}_hicl.yaml"}},
    "seeds": [1],
    "baseline": "baseline",
}
MATRICES = st.one_of(
    st.dictionaries(
        st.sampled_from([*MATRIX, "overrides", "ablations", "shorten", "compare"]) | st.text(max_size=6),
        VALUES,
        max_size=3,
    ).map(lambda changed: yaml.safe_dump({**MATRIX, **changed}).encode()),
    NESTED.map(str.encode),
    LINES.map(lambda text: text.encode("utf-8", "replace")),
)


def test_matrix_files(tmp_path_factory: pytest.TempPathFactory, report: Report) -> None:
    folder = tmp_path_factory.mktemp("matrices")
    seen = [0, 0]

    @fuzzed
    @given(MATRICES)
    def read(content: bytes) -> None:
        file = folder / "fuzzed.yaml"
        file.write_bytes(content)
        matrix, refusal = _attempt(read_matrix, file)
        assert "\n" not in refusal
        assert [path.name for path in folder.iterdir()] == ["fuzzed.yaml"]
        seen[matrix is not None] += 1

    read()
    report("fuzzed matrix files", sum(seen), f"{seen[0]} refused in one line, {seen[1]} valid")


STATE = {
    "result.json": {
        "schema": 1,
        "status": "finished",
        "metrics": {"last": {"sem_seg/mIoU": 40.0, "iteration": 3}},
    },
    "cell.json": {"schema": 2, "cell": "a/b/seed 1", "identity": {"config": "0123"}},
    "manifest.json": {"identity": {"config": "0123", "weights": "", "imports": {}}},
    "attempts/0001.json": {"state": "ended", "seconds": 1.0, "status": 0, "failure": None},
    "metrics.json": {"iteration": 2, "total_loss": 1.5, "eta_seconds": 3.0},
}
KEYS_OF_STATE = [
    *{key for content in STATE.values() for key in content},
    "class_iou",
    "seconds",
    "parameters",
]
CHANGES = st.dictionaries(st.sampled_from(KEYS_OF_STATE) | st.text(max_size=6), VALUES, max_size=3)
STATES = st.dictionaries(
    st.sampled_from([*STATE]), CHANGES | VALUES | st.binary(max_size=40), min_size=1, max_size=len(STATE)
)


def _state_file(name: str, change: Any, hash_: str) -> bytes:
    """Return a state file: bytes as they are, a change laid over what the harness or the training writes there."""
    if isinstance(change, bytes):
        return change
    content = {**STATE[name], **change} if isinstance(change, dict) else change
    if name == "cell.json" and isinstance(content, dict):
        content = json.loads(json.dumps({"hash": hash_, **content}, default=str))
        content["digest"] = digest(content)
    return json.dumps(content, default=str).encode("utf-8", "surrogateescape")


def test_state_files_of_the_harness(tmp_path_factory: pytest.TempPathFactory, report: Report) -> None:
    output = tmp_path_factory.mktemp("matrix")
    cell = Cell("a", "b", "", "", 1, Path("config.yaml"), {})
    folder = cell.folder(output)
    (folder / "attempts").mkdir(parents=True)
    seen: Counter[str] = Counter()

    @fuzzed
    @given(STATES)
    def read(changes: dict[str, Any]) -> None:
        for name in STATE:
            (folder / name).unlink(missing_ok=True)
        for name, change in changes.items():
            (folder / name).write_bytes(_state_file(name, change, cell.hash))
        state = states((cell,), output)[cell.slug]
        assert "\n" not in state.note
        for _, _, value, iteration in measures(state.result or {}):
            assert value is None or (type(value) is float and math.isfinite(value))
            assert iteration is None or type(iteration) is int
        assert "\n" not in describe(folder, 3, 1.0)
        assert all(attempt["number"] == 1 for attempt in attempts(folder))
        assert {str(path.relative_to(folder)) for path in folder.rglob("*.json")} == set(changes)
        seen[state.name] += 1

    read()
    report(
        "fuzzed state files of the harness",
        seen.total(),
        ", ".join(f"{count} {name}" for name, count in seen.most_common()),
    )
