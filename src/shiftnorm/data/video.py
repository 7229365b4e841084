"""Frames of a video, decoded by PyAV where it is installed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from shiftnorm.data.decode import UnreadableImage

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["decode_video", "import_av"]


def import_av() -> ModuleType:
    """PyAV, or an error that says how to get it.

    Example:
        >>> import sys
        >>> sys.modules["av"] = None  # as if it were not installed
        >>> import_av()
        Traceback (most recent call last):
        ...
        ModuleNotFoundError: open_sequences: videos are decoded by PyAV, which is not installed (torchvision ...
        >>> del sys.modules["av"]

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        import av  # pyright: ignore[reportMissingImports]  (of no extra: only this needs it)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "open_sequences: videos are decoded by PyAV, which is not installed (torchvision no longer reads videos): "
            "pip install av; or unpack the frames of each video into a folder of pictures, "
            "PERTURBATION/CLASS/SEQUENCE/FRAME.png"
        ) from error
    return av


def decode_video(path: Path) -> list[Image]:
    """Every frame of a video's first picture stream, as RGB.

    Example:
        >>> decode_video(Path("nowhere.mp4"))
        Traceback (most recent call last):
        ...
        shiftnorm.data.decode.UnreadableImage: it does not exist; a broken link?

    Args:
        path: the file.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        UnreadableImage: the file cannot be decoded, or has no frame.
    """
    if not path.is_file():
        raise UnreadableImage("it does not exist; a broken link?")
    av = import_av()
    try:
        with av.open(str(path)) as container:
            frames = [frame.to_image() for frame in container.decode(video=0)]
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise UnreadableImage(f"it is damaged or no video ({error})") from error
    if not frames:
        raise UnreadableImage("it has no frame")
    return [frame.convert("RGB") for frame in frames]
