"""Running: one command from a config to a trained, evaluated model, and what the trainer adds to
Detectron2's.

Importing this package loads nothing; ``hicl_d2.engine.cli`` alone stays free of torch, so that ``--help`` is
quick.
"""
