"""Every config key that the project adds, and the one way to read a config file.

Detectron2's keys keep their names and defaults. The keys added here are off by default: a config that names none of them
trains the plain model. The hyper-parameters of Hi-CL are ours, not the paper's: its text is not public beyond the abstract.
"""

import difflib
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import _VALID_TYPES

from hicl_d2.command import imports
from hicl_d2.command.errors import InputError, listing, one_line
from hicl_d2.command.identity import flat_values
from hicl_d2.command.safe_yaml import Document, KeyPath, read_chain
from hicl_d2.config_ranges import check_ranges
from hicl_d2.d2.config import CfgNode, add_deeplab_config, get_cfg
from hicl_d2.modeling.keys import add_model_keys

# The section whose blocks carry names of the user's own, which may hold dots.
CUSTOM: KeyPath = ("DATASETS", "CUSTOM")
# Lists of names whose defaults are empty.
TEXT_LISTS = {(imports.KEY,), ("TEST", "EVALUATORS"), ("TRACKING", "WRITERS")} | {
    ("DATASETS", f"{what}{split}") for what in ("", "PROPOSAL_FILES_") for split in ("TRAIN", "TEST")
}
# What the kinds of values are called in a message.
KINDS = {bool: "True or False", int: "a whole number", float: "a number", list: "a list", tuple: "a list"}
# What YAML calls keys that are text, and its key for merging a section in.
TEXT_KEYS = ("str", "merge", "value")


def get_hicl_cfg() -> CfgNode:
    """Return Detectron2's default config with the keys of DeepLab and of this project added."""
    cfg = get_cfg()
    add_deeplab_config(cfg)
    _add_extension_keys(cfg)
    _add_training_keys(cfg)
    add_model_keys(cfg)
    _add_tracking_keys(cfg)
    _add_data_keys(cfg)
    _add_evaluation_keys(cfg)
    _add_branch_keys(cfg)
    return cfg


def add_hicl_config(cfg: CfgNode) -> None:
    """Add what ``cfg`` lacks of DeepLab's and the project's keys, each with a default that changes nothing.

    Keys that ``cfg`` has keep their values: call this before or after the functions of other projects that add theirs. The
    project's models are registered too, so that a train script of your own needs no other line. Contrasts of your own that
    were registered before have their keys in MODEL.HICL.
    """
    import hicl_d2.modeling.models  # noqa: F401 - not with this module: it imports torch

    _add_absent(cfg, get_hicl_cfg())
    add_registered_keys(cfg)


def flat_defaults() -> dict[str, Any]:
    """Return every key with its default, on one level: {"SOLVER.MAX_ITER": 40000}, values as JSON has them."""
    return dict(flat_values(get_hicl_cfg()))


def _add_absent(cfg: CfgNode, defaults: CfgNode) -> None:
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CfgNode) and isinstance(cfg[key], CfgNode):
            _add_absent(cfg[key], value)


def _add_extension_keys(cfg: CfgNode) -> None:
    # Modules of your own that are imported first: they may register data sets, contrasts, backbones, heads and metrics.
    cfg.IMPORTS = []


def _add_training_keys(cfg: CfgNode) -> None:
    # Optimiser: SGD, ADAM or ADAMW.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Learning rate of the backbone as a multiple of BASE_LR.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    # Weight decay of embeddings (learned queries, levels).
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    # Precision of automatic mixed precision (SOLVER.AMP.ENABLED): float16, with a gradient scaler, or bfloat16, without.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Weight of each class in the losses per pixel of the DeepLab heads, one number a class; [] weighs all alike. More is found
    # of classes that weigh more. How often each occurs is in the table of hicl check.
    cfg.MODEL.SEM_SEG_HEAD.CLASS_WEIGHTS = []
    # How feature maps lie in memory: "channels_last", "contiguous", or "auto", which is channels_last on a CPU for models that
    # work in it (most are faster so). Results are equal within rounding; dropout draws other masks.
    cfg.MODEL.MEMORY_FORMAT = "auto"
    # Parts in which each process works through its share of a batch, adding up the gradients (less memory; norms see a part).
    cfg.SOLVER.ACCUMULATE = 1
    # On other than SOLVER.REFERENCE_WORLD_SIZE processes: Detectron2's "rule" for batch, learning rate and iterations, or on
    # fewer the same batch in parts ("accumulate").
    cfg.SOLVER.SCALE_BY = "rule"
    # Iterations that are skipped because a loss or gradient is not finite before the run stops; 0: the first one stops it.
    cfg.SOLVER.NONFINITE_LIMIT = 0
    # How many of the newest numbered checkpoints stay on the disk (0: all); the best and the final one stay anyway.
    cfg.SOLVER.CHECKPOINT_KEEP = 0
    # Colour augmentation of SSD: brightness, contrast, saturation and hue, each half of the time.
    cfg.INPUT.COLOR_AUG_SSD = False
    # Mask2Former's name of the mapper that reads an image and its label map; no other is offered.
    cfg.INPUT.DATASET_MAPPER_NAME = "mask_former_semantic"
    # Side of the square that training images smaller than it are padded to; below 1: the crop's size.
    cfg.INPUT.SIZE_DIVISIBILITY = -1
    # Whether JPEGs to train on are decoded at a half, a quarter or an eighth of their size where they are resized to less:
    # faster for photographs of many pixels, whose values then differ a little.
    cfg.INPUT.REDUCED_DECODING = False
    # Number of test images drawn beside truth and prediction at the end of a run; 0 draws none.
    cfg.TEST.PICTURES = 8


def _add_tracking_keys(cfg: CfgNode) -> None:
    cfg.TRACKING = CfgNode()
    # Where figures go beside metrics.json and TensorBoard: "wandb", "mlflow" (extras of these names).
    cfg.TRACKING.WRITERS = []
    # Project or experiment in them.
    cfg.TRACKING.PROJECT = "hicl"


def _add_data_keys(cfg: CfgNode) -> None:
    # Data sets of your own: a block for each name, with IMAGES, LABELS, CLASSES and what hicl_d2.data.custom lists (LIST,
    # LABEL_VALUES, UNLABELLED, ...).
    cfg.DATASETS.CUSTOM = CfgNode(new_allowed=True)
    # Whether each worker keeps the training images that it has decoded in memory (5 bytes a pixel, the label map among
    # them); for data sets that fit NUM_WORKERS times.
    cfg.DATALOADER.KEEP_DECODED = False


def _add_evaluation_keys(cfg: CfgNode) -> None:
    # Height and width of windows that slide over the resized test image, in pixels, and the way from one to the next
    # (two thirds of a window where none is given); no window: the image is predicted as a whole.
    cfg.TEST.WINDOW = []
    cfg.TEST.WINDOW_STRIDE = []
    # Whether TEST.AUG (several sizes and flips) averages the softmax of the model's scores, or the scores as they are; those
    # of Mask2Former are no logits and are never put through a softmax.
    cfg.TEST.AUG_SOFTMAX = True
    # Distance up to which pixels count as near a boundary, as a share of the diagonal; 0: boundaries are not scored.
    cfg.TEST.BOUNDARY_DISTANCE = 0.0
    # Whether accuracy is also scored by the size of connected objects (below 32 x 32, below 96 x 96, above).
    cfg.TEST.OBJECT_SIZES = False
    # Whether predictions are written as label PNGs in the benchmark's submission format (inference/submission).
    cfg.TEST.SUBMISSION = False
    # Whether the official scorer of Cityscapes (cityscapesscripts) runs too.
    cfg.TEST.CITYSCAPES_SCORER = False
    # Evaluators of your own that run too, by the names they were registered under (IMPORTS).
    cfg.TEST.EVALUATORS = []


def _add_branch_keys(cfg: CfgNode) -> None:
    """Add MODEL.HICL, read by the meta-architecture ``HiCL``. Lists of one value hold for every window."""
    hicl = cfg.MODEL.HICL = CfgNode()
    # Whether the branch is attached; without it META_ARCHITECTURE "HiCL" builds the base model and nothing else.
    hicl.ENABLED = True
    # Meta-architecture that the branch is attached to; any registered name.
    hicl.BASE = "SemanticSegmentor"
    # Module whose per-pixel features (B, C, h, w) the branch reads.
    hicl.FEATURE = "sem_seg_head.predictor"
    # Which side of that module: its "input" or its "output".
    hicl.FEATURE_SIDE = "input"
    # Module whose output is the class logits (B, K, h, w), for confidence and hard anchors, or what the model makes
    # logits of (sem_seg_head.predictor of Mask2Former); "" does without.
    hicl.LOGITS = "sem_seg_head.predictor"
    # Module whose input is the padded image batch, which the labels are aligned to.
    hicl.IMAGE = "backbone"
    # Contrast: hicl, or a peer (pixel, pixel_memory, multiscale, region, contextual).
    hicl.CONTRAST = "hicl"
    # Weight of the loss, after the warm-up ramp.
    hicl.WEIGHT = 0.1
    # What WEIGHT is of: the "loss", which it multiplies, or the "gradient": the contrast is scaled so that its gradient at
    # the features has WEIGHT times the norm of that of the other losses, measured every 10 iterations.
    hicl.WEIGHT_OF = "loss"
    # Iterations before the branch starts, and over which its weight then rises linearly from 0.
    hicl.START_ITER = 0
    hicl.WARMUP_ITERS = 1000
    # Window sizes in cells of the feature map; one level each. [1] is pixel-to-pixel contrast.
    hicl.WINDOWS = [1, 2, 4, 8]
    # Whether windows also start at half a window's distance (stride s/2 instead of s).
    hicl.OVERLAP = False
    # What a component is the mean over: a "window", or its cells of one "class" (at least as many as the window's side), so
    # that thin objects have components at every level. PURITY and COVERAGE are then asked of no window larger than a cell.
    hicl.POOLING = "window"
    # Class of a single cell: of the pixel in its "middle", as in pixel contrast, so that cells on a boundary take part, or of
    # most of its pixels ("majority"; it must pass PURITY and COVERAGE). Larger windows are pruned all the same.
    hicl.CELL_CLASS = "middle"
    # A candidate is kept if at least this share of its valid pixels has one class (0 switches the criterion off) ...
    hicl.PURITY = [0.9]
    # ... at least this share of its pixels is valid (0 switches it off) ...
    hicl.COVERAGE = [0.5]
    # ... and its mean predicted probability of its class lies in this range ([0, 1] switches it off).
    hicl.CONFIDENCE_LOW = [0.0]
    hicl.CONFIDENCE_HIGH = [1.0]
    # Weight of each level; 0 switches a level off.
    hicl.LEVEL_WEIGHTS = [1.0]
    # One loss over the components of all levels ("joint") or one per level, averaged by LEVEL_WEIGHTS ("separate").
    hicl.LEVEL_LOSS = "joint"
    # Whether gradients reach pixels through anchors alone.
    hicl.DETACH_COMPONENTS = False
    # Total budget of anchor pixels and of components in a batch, per process.
    hicl.ANCHORS = 1024
    hicl.COMPONENTS = 2048
    # Share of anchors taken from wrongly predicted pixels where there are enough.
    hicl.HARD_SHARE = 0.5
    # Share of the component budget reserved for components that touch another class (they serve as negatives).
    hicl.BOUNDARY_NEGATIVES = 0.0
    # Weight of a positive rises with its difficulty, (1 - similarity)^POSITIVE_FOCUS; 0 weighs all alike.
    hicl.POSITIVE_FOCUS = 0.0
    # Temperature of the softmax over similarities.
    hicl.TEMPERATURE = 0.1
    # Width of the embedding and of its hidden layers, and how many linear layers it has (1: a projection).
    hicl.DIM = 256
    hicl.HIDDEN_DIM = 256
    hicl.EMBEDDING_LAYERS = 2
    # Components remembered per class and level from earlier steps (0: no bank), used after BANK_START iterations.
    hicl.BANK_SIZE = 0
    hicl.BANK_START = 0
    # Whether anchors also meet the components of the other processes of the same step.
    hicl.GATHER = False
    # "fused" (fast, little memory) or "textbook" (the same loss written out; for comparison).
    hicl.IMPLEMENTATION = "fused"
    # Iterations between two entries of the branch's diagnostics in the event storage.
    hicl.LOG_PERIOD = 20


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def load_config(file: str | Path, opts: Sequence[str] = ()) -> CfgNode:
    """Read a config file with its ``_BASE_`` chain, apply ``KEY VALUE`` overrides, and freeze the result.

    ``file`` is a path or the name of a config of the project: ``camvid/deeplab_v3_plus_R_18_cpu.yaml``.

    Raises InputError, in one line with file, line and key, for a file that is missing or malformed, a tag that would run
    code, a key that does not exist (the nearest one named), a value of the wrong type and a number outside of its range.
    """
    try:
        return _load(file, opts)
    except InputError as error:  # a key or value that it quotes may have several lines
        raise InputError(one_line(error)) from None


def _load(file: str | Path, opts: Sequence[str]) -> CfgNode:
    documents = read_chain(file)
    cfg = get_hicl_cfg()
    _import_extensions(cfg, documents, list(opts))
    for document in documents:
        _merge(cfg, document)
    _merge_opts(cfg, list(opts))
    check_ranges(cfg)
    cfg.OUTPUT_DIR = os.path.expanduser(cfg.OUTPUT_DIR)
    cfg.freeze()
    return cfg


def _import_extensions(cfg: CfgNode, documents: Sequence[Document], opts: list[str]) -> None:
    """Import what IMPORTS names in the end, and add the keys of the contrasts that were registered so."""
    for document in documents:
        if imports.KEY in document.content:
            _set(cfg, (imports.KEY,), document.content[imports.KEY], document.place((imports.KEY,)))
    for key, value in zip(opts[::2], opts[1::2], strict=False):
        if key == imports.KEY:
            _set(cfg, (imports.KEY,), value, "command line")
    if not cfg.IMPORTS:
        return
    imports.import_modules(cfg.IMPORTS)
    add_registered_keys(cfg)


def add_registered_keys(cfg: CfgNode) -> None:
    """Add to MODEL.HICL the keywords of contrasts that `hicl_d2.contrast.register_contrast` made known."""
    from hicl_d2.contrast.build import registered_defaults  # not before it is needed: it imports torch

    for keyword, default in registered_defaults().items():
        key = keyword.upper()
        if key not in cfg.MODEL.HICL and keyword != "ignore_value":  # that is SEM_SEG_HEAD.IGNORE_VALUE
            cfg.MODEL.HICL[key] = list(default) if isinstance(default, tuple) else default


def is_free(path: KeyPath, depth: int = 1) -> bool:
    """Return whether ``path`` lies ``depth`` levels or more below DATASETS.CUSTOM, where keys are the user's own."""
    return path[:2] == CUSTOM and len(path) >= 2 + depth


def _merge(cfg: CfgNode, document: Document) -> None:
    for key in document.keys:
        if key.kind not in TEXT_KEYS and not is_free(key.path[:-1], 2):
            raise InputError(
                f"{document.path}:{key.line}: YAML reads the key {key.path[-1]} as {key.kind}, not as text; quote it"
            )
    for path, value in _leaves(document.content):
        _set(cfg, path, value, document.place(path))


def _leaves(content: dict[Any, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in content.items():
        if isinstance(value, dict) and value and not is_free(above, 1):
            yield from _leaves(value, (*above, str(key)))
        else:
            yield (*above, str(key)), value


def _merge_opts(cfg: CfgNode, opts: list[str]) -> None:
    if len(opts) % 2:
        raise InputError(f"overrides are pairs of KEY VALUE, but {opts[-1]!r} has no partner")
    for key, value in zip(opts[::2], opts[1::2], strict=True):
        _set(cfg, _split(cfg, key), value, "command line")


def _split(cfg: CfgNode, key: str) -> KeyPath:
    """Split a key at its dots, except those in the name of a data set below DATASETS.CUSTOM."""
    parts = tuple(key.split("."))
    if not is_free(parts):
        return parts
    rest = ".".join(parts[2:])
    for name in sorted(cfg.DATASETS.CUSTOM, key=len, reverse=True):
        if rest.startswith(f"{name}."):
            return (*CUSTOM, name, rest.removeprefix(f"{name}."))
    return (*CUSTOM, *(part for part in rest.rpartition(".")[::2] if part))


def _set(cfg: CfgNode, path: KeyPath, value: Any, place: str) -> None:
    """Set one key: decode the value as yacs does and check its kind; a whole number will do for a float."""
    _check_key(cfg, path, place)
    key = ".".join(path)
    if isinstance(value, dict) and not is_free(path, 2):  # an empty section changes nothing
        return
    if not isinstance(value, (*_VALID_TYPES, type(None), dict)):
        value = str(value)  # yacs knows numbers, strings, lists and tuples
    if is_free(path) or not _has(cfg, path):
        _add(cfg, path, _decoded(value) if is_free(path) else CfgNode._decode_cfg_value(value))
        return
    before = _get(cfg, path)
    if isinstance(before, CfgNode):
        raise InputError(f"{place}: {key} is a section; set one of its keys ({listing(before)})")
    if isinstance(before, str):
        _get(cfg, path[:-1])[path[-1]] = _text(path, value, place)
        return
    try:
        decoded = CfgNode._decode_cfg_value(value)
        if isinstance(before, float) and type(decoded) is int:
            decoded = float(decoded)
        cfg.merge_from_list([key, decoded])
    except (ValueError, AssertionError, KeyError, OverflowError):
        wanted = KINDS.get(type(before), f"a {type(before).__name__}")
        raise InputError(f"{place}: {key} must be {wanted}, not {value!r:.80}") from None
    kind = _kind_of_elements(path)
    if kind is not None and not all(isinstance(element, kind) for element in decoded or ()):
        hint = "; quote each of them" if kind == (str,) else ""
        raise InputError(f"{place}: {key} must be a list of {kind[-1].__name__}, not {value!r:.80}{hint}")


def _decoded(value: Any) -> Any:
    """Return what ``value`` of a key of the user's own stands for: lists that are written as text, and text as it is.

    Keys become text, as they are everywhere in a config: yacs cannot dump others.
    """
    decoded = CfgNode._decode_cfg_value(value)
    if isinstance(decoded, dict):
        return CfgNode({str(key): _decoded(inner) for key, inner in decoded.items()})
    return value if isinstance(value, str) and not isinstance(decoded, list | tuple | dict | str) else decoded


def _text(path: KeyPath, value: Any, place: str) -> str | None:
    """Return ``value`` as the text that it is, also where it looks like a number."""
    decoded = CfgNode._decode_cfg_value(value)
    if decoded is None and path[-1].endswith("NORM"):  # what Detectron2 takes for "no norm"
        return None
    if isinstance(value, str):
        return decoded if isinstance(decoded, str) else value
    hint = "" if isinstance(value, list | tuple) else "; quote it, or YAML does not read it as text"
    raise InputError(f"{place}: {'.'.join(path)} must be a str, not {value!r:.80}{hint}")


def _kind_of_elements(path: KeyPath) -> tuple[type, ...] | None:
    """Return what the elements of a list key may be: as those of its default; None where that does not say."""
    if path in TEXT_LISTS:
        return (str,)
    default = _get(_defaults(), path)
    kinds = {type(element) for element in default} if isinstance(default, list | tuple) else set()
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind not in (int, float, str):
        return None
    return (int, kind) if kind is float else (kind,)


@cache
def _defaults() -> CfgNode:
    return get_hicl_cfg()


def _has(cfg: CfgNode, path: KeyPath) -> bool:
    node: Any = cfg
    for part in path:
        if not isinstance(node, CfgNode) or part not in node:
            return False
        node = node[part]
    return True


def _add(cfg: CfgNode, path: KeyPath, value: Any) -> None:
    """Add a key below a section that takes new ones."""
    *sections, last = path
    node = cfg
    for part in sections:
        if not isinstance(node.get(part), CfgNode):
            node[part] = CfgNode(new_allowed=True)
        node = node[part]
    node[last] = value


def _get(cfg: CfgNode, path: KeyPath) -> Any:
    node: Any = cfg
    for part in path:
        node = node.get(part) if isinstance(node, CfgNode) else None
    return node


def _check_key(cfg: CfgNode, path: KeyPath, place: str) -> None:
    node: Any = cfg
    key = ".".join(path)
    for depth, part in enumerate(path):
        if not isinstance(node, CfgNode):
            raise InputError(f"{place}: {key}: {'.'.join(path[:depth])} holds a value, not a section")
        if part not in node:
            if node.is_new_allowed():
                return
            near = difflib.get_close_matches(part, list(node), n=1) or _elsewhere(cfg, part)
            hint = (
                f"; did you mean {'.'.join([*path[:depth], near[0]]) if near[0] in node else near[0]}?"
                if near
                else ""
            )
            raise InputError(f"{place}: unknown key {key}{hint}")
        node = node[part]


def _elsewhere(cfg: CfgNode, name: str) -> list[str]:
    """Return the known key whose last part is ``name``, if there is exactly one."""
    found = [".".join(path) for path, _ in _leaves(cfg) if path[-1] == name]
    return found if len(found) == 1 else []
