"""Convert the name of a live source to the arguments of FFmpeg."""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from save_deploy.data.film import url_of
from save_deploy.errors import DataError

EXPECTED = (
    "camera, rtsp:// or another address, FORMAT:DEVICE such as v4l2:/dev/video0, a file, or -"
)
# FFmpeg formats whose inputs are named FORMAT:DEVICE
DEVICES = ("v4l2", "alsa", "avfoundation", "dshow", "lavfi", "x11grab", "gdigrab", "pulse", "jack")
# Streams are probed for one second and read without buffering. RTSP uses TCP, because lost UDP packets
# give gray frames.
_QUICK = {"fflags": "nobuffer", "flags": "low_delay", "analyzeduration": "1000000"}
_OF = {"rtsp": {"rtsp_transport": "tcp"}, "v4l2": {"timestamps": "abs"}}
_ADDRESS = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>.+)", re.IGNORECASE)


@dataclass(frozen=True)
class Place:
    """One input.

    url, format, options: arguments of av.open.
    paced: a file, which is read at its own speed.
    ends: the input is finished at its end; other inputs count as lost and are retried.
    """

    name: str
    url: str
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    paced: bool = False
    ends: bool = False


def places_of(source: str, microphone: str | None = None) -> tuple[Place, ...]:
    """Return the input of the frames, and the input of the sound if it is separate.

    Raises DataError for a missing file, and for `camera` on systems without a common camera name.
    """
    if re.fullmatch(r"camera(:\d+)?", source):
        pictures, sound = _camera(int(source.partition(":")[2] or 0))
        microphone = microphone or sound
    else:
        pictures = _place(source)
    return (pictures,) if microphone is None else (pictures, _place(microphone))


def _camera(number: int) -> tuple[Place, str | None]:
    """Return a camera, and the microphone if it is a separate device."""
    if sys.platform == "linux":
        return _device("v4l2", f"/dev/video{number}"), "alsa:default"
    if sys.platform == "darwin":
        return _device("avfoundation", f"{number}:default"), None
    raise DataError(
        "cameras have no common name on this system",
        got=sys.platform,
        expected="its name",
        hint='"dshow:video=NAME:audio=NAME"; ffmpeg -list_devices true -f dshow -i dummy lists them',
    )


def _place(text: str) -> Place:
    if text in ("-", "pipe:0"):
        return Place("standard input", "pipe:0", ends=True)
    kind, _, rest = text.partition(":")
    if kind in DEVICES and rest:
        return _device(kind, rest)
    if not Path(text).exists() and (found := _ADDRESS.fullmatch(text)):
        # Path reduces the two slashes of an address to one
        scheme = found["scheme"].lower()
        url = f"{scheme}://{found['rest']}"
        return Place(_without_password(url), url, options={**_QUICK, **_OF.get(scheme, {})})
    return _file(text)


def _file(text: str) -> Place:
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise DataError("live source not found", got=text, expected=EXPECTED) from None
    if stat.S_ISDIR(mode):
        raise DataError("live source is a folder", got=text, expected=EXPECTED)
    if stat.S_ISCHR(mode):
        return _device("v4l2", text)
    return Place(text, url_of(path), paced=stat.S_ISREG(mode), ends=True)


def _device(kind: str, name: str) -> Place:
    return Place(f"{kind}:{name}", name, kind, {**_QUICK, **_OF.get(kind, {})})


def _without_password(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
