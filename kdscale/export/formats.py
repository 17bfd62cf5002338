"""Files of a deployed network: ONNX, a torch.export program, safetensors; and an ONNX file in int8."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from kdscale.errors import ConfigError
from kdscale.export.deployed import Part

__all__ = ["FORMATS", "OPSET", "Session", "quantise", "write_onnx", "write_pt2", "write_safetensors"]

FORMATS = ("safetensors", "pt2", "onnx")
OPSET = 20
_MISSING = "needs onnx, onnxscript and onnxruntime: pip install 'kdscale[export]'"


def write_safetensors(model: nn.Module, path: Path) -> None:
    """Write the bare model's parameters and buffers under their own names."""
    path.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}))


def write_pt2(part: Part, path: Path) -> None:
    """Write a torch.export program with any batch size."""
    torch.export.save(_exported(part), path)


def write_onnx(part: Part, path: Path) -> None:
    """Write an ONNX file with any batch size, weights inside. Raises: ConfigError when onnx is not installed."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--format onnx {_MISSING}") from error
    with _quietly():
        program = torch.onnx.export(
            _exported(part), (part.example,), dynamo=True, opset_version=OPSET, input_names=[part.input],
            output_names=[part.output], external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(path, external_data=False)


def _exported(part: Part) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        return torch.export.export(part.module, (part.example,), dynamic_shapes=({0: batch},), strict=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's words on its own inside."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class Session:
    """An ONNX file that answers tensors, on the CPU, on as many threads as torch has."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigError(f"--format onnx {_MISSING}") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def __call__(self, given: Tensor) -> Tensor:
        """The first output for one input."""
        return torch.from_numpy(self._session.run(None, {self._input: given.numpy()})[0])


def quantise(path: Path, out: Path, batches: Sequence[Tensor]) -> None:
    """Write an ONNX file whose weights and activations are int8, ranges taken from some batches of images.

    Static, per channel, as pairs of QuantizeLinear and DequantizeLinear, which every runtime reads.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(batches)

        def get_next(self) -> dict[str, object] | None:
            batch = next(self._left, None)
            return None if batch is None else {"images": batch.numpy()}

    prepared = out.with_suffix(".prepared.onnx")
    try:
        with _quietly():
            quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared), str(out), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                weight_type=QuantType.QInt8, activation_type=QuantType.QInt8,
            )  # fmt: skip
    finally:
        prepared.unlink(missing_ok=True)
