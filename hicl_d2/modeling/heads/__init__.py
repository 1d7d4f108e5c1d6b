"""Semantic heads: DeepLab and the semantic half of Panoptic-DeepLab."""
