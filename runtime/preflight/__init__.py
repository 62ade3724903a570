"""May an engine run on this machine? Answered from its manifest entry before it is read.

`rules.json` holds what the rules need beside the entry, so that a runtime in another language
applies the same ones.
"""

from save_deploy.runtime.preflight.engine import engine_refusals, engine_validity
from save_deploy.runtime.preflight.files import check_file
from save_deploy.runtime.preflight.machine import Gpu, Machine, probe_machine
from save_deploy.runtime.preflight.rules import Refusal, check, needed_bytes, refusal_error

__all__ = [
    "Gpu",
    "Machine",
    "Refusal",
    "check",
    "check_file",
    "engine_refusals",
    "engine_validity",
    "needed_bytes",
    "probe_machine",
    "refusal_error",
]
