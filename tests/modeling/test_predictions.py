"""Class logits from the predictions of queries, in whatever form a model gives them."""

import pytest
import torch
from transformers.models.mask2former.modeling_mask2former import Mask2FormerModelOutput
from transformers.utils.generic import ModelOutput

from hicl_d2.modeling.predictions import class_logits, is_of_queries, semantic_scores


def queries():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 5, 4, generator=generator), torch.randn(2, 5, 3, 6, generator=generator)


def looped_scores(classes, masks):
    expected = torch.zeros(2, 3, 3, 6)
    for image in range(2):
        for query in range(5):
            probabilities = classes[image, query].softmax(0)
            for kind in range(3):
                expected[image, kind] += probabilities[kind] * masks[image, query].sigmoid()
    return expected


def test_scores_are_class_probability_times_mask_summed_over_queries():
    classes, masks = queries()
    torch.testing.assert_close(semantic_scores(classes, masks), looped_scores(classes, masks))
    torch.testing.assert_close(semantic_scores(classes[0], masks[0]), looped_scores(classes, masks)[0])


FORMS = {
    "Mask2Former": lambda c, m: {"pred_logits": c, "pred_masks": m, "aux_outputs": []},
    "transformers": lambda c, m: ModelOutput(class_queries_logits=c, masks_queries_logits=m),
    "a pair": lambda c, m: (c, m),
    "a list of more": lambda c, m: [c, m, None],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_softmax_of_the_logits_is_the_share_of_each_class_in_the_scores(form, dtype):
    classes, masks = (each.to(dtype).requires_grad_() for each in queries())
    found = FORMS[form](classes, masks)
    assert is_of_queries(found)
    logits = class_logits(found)
    assert logits.dtype == torch.float32
    assert not logits.requires_grad
    scores = looped_scores(classes.float(), masks.float())
    torch.testing.assert_close(logits.softmax(1), scores / scores.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_where_no_query_sees_a_pixel_the_logits_are_finite():
    classes, masks = queries()
    logits = class_logits((classes, torch.full_like(masks, -1e4)))
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(
    "found",
    [
        torch.zeros(2, 4, 3, 3),
        {"pred_logits": torch.zeros(2, 5, 4)},
        {"out": torch.zeros(2, 4, 3, 3)},
        (torch.zeros(2, 4, 3, 3), {}),
        (torch.zeros(2, 5, 4), torch.zeros(2, 6, 3, 3)),
        (torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3)),
        (),
        None,
        Mask2FormerModelOutput(),
    ],
)
def test_anything_else_is_left_as_it_is(found):
    assert not is_of_queries(found)
    assert class_logits(found) is found
