"""Panoptic-DeepLab: its semantic head, and the config keys of Detectron2's whole model."""
