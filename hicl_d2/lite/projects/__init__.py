"""Detectron2's bundled projects, as far as this runtime has them: DeepLab's config keys and schedule."""
