"""Backbones that the project adds to Detectron2's."""
