"""Errors shown to users. Text = what | got | expected | what to run next.

SaveDeployError            exit 1, usage or input
├── CheckpointError        a weight file that cannot be read or does not fit
├── DataError              an image, a sound or a dataset folder that cannot be used
├── ExportError            the bundle cannot be made
├── OutputError            a file or folder that cannot or may not be written
├── BundleError            a bundle that is incomplete, altered or of another version
├── ParityError            exit 2, accuracy or parity over budget
└── BackendError           exit 3, what was required is not on this machine
    └── UnknownBackend     exit 1, no backend has this name
"""

from __future__ import annotations


class SaveDeployError(Exception):
    """An error of usage or input; the command line prints it without a traceback."""

    exit_code = 1

    def __init__(self, what: str, *, got: str = "", expected: str = "", hint: str = "") -> None:
        self.what, self.got, self.expected, self.hint = what, got, expected, hint
        fields = {"got:": got, "expected:": expected, "next:": hint}
        lines = [what]
        for name, text in fields.items():
            lines += [f"  {name:9} {line}" for line in text.splitlines()[:1]]
            lines += [f"  {'':9} {line}" for line in text.splitlines()[1:]]
        super().__init__("\n".join(lines))


class CheckpointError(SaveDeployError):
    """A weight file that cannot be read, is not ours, or does not fit the configuration."""


class DataError(SaveDeployError):
    """An image, a sound or a dataset folder that cannot be used."""


class ExportError(SaveDeployError):
    """The bundle cannot be made."""


class OutputError(SaveDeployError):
    """A file or folder that cannot or may not be written."""


class BundleError(SaveDeployError):
    """A bundle that is incomplete, altered or of another format version."""


class ParityError(SaveDeployError):
    """Accuracy or parity over budget."""

    exit_code = 2


class BackendError(SaveDeployError):
    """A required library, provider or device is not on this machine."""

    exit_code = 3


class UnknownBackend(BackendError):
    """A name that no backend has: a mistake, whatever the machine."""

    exit_code = 1
