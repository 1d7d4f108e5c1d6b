"""What run_matrix.py is made of.

It knows nothing of torch and of the models that it compares: it starts a training script for each cell of a matrix
and reads the ``result.json`` that the script leaves. State is files; running again does what is missing. Errors, whole
files, console, signals and YAML are those of ``hicl_d2.command``.
"""

from hicl_d2.command.shipped import HOME

ROOT = HOME
TRAIN_SCRIPT = ROOT / "projects" / "HiCL" / "train_net.py"
