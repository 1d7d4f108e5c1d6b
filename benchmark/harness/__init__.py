"""What run_matrix.py is made of.

It knows neither torch nor the package that it measures: it starts a training script for each cell of a matrix
and reads the ``result.json`` that the script leaves. State is files; running again does what is missing.
"""
