"""Meta-architectures: whole models, from a list of inputs to losses or predictions."""
