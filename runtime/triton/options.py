"""Options of a Triton model repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from save_deploy.errors import SaveDeployError
from save_deploy.fields import check_word
from save_deploy.options import check_limits, option

ENGINES = ("onnxruntime", "openvino", "tensorrt", "python")
SERVER = "Server"


def _gpus(text: str) -> tuple[int, ...]:
    """Parse "0,1". Raises SaveDeployError for other text."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (-1,)
    if any(not 0 <= gpu < 1024 for gpu in found) or len(set(found)) < len(found):
        raise SaveDeployError("wrong --gpus", got=text[:80], expected="numbers of GPUs such as 0,1")
    return found


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """Options of a model repository.

    threads: CPU threads per instance; None divides the cores by the instances.
    gpus: () for the CPU.
    cores: cores of the server; None for those of this machine.
    tensorrt: TensorRT version of the server's container; "" if unknown.
    """

    bundle: Path = option(help="Folder written by save-export.")
    out: Path = option("--out", "-o", help="Folder of the model repository.")
    force: bool = option("--force", default=False, help="Replace an existing repository.")
    engine: str = option(
        "--engine", panel=SERVER, default="onnxruntime",
        help="Backend of the graphs: onnxruntime, openvino or tensorrt (Triton's own backends), or "
        "python (save-deploy in Triton's Python backend).",
    )  # fmt: skip
    instances: int = option(
        "--instances", panel=SERVER, default=1, low=1, high=256,
        help="Model instances: frames computed in parallel, per GPU.",
    )  # fmt: skip
    threads: int | None = option(
        "--threads", panel=SERVER, default=None, low=1, high=4096,
        help="CPU threads per instance. Default: cores divided by instances.",
    )  # fmt: skip
    gpus: tuple[int, ...] = option(
        "--gpus", panel=SERVER, default=(), parse=_gpus, metavar="0,1",
        help="GPUs for the model. Default: the CPU; for tensorrt GPU 0.",
    )  # fmt: skip
    cores: int | None = option(
        "--cores", panel=SERVER, default=None, low=1,
        help="Cores of the server. Default: those of this machine.",
    )  # fmt: skip
    tensorrt: str = option(
        "--server-tensorrt", panel=SERVER, default="", metavar="VERSION", default_text="",
        help="TensorRT version of the server's container. A plan of another version is refused.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_limits(self)
        check_word("engine", self.engine, ENGINES)
