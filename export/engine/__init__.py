"""TensorRT engines: options, build in a separate process, and a receipt of the built kernels.

result = build_engine(Path("model.onnx"), Path("model.rtx.plan"), BuildOptions(library="rtx"))
result.receipt.fused, result.receipt.kernels_by_type
"""

from save_deploy.export.engine.add import EnginePlan, add_engine, plan_engine
from save_deploy.export.engine.build import BuildResult, build_engine
from save_deploy.export.engine.library import engine_for, why_no_engine
from save_deploy.export.engine.options import BuildOptions
from save_deploy.export.engine.receipt import Allow, Receipt, failures

__all__ = [
    "Allow",
    "BuildOptions",
    "BuildResult",
    "EnginePlan",
    "Receipt",
    "add_engine",
    "build_engine",
    "engine_for",
    "failures",
    "plan_engine",
    "why_no_engine",
]
