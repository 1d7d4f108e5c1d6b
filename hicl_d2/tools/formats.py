"""The formats of ``hicl export``: each writes a model to a file and returns a function that runs the file.

The arguments are the model, an example image (1, 3, H, W) of the only size that the file will take, the file, and its
metadata.
"""

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Run = Callable[[Tensor], Tensor]
# Name of the metadata in a TorchScript or torch.export file; of ONNX they are the model's properties.
METADATA_FILE = "metadata.json"


def write_onnx(model: nn.Module, example: Tensor, file: Path, metadata: dict[str, Any]) -> Run:
    """Write one ONNX file, weights in it, with the metadata as properties of the model."""
    import onnxruntime
    import onnxscript  # noqa: F401 - torch's exporter needs it, and says so at length where it is missing

    with _quiet():
        program = torch.onnx.export(
            model,
            (example,),
            dynamo=True,
            input_names=["image"],
            output_names=["scores"],
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(as_text(metadata))
    program.save(str(file), external_data=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def write_torchscript(model: nn.Module, example: Tensor, file: Path, metadata: dict[str, Any]) -> Run:
    """Write a traced TorchScript file."""
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(model, (example,), check_trace=False)
        content = BytesIO()  # torch's own writer ends the process where the disk is full
        torch.jit.save(traced, content, _extra_files={METADATA_FILE: json.dumps(metadata)})
        file.write_bytes(content.getbuffer())
        loaded = torch.jit.load(str(file))
    return _without_gradients(loaded)


def write_torch_export(model: nn.Module, example: Tensor, file: Path, metadata: dict[str, Any]) -> Run:
    """Write a program of torch.export, which torch alone loads: ``torch.export.load(file).module()(image)``."""
    with _quiet(), torch.no_grad():
        program = torch.export.export(model, (example,))
        content = BytesIO()
        torch.export.save(program, content, extra_files={METADATA_FILE: json.dumps(metadata)})
        file.write_bytes(content.getbuffer())
        with file.open("rb") as stream:
            loaded = torch.export.load(stream).module()
    return _without_gradients(loaded)


FORMATS: dict[str, Callable[[nn.Module, Tensor, Path, dict[str, Any]], Run]] = {
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "torch_export": write_torch_export,
}


def as_text(content: dict[str, Any]) -> dict[str, str]:
    """Return metadata as text by name: text as it is, all else as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in content.items()}


def _without_gradients(module: Callable[[Tensor], Tensor]) -> Run:
    def run(image: Tensor) -> Tensor:
        with torch.no_grad():
            return module(image)

    return run


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep exporters' warnings about themselves from the console."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
