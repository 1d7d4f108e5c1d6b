"""Backbones of transformers."""
