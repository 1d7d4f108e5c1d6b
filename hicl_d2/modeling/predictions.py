"""Class logits from what a head outputs: a map of logits, or the predictions of queries."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Names of the class logits (B, Q, K + 1) and the mask logits (B, Q, h, w) of queries: Mask2Former's and transformers'.
QUERIES = (("pred_logits", "pred_masks"), ("class_queries_logits", "masks_queries_logits"))


def class_logits(found: Any) -> Any:
    """Return logits (B, K, h, w) for the predictions of queries; anything else is returned as it is.

    Predictions of queries are a mapping with the names of `QUERIES`, or a pair of class logits (B, Q, K + 1), whose
    last class is "no object", and mask logits (B, Q, h, w). The softmax of the result is the share of each class in the
    semantic scores. It carries no gradient.
    """
    queries = _queries(found)
    if queries is None:
        return found
    with torch.no_grad():
        scores = semantic_scores(*(each.float() for each in queries))
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


def is_of_queries(found: Any) -> bool:
    """Return whether ``found`` are predictions of queries, which `class_logits` converts."""
    return _queries(found) is not None


def semantic_scores(classes: Tensor, masks: Tensor) -> Tensor:
    """Return scores (..., K, h, w) for class logits (..., Q, K + 1) and mask logits (..., Q, h, w).

    A class's score at a pixel is the sum over queries of its probability times that of the mask (Cheng et al., "Per-Pixel
    Classification is Not All You Need for Semantic Segmentation", section 3.4).
    """
    probabilities = classes.softmax(-1)[..., :-1]
    return torch.einsum("...qk,...qhw->...khw", probabilities, masks.sigmoid())


def _queries(found: Any) -> tuple[Tensor, Tensor] | None:
    pair: tuple[Any, ...] = ()
    if isinstance(found, Mapping):
        pair = next(
            (tuple(found[name] for name in names) for names in QUERIES if set(names) <= set(found)), ()
        )
    elif isinstance(found, tuple | list):
        pair = tuple(found[:2])
    if len(pair) != 2 or not all(isinstance(each, Tensor) for each in pair):
        return None
    classes, masks = pair
    fits = classes.dim() == 3 and masks.dim() == 4 and classes.shape[:2] == masks.shape[:2]
    return (classes, masks) if fits else None
