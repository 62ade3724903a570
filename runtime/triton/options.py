"""What a Triton model repository is made of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from save_deploy.errors import SaveDeployError
from save_deploy.options import option

ENGINES = ("onnxruntime", "openvino", "tensorrt", "python")
SERVER = "Server"


def _gpus(text: str) -> tuple[int, ...]:
    """Raises SaveDeployError for what is no list of numbers."""
    try:
        found = tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        found = (-1,)
    if any(not 0 <= gpu < 1024 for gpu in found) or len(set(found)) < len(found):
        raise SaveDeployError("wrong --gpus", got=text[:80], expected="numbers of GPUs such as 0,1")
    return found


@dataclass(frozen=True, kw_only=True)
class TritonOptions:
    """threads None: the cores shared out over the instances; gpus empty: the CPU; cores None: as many
    as this machine has; tensorrt: version in the server's container, empty for not known."""

    bundle: Path = option(help="Folder written by save-export.")
    out: Path = option("--out", "-o", help="Folder of the model repository.")
    force: bool = option("--force", default=False, help="Replace a repository that exists.")
    engine: str = option(
        "--engine", panel=SERVER, default="onnxruntime",
        help="What runs the graphs: onnxruntime, openvino or tensorrt (Triton's own backends), or "
        "python (save-deploy inside Triton's Python backend).",
    )  # fmt: skip
    instances: int = option(
        "--instances", panel=SERVER, default=1, low=1, high=256,
        help="Frames computed at a time, on each GPU.",
    )  # fmt: skip
    threads: int | None = option(
        "--threads", panel=SERVER, default=None, low=1, high=4096,
        help="CPU threads of an instance. Default: the cores shared out.",
    )  # fmt: skip
    gpus: tuple[int, ...] = option(
        "--gpus", panel=SERVER, default=(), parse=_gpus, metavar="0,1",
        help="GPUs that run the model. Default: the CPU; for tensorrt GPU 0.",
    )  # fmt: skip
    cores: int | None = option(
        "--cores", panel=SERVER, default=None, low=1,
        help="Cores of the server. Default: those of this machine.",
    )  # fmt: skip
    tensorrt: str = option(
        "--server-tensorrt", panel=SERVER, default="", metavar="VERSION", default_text="",
        help="TensorRT of the server's container: a plan of another one is refused.",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise SaveDeployError(
                "unknown engine", got=self.engine[:80], expected=", ".join(ENGINES)
            )
