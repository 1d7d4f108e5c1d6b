"""The peers' losses against loops over single pairs, and what all contrasts must do (`ContrastTester`)."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hicl_d2.contrast import Contrast, build_contrast
from hicl_d2.contrast.peers.memory import recall, remember
from tests.contrast.contrast_tester import CHANNELS, CLASSES, ContrastTester

Labelled = list[tuple[Tensor, int]]


def read_pixels(features: Tensor, labels: Tensor, window: int = 1) -> list[tuple[int, Tensor, int]]:
    """Return (image, mean feature, label at the middle pixel) of every labelled window, one by one."""
    stride = labels.shape[1] // features.shape[2]
    found = []
    for b in range(features.shape[0]):
        for y in range(features.shape[2] // window):
            for x in range(features.shape[3] // window):
                middle = window * stride // 2
                label = int(labels[b, y * window * stride + middle, x * window * stride + middle])
                if label < CLASSES:
                    cells = [
                        features[b, :, y * window + dy, x * window + dx]
                        for dy in range(window)
                        for dx in range(window)
                    ]
                    found.append((b, sum(cells[1:], cells[0]) / len(cells), label))
    return found


def embed(contrast: Any, row: Tensor) -> Tensor:
    embedded: Tensor = contrast.embedding(row[None])[0]
    return embedded


def average(rows: list[Tensor]) -> Tensor:
    return sum(rows[1:], rows[0]) / len(rows)


def loop_nce(
    anchors: Labelled,
    keys: Labelled,
    temperature: float,
    *,
    negatives: Labelled | None = None,
    same: bool = False,
    hardest: float = 1.0,
) -> Tensor:
    losses = []
    for i, (anchor, label) in enumerate(anchors):
        near = [
            anchor @ key / temperature
            for j, (key, c) in enumerate(keys)
            if c == label and not (same and i == j)
        ]
        far = [
            anchor @ key / temperature for key, c in (keys if negatives is None else negatives) if c != label
        ]
        near = sorted(near, key=Tensor.item)[: math.ceil(hardest * len(near))]
        far = sorted(far, key=Tensor.item, reverse=True)[: math.ceil(hardest * len(far))]
        if near:
            terms = []
            for positive in near:
                below = positive.exp()
                for negative in far:
                    below = below + negative.exp()
                terms.append(-(positive.exp() / below).log())
            losses.append(average(terms))
    return average(losses) if losses else torch.zeros(())


class TestPixelContrast(ContrastTester):
    name = "pixel"

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        pixels = [(embed(contrast, row), label) for _, row, label in read_pixels(features, labels)]
        return loop_nce(pixels, pixels, contrast.temperature, same=True, hardest=contrast.semi_hard)

    @pytest.mark.parametrize(("hard_share", "expected"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
    def test_takes_the_wished_share_from_wrong_pixels(self, hard_share: float, expected: float) -> None:
        labels = torch.zeros(1, 8, 16, dtype=torch.long)
        predicted = torch.arange(16).remainder(2).expand(1, 8, 16)  # every other column is wrong
        logits = torch.nn.functional.one_hot(predicted, CLASSES).permute(0, 3, 1, 2).float()
        figures = self.make(hard_share=hard_share, anchors=16)(
            torch.randn(1, CHANNELS, 8, 16), labels, logits
        )
        assert figures.diagnostics["hicl/hard_share"] == expected
        without = self.make(hard_share=hard_share, anchors=16)(torch.randn(1, CHANNELS, 8, 16), labels)
        assert without.diagnostics["hicl/hard_share"] == 0


class TestSemiHardPixelContrast(TestPixelContrast):
    settings = {"semi_hard": 0.3}

    def test_keeps_the_hardest_pairs(self) -> None:
        batch = self.make_batch()
        assert self.make()(*batch).loss > self.make(semi_hard=1.0)(*batch).loss

    def test_refuses_to_keep_none(self) -> None:
        with pytest.raises(ValueError, match="semi_hard must lie in"):
            self.make(semi_hard=0.0)


class TestPixelMemoryContrast(ContrastTester):
    name = "pixel_memory"
    settings = {"bank_size": 3}

    def make(
        self, num_classes: int = CLASSES, dtype: torch.dtype = torch.float32, **settings: Any
    ) -> Contrast:
        contrast = super().make(num_classes, dtype, **settings)
        if num_classes == CLASSES:
            for pixels, regions in zip(self.written(0), self.written(1), strict=True):
                remember(contrast.memory, [pixels, regions])
        return contrast

    @staticmethod
    def written(kind: int) -> list[tuple[Tensor, Tensor]]:
        """Return what was stored, step after step: up to three of a class at once, and never class 1."""
        generator = torch.Generator().manual_seed(kind)
        rows = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
        rows = torch.nn.functional.normalize(rows, dim=2)
        return [(rows[step], torch.tensor([0, 2, 0, -1, 2, 0])) for step in range(2)]

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        pixels = [(embed(contrast, row), label) for _, row, label in read_pixels(features, labels)]
        keys = list(pixels)
        for kind in range(2):
            for kept in (0, 2):
                stream = [row for rows, classes in self.written(kind) for row in rows[classes == kept]]
                keys += [(row.to(features.dtype), kept) for row in stream[-3:]]
        return loop_nce(pixels, keys, contrast.temperature, same=True)

    def test_renaming_the_classes_changes_nothing(self) -> None:
        pytest.skip("what the memory holds here would have to be renamed too")

    def test_stores_pixels_and_regions_by_their_own_class(self) -> None:
        torch.manual_seed(0)
        contrast = build_contrast("pixel_memory", CHANNELS, CLASSES, dim=5, bank_size=64)
        features, labels, logits = self.make_batch()
        contrast(features, labels, logits)
        pixels = read_pixels(features, labels)
        places, known = recall(contrast.memory)
        by_kind = [rows.flatten(0, 1) for rows in places.view(CLASSES, 2, 64, 5).unbind(1)]
        classes_by_kind = [classes.flatten() for classes in known.view(CLASSES, 2, 64).unbind(1)]
        rows, classes = by_kind[0], classes_by_kind[0]
        for label in range(CLASSES):
            own = torch.stack([embed(contrast, row) for _, row, each in pixels if each == label]).detach()
            stored = rows[classes == label]
            assert len(stored) == len(own)
            assert torch.cdist(stored, own).amin(1).max() < 1e-5
        rows, classes = by_kind[1], classes_by_kind[1]
        assert (classes >= 0).sum() == len({(image, label) for image, _, label in pixels})
        first = [row for image, row, label in pixels if (image, label) == (0, 0)]
        torch.testing.assert_close(rows[0], embed(contrast, average(first)).detach())

    def test_memory_joins_the_keys_from_the_second_step_on(self) -> None:
        batch = self.make_batch()
        torch.manual_seed(0)
        contrast = build_contrast("pixel_memory", CHANNELS, CLASSES, dim=5, bank_size=4)
        torch.manual_seed(0)
        without = build_contrast("pixel", CHANNELS, CLASSES, dim=5)
        first, second = contrast(*batch).loss, contrast(*batch).loss
        assert first == without(*batch).loss
        assert second != first


class TestMultiScaleContrast(ContrastTester):
    name = "multiscale"

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        scales = []
        for window in (1, 2, 4):  # a window of 8 does not fit on 4 x 4 cells
            pixels = read_pixels(features, labels, window)
            scales.append([(embed(contrast, row), label) for _, row, label in pixels])
        within = [loop_nce(pixels, pixels, contrast.temperature, same=True) for pixels in scales]
        across = [loop_nce(scales[0], keys, contrast.temperature) for keys in scales[1:]]
        return 1.0 * within[0] + 0.7 * within[1] + 0.4 * within[2] + across[0] + across[1]

    def test_every_class_gives_what_it_has_beside_a_rare_one(self) -> None:
        features, labels, logits = self.make_batch()
        labels[:] = 0
        labels[:, :, 8 // 2 :] = 1
        labels[0, :2, :2] = 2  # one cell: it must not cap the others
        assert self.make(cross_weight=0.0)(features, labels, logits).diagnostics["hicl/anchors"] == 31

    def test_reads_several_maps_with_a_head_each(self) -> None:
        torch.manual_seed(0)
        contrast = build_contrast(
            "multiscale", [6, 4], CLASSES, dim=5, scale_weights=(1.0, 0.5), cross_weight=2.0
        )
        fine, labels, _ = self.make_batch()
        coarse = torch.randn(2, 4, 2, 2)
        heads = [contrast.embedding, *contrast.coarser_embeddings]
        scales = [
            [(head(row[None])[0], label) for _, row, label in read_pixels(maps, labels)]
            for head, maps in zip(heads, (fine, coarse), strict=True)
        ]
        within = [loop_nce(pixels, pixels, 0.1, same=True) for pixels in scales]
        expected = within[0] + 0.5 * within[1] + 2.0 * loop_nce(*scales, 0.1)
        loss = contrast([fine, coarse], labels).loss
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert all(parameter.grad is not None for parameter in contrast.parameters())
        with pytest.raises(ValueError, match=r"maps of \[6, 4\] channels"):
            contrast([coarse, fine], labels)

    def test_refuses_weights_that_do_not_fit_the_scales(self) -> None:
        with pytest.raises(ValueError, match="scale_weights must be 2"):
            self.make(scales=(1, 2))
        with pytest.raises(ValueError, match="scales must be ascending"):
            self.make(scales=(2, 1))


class TestRegionContrast(ContrastTester):
    name = "region"
    settings = {"bank_size": 3}

    def centres(self, contrast: Any, features: Tensor, labels: Tensor) -> Labelled:
        pixels = read_pixels(features, labels)
        regions = sorted({(image, label) for image, _, label in pixels})
        return [
            (embed(contrast, average([row for b, row, c in pixels if (b, c) == (image, label)])), label)
            for image, label in regions
        ]

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        pixels = [(embed(contrast, row), label) for _, row, label in read_pixels(features, labels)]
        return loop_nce(pixels, self.centres(contrast, features, labels), contrast.temperature)

    def test_remembers_the_centres_of_earlier_batches(self) -> None:
        contrast = self.make()
        features, labels, logits = self.make_batch()
        contrast(features, labels, logits)
        remembered = [(row.detach(), label) for row, label in self.centres(contrast, features, labels)]
        features = (features * 0.5 + 1).detach()
        pixels = [(embed(contrast, row), label) for _, row, label in read_pixels(features, labels)]
        keys = self.centres(contrast, features, labels) + remembered
        expected = loop_nce(pixels, keys, contrast.temperature)
        torch.testing.assert_close(contrast(features, labels, logits).loss, expected)


class TestRegionContrastOfRegions(TestRegionContrast):
    settings = {"bank_size": 3, "queries": "regions"}

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        centres = self.centres(contrast, features, labels)
        return loop_nce(centres, centres, contrast.temperature, same=True)

    def test_remembers_the_centres_of_earlier_batches(self) -> None:
        contrast = self.make()
        batch = self.make_batch()
        first, second = contrast(*batch), contrast(*batch)
        assert first.diagnostics["hicl/anchors"] == second.diagnostics["hicl/anchors"]
        assert first.loss != second.loss

    def test_refuses_other_queries(self) -> None:
        with pytest.raises(ValueError, match="queries must be"):
            self.make(queries="images")


class TestContextualContrast(ContrastTester):
    name = "contextual"
    settings = {"scales": (1, 2), "negatives": 40, "low_weight": 0.3, "high_weight": 0.7}

    def oracle(self, contrast: Any, features: Tensor, labels: Tensor, logits: Tensor | None) -> Tensor:
        scales = [read_pixels(features, labels, window) for window in (1, 2)]
        anchors: list[dict[int, Tensor]] = []
        for pixels in scales:
            rows = {label: [row for _, row, each in pixels if each == label] for _, _, label in pixels}
            anchors.append({label: embed(contrast, average(own)) for label, own in rows.items()})
        for label in anchors[0]:
            if label in anchors[1]:
                mixed = 0.3 * anchors[0][label] + 0.7 * anchors[1][label]
                anchors[0][label] = mixed / mixed.norm()
        losses = []
        for own, pixels in zip(anchors, scales, strict=True):
            keys = [(embed(contrast, row), label) for _, row, label in pixels]
            losses.append(loop_nce([(row, label) for label, row in own.items()], keys, contrast.temperature))
        return average(losses)

    def test_takes_negatives_from_the_boundary_of_wrong_regions(self) -> None:
        labels = torch.zeros(1, 16, 16, dtype=torch.long)
        labels[:, :, 8:] = 1
        logits = torch.nn.functional.one_hot(labels, 2).permute(0, 3, 1, 2).float()
        logits[0, :, 4:12, 0:8] = logits[0, :, 4:12, 0:8].flip(0)  # 64 pixels of class 0 taken for class 1
        features = torch.randn(1, CHANNELS, 16, 16)
        contrast = build_contrast(
            "contextual", CHANNELS, 2, scales=(1,), negatives=40, boundary_share=0.5, dim=5, anchors=512
        )
        # Of 40 negatives 20 are of class 0, all wrong; class 1 is predicted well and gives random ones.
        assert contrast(features, labels, logits).diagnostics["hicl/scale0/hard_share"] == 0.5
        anchors = [features[0, :, labels[0] == k].mean(1) for k in (0, 1)]
        edge = torch.zeros(16, 16, dtype=torch.bool)
        edge[4:12, 0:8] = True
        edge[5:11, 0:7] = False  # the 8 + 8 + 6 = 22 cells of distance 1; the 10 next ones are at distance 2
        assert edge.sum() == 22
        contrast = build_contrast(
            "contextual", CHANNELS, 2, scales=(1,), negatives=44, boundary_share=22 / 64, dim=5, anchors=512
        )
        figures = contrast(features, labels, logits).diagnostics
        assert figures["hicl/scale0/hard_share"] == 0.5
        similarities = [
            embed(contrast, anchors[1]) @ embed(contrast, row) for row in features[0, :, edge].T
        ]  # class 1's anchor meets exactly those 22
        with_class_1 = torch.stack(similarities).mean()
        shared = contrast.embedding(features[0, :, labels[0] == 1].T) @ embed(contrast, anchors[0])
        low, high = shared.sort().values[:22].mean(), shared.sort().values[-22:].mean()
        assert (with_class_1 + low) / 2 - 1e-5 <= figures["hicl/scale0/negative_similarity"]
        assert figures["hicl/scale0/negative_similarity"] <= (with_class_1 + high) / 2 + 1e-5

    def test_reads_several_maps(self) -> None:
        contrast = build_contrast("contextual", [6, 4], CLASSES, dim=5)
        fine, labels, logits = self.make_batch()
        loss = contrast([fine, torch.randn(2, 4, 2, 2)], labels, logits).loss
        loss.backward()
        assert loss.item() > 0
        assert all(parameter.grad is not None for parameter in contrast.parameters())

    @pytest.mark.parametrize(
        ("setting", "value"), [("negatives", 0), ("anchors", 0), ("reach", 0), ("boundary_share", 2)]
    )
    def test_refuses_settings_out_of_range(self, setting: str, value: int) -> None:
        with pytest.raises(ValueError, match=f"{setting} must"):
            self.make(**{setting: value})
