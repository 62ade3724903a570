"""Compute capabilities of GPUs, and the targets that TensorRT-RTX supports.

An RTX engine is built for a list of compute capabilities, without a GPU. Full TensorRT builds for
the GPU of the machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from save_deploy.errors import ExportError

RTX_TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120", "SM121")
DEFAULT_TARGETS = RTX_TARGETS[1:]  # without Turing, which has no FP32 and BF16 MatMuls
FP8_TARGETS = ("SM89", "SM120", "SM121")

# Normalized names (see _normalized) of common GPUs.
_GPUS = {
    "SM70": "V100 TITANV",
    "SM75": "T4 T400 T600 T1000 RTX2050 RTX2060 RTX2070 RTX2080 TITANRTX GTX1630 GTX1650 GTX1660 "
    "QUADRORTX3000 QUADRORTX4000 QUADRORTX5000 QUADRORTX6000 QUADRORTX8000",
    "SM80": "A100 A100X A800 A30",
    "SM86": "A2 A10 A10G A16 A40 RTX3050 RTX3060 RTX3070 RTX3080 RTX3090 RTXA500 RTXA1000 RTXA2000 "
    "RTXA3000 RTXA4000 RTXA4500 RTXA5000 RTXA5500 RTXA6000 A2000 A4000 A4500 A5000 A5500 A6000",
    "SM87": "ORIN ORINNANO ORINNX AGXORIN JETSONORIN JETSONAGXORIN JETSONORINNANO JETSONORINNX",
    "SM89": "L4 L20 L40 L40S RTX4050 RTX4060 RTX4070 RTX4080 RTX4090 RTX2000ADA RTX4000ADA "
    "RTX4500ADA RTX5000ADA RTX5880ADA RTX6000ADA",
    "SM90": "H20 H100 H200 H800 GH200 HOPPER",
    "SM100": "B100 B200 GB100 GB200",
    "SM103": "B300 GB300",
    "SM110": "THOR JETSONTHOR JETSONAGXTHOR",
    "SM120": "RTX5050 RTX5060 RTX5070 RTX5080 RTX5090 RTXPRO500 RTXPRO1000 RTXPRO2000 RTXPRO3000 "
    "RTXPRO4000 RTXPRO4500 RTXPRO5000 RTXPRO6000",
    "SM121": "GB10 DGXSPARK",
}
_CAPABILITY = {name: sm for sm, names in _GPUS.items() for name in names.split()}
# Words that do not change the compute capability.
_FILLER = re.compile(
    r"NVIDIA|GEFORCE|TESLA|TI|SUPER|LAPTOP|MOBILE|GPU|PCIE|NVL|SXM\d?|\d+GB?|HBM\d\w?|MAXQ|MAX|Q|D|"
    r"WORKSTATION|SERVER|EDITION|GENERATION|SPARK|SFF|BLACKWELL"
)


def capability_of(name: str) -> str:
    """Return `SM86` for `8.6`, `86`, `SM86`, `sm_86` or the name of a GPU.

    Raises ExportError for an unknown GPU.
    """
    text = name.strip().upper()
    number = re.fullmatch(r"(?:SM[_ ]?)?(\d{1,2})\.?(\d)", text)
    if number:
        return f"SM{number[1]}{number[2]}"
    found = _CAPABILITY.get(_normalized(text)) or _CAPABILITY.get(re.sub(r"[\s_-]", "", text))
    if found is None:
        raise ExportError(
            "unknown GPU",
            got=name,
            expected="a compute capability (8.6, SM86) or a name such as RTX 4090, L4, A100, T4",
            hint="look up the compute capability of the GPU: --for 8.6",
        )
    return found


def resolve(names: Iterable[str]) -> tuple[str, ...]:
    """Return the RTX targets of names or numbers of GPUs, in ascending order.

    Raises ExportError for a GPU that TensorRT-RTX does not support.
    """
    wanted = set()
    for name in names:
        target = capability_of(name)
        if target not in RTX_TARGETS:
            raise ExportError(
                "TensorRT-RTX has no such target",
                got=f"{name} ({target})",
                expected=", ".join(RTX_TARGETS),
                hint="use full TensorRT on that GPU: save-build BUNDLE --library tensorrt",
            )
        wanted.add(target)
    return tuple(t for t in RTX_TARGETS if t in wanted)


def _normalized(text: str) -> str:
    """Return a GPU name without words that do not change its compute capability.

    `NVIDIA A100-SXM4-80GB` -> `A100`; `GeForce RTX 4070 Ti SUPER` -> `RTX4070`.
    """
    words = re.sub(r"(\d)(TI|SUPER)\b", r"\1 \2", text)  # RTX 4070Ti
    parts = [w for w in re.split(r"[\s_-]+", words) if w and not _FILLER.fullmatch(w)]
    return "".join(parts)
