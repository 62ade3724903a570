"""Window that shows masked frames."""

from __future__ import annotations

from typing import Any

from save_deploy.data.transforms import Frame
from save_deploy.errors import BackendError
from save_deploy.runtime.pictures import Color
from save_deploy.runtime.video.overlay import outlined
from save_deploy.runtime.video.sinks import MaskedFrame


class Window:
    """Window that shows frames with their masks. The user closes it, or presses Escape or q."""

    def __init__(self, title: str, color: Color) -> None:
        """Raise BackendError without tkinter or without a display."""
        self._root = _opened()
        import tkinter

        self._root.title(title)
        self._label = tkinter.Label(self._root, borderwidth=0)
        self._label.pack()
        self._open, self.color = True, color
        self._root.protocol("WM_DELETE_WINDOW", self._shut)
        for key in ("<Escape>", "q"):
            self._root.bind(key, lambda _: self._shut())

    def _shut(self) -> None:
        self._open = False
        self._root.withdraw()

    def is_open(self) -> bool:
        """Process the window's events and return True while it is open. Call it often."""
        self._root.update()
        return self._open

    def add(self, masked: MaskedFrame) -> None:
        if self.is_open():
            self._draw(outlined(masked.frame.picture, masked.mask, self.color))

    def _draw(self, picture: Frame) -> None:
        from PIL import Image, ImageTk

        self._picture = ImageTk.PhotoImage(Image.fromarray(picture), master=self._root)
        self._label.configure(image=self._picture)

    def finish(self) -> None: ...

    def close(self) -> None:
        self._root.destroy()


def check_display() -> None:
    """Raise BackendError if no window can be opened."""
    _opened().destroy()


def _opened() -> Any:
    try:
        import tkinter
    except ImportError as error:
        raise BackendError(
            "a window needs tkinter",
            got=str(error),
            hint="apt-get install python3-tk, or -o FILE",
        ) from error
    try:
        return tkinter.Tk()
    except tkinter.TclError as error:
        raise BackendError(
            "no display for a window", got=str(error), expected="a desktop", hint="-o FILE"
        ) from error
