"""Hi-CL on a segmentation model of transformers: a small SegFormer from scratch, fine-tuned on generated images.

    python examples/transformers_segformer.py --steps 20

With weights of your own: SegformerForSemanticSegmentation.from_pretrained(FOLDER, num_labels=3, ignore_mismatched_sizes=True).
"""

import argparse

import torch
from plain_pytorch import CLASSES, make_batch
from transformers import SegformerConfig, SegformerForSemanticSegmentation

from hicl_d2.contrast import attach


def main() -> None:
    """Train, and show both losses."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = SegformerConfig(
        depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 64, 128], decoder_hidden_size=64, num_labels=CLASSES
    )
    model = SegformerForSemanticSegmentation(config).train()
    branch = attach(
        model,
        feature="decode_head.classifier",
        logits="decode_head.classifier",
        num_classes=CLASSES,
        windows=(1, 2, 4),
        warmup_iters=10,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(args.steps):
        images, labels = make_batch(step)
        segmentation = model(pixel_values=images, labels=labels).loss
        contrast = branch.loss(labels)
        optimizer.zero_grad()
        (segmentation + contrast).backward()
        optimizer.step()
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: segmentation {segmentation.item():.3f}, contrast {contrast.item():.3f}")  # noqa: T201
    plain = branch.detach()  # the model as transformers knows it
    print(f"{type(plain).__name__} with {sum(p.numel() for p in plain.parameters()):,} parameters")  # noqa: T201


if __name__ == "__main__":
    main()
