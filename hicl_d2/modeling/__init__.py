"""Models: a folder each, with the module, its config keys and its own checks.

Importing this package loads nothing; ``hicl_d2.modeling.models`` registers them all.
"""
