"""How many programs a pass is cut into, and how much of x each of them takes: a small table, no trials at run time.

x is seen as (group, plane, place). Contiguous x is one group of N * C planes whose places lie side by side;
channels-last x is N groups of C planes whose planes lie side by side. A program takes a tile of planes and places; the
passes that sum walk along the places with it, and where there are few planes each is cut into splits that are summed
apart and joined in a second, fixed order.

Nothing here depends on the device, so that the bits of a result do not either.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from shiftnorm.ops.eager import elements_per_plane

__all__ = [
    "Launch",
    "PixelLaunch",
    "SetLaunch",
    "View",
    "map_launch",
    "pixel_launch",
    "pixel_view",
    "programs",
    "set_launch",
    "sort_launch",
    "sum_launch",
    "view_of",
]

# Enough programs to fill the largest device at hand a few times over (an H200 has 132 multiprocessors).
_ENOUGH = 1024
# Partial results of a plane are joined in registers by one program.
_MOST_SPLITS = 256
# Elements of a tile: 16 for every thread, two 16-byte loads of a 16-bit type.
_TILE = 2048
_LARGE_TILE = 4096
# Where tiles are few, rather more of them than full ones, down to this size.
_SMALL_TILE = 512
# A program that walks so few tiles is not worth a second launch that joins splits.
_SHORT = 4
# Side of a channels-last tile along the channels: full 128-byte lines.
_CHANNELS = 64
# Elements that a program can keep in registers between reading and writing them, gradients beside them.
_ON_CHIP = 1 << 14
# What memory hands out at once; programs that share such pieces of it would read more than there is.
_SECTOR = 32
# Elements of a plane that a program sorts.
_MOST_SORTED = 1 << 12
# All of a pixel's channels are to fit on chip, together with those of enough pixels beside it.
_MOST_PIXEL_CHANNELS = 1024
# Offsets inside a tile are 32-bit.
_FAR = 1 << 31


class View(NamedTuple):
    """x as (group, plane, place): sizes; whether places lie side by side, or planes; what, up to 16, divides those.

    Example:
        >>> import torch
        >>> view_of(torch.zeros(2, 3, 4, 5))
        View(groups=1, planes=6, places=20, rows=True, unit=4)
    """

    groups: int
    planes: int
    places: int
    rows: bool
    unit: int


class Launch(NamedTuple):
    """One launch: the tile of a program, its warps, and how the places of a plane are cut.

    Example:
        >>> import torch
        >>> sum_launch(view_of(torch.zeros(1, 1, 1 << 20)))
        Launch(planes=1, places=2048, warps=4, segment=4096, splits=256)
    """

    planes: int
    places: int
    warps: int
    segment: int
    splits: int

    @property
    def is_single(self) -> bool:
        """Whether a program takes one tile and walks no further.

        Example:
            >>> import torch
            >>> sum_launch(view_of(torch.zeros(32, 64, 56, 56))).is_single
            True
        """
        return self.segment <= self.places


class SetLaunch(NamedTuple):
    """The launch of a kernel that keeps whole sets of planes on chip, ``sharing`` planes each, ``deep`` in the tile.

    Example:
        >>> import torch
        >>> set_launch(view_of(torch.zeros(32, 64, 14, 14)), sharing=2, itemsize=4)
        SetLaunch(sharing=2, deep=2, planes=2, places=256, warps=1, programs=1024)
    """

    sharing: int
    deep: int
    planes: int
    places: int
    warps: int
    programs: int


class PixelLaunch(NamedTuple):
    """The launch of a kernel that keeps all channels of some pixels on chip.

    Example:
        >>> import torch
        >>> pixel_launch(pixel_view(torch.zeros(32, 64, 56, 56)), itemsize=4)
        PixelLaunch(planes=64, places=32, warps=8, steps=8, splits=13)
    """

    planes: int
    places: int
    warps: int
    steps: int
    splits: int


def view_of(x: Tensor) -> View:
    """How the kernels see x, which is contiguous or channels-last.

    Example:
        >>> import torch
        >>> view_of(torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last))
        View(groups=2, planes=3, places=20, rows=False, unit=1)
    """
    n, c, size = int(x.shape[0]), int(x.shape[1]), int(elements_per_plane(x))  # a compiler's symbols become numbers
    if x.is_contiguous():
        return View(1, n * c, size, True, math.gcd(size, 16))
    return View(n, c, size, False, math.gcd(c, 16))


def pixel_view(x: Tensor) -> View:
    """How kernels see x that take a pixel's channels together: a group is a sample in either memory format.

    Example:
        >>> import torch
        >>> pixel_view(torch.zeros(2, 3, 4, 5))
        View(groups=2, planes=3, places=20, rows=True, unit=4)
    """
    view = view_of(x)
    samples = int(x.shape[0])
    return view._replace(groups=samples, planes=view.groups * view.planes // samples)


def sum_launch(view: View) -> Launch:
    """The launch of a pass that sums over planes.

    Example:
        >>> import torch
        >>> sum_launch(view_of(torch.zeros(32, 64, 56, 56)))  # a plane fits on chip
        Launch(planes=1, places=4096, warps=8, segment=4096, splits=1)
        >>> sum_launch(view_of(torch.zeros(64, 512, 7, 7)))
        Launch(planes=16, places=64, warps=4, segment=64, splits=1)
    """
    return _sum_launch(view.groups, view.planes, view.places, view.rows)


def map_launch(view: View) -> Launch:
    """The launch of a pass that maps x element by element; its splits are the tiles along the places.

    Example:
        >>> import torch
        >>> map_launch(view_of(torch.zeros(32, 64, 56, 56)))
        Launch(planes=1, places=2048, warps=4, segment=2048, splits=2)
    """
    return _map_launch(view.planes, view.places, view.rows)


def programs(view: View, launch: Launch) -> int:
    """How many programs a launch has.

    Example:
        >>> import torch
        >>> view = view_of(torch.zeros(32, 64, 56, 56))
        >>> programs(view, sum_launch(view))
        2048
    """
    return view.groups * launch.splits * _ceil(view.planes, launch.planes)


@lru_cache(maxsize=4096)
def set_launch(view: View, sharing: int, itemsize: int, room: int = _ON_CHIP) -> SetLaunch | None:
    """The launch of a kernel that takes whole sets of ``sharing`` planes, or None where none fits into ``room``.

    Example:
        >>> import torch
        >>> x = torch.zeros(32, 64, 56, 56)
        >>> set_launch(view_of(x), sharing=1, itemsize=4)
        SetLaunch(sharing=1, deep=1, planes=1, places=4096, warps=8, programs=2048)
        >>> set_launch(view_of(x), sharing=64, itemsize=4) is None
        True
    """
    deep, places = _power(sharing), _power(view.places)
    sets = view.planes // sharing
    if deep * places > room or (not view.rows and view.planes * view.places >= _FAR):
        return None

    def count(wide: int) -> int:
        return view.groups * _ceil(sets, wide)

    def line(wide: int) -> int:
        return min(wide, sets) * sharing * itemsize  # bytes that lie side by side where channels are last

    if view.rows:
        wide = min(max(_TILE // (deep * places), 1), _power(sets))
        while wide > 1 and wide * deep * places > _SMALL_TILE and count(wide) < 2 * _ENOUGH:
            wide //= 2
    else:
        wide = min(max(_CHANNELS // deep, 1), _power(sets))
        # Half of what fits, if that leaves whole sectors: two programs then share a multiprocessor. And where lanes of
        # the tile are idle, addresses take as many registers as values.
        most = room if deep == sharing else room // 2
        while wide > 1 and (wide * deep * places > most or (wide * deep * places > room // 2 and line(wide) > _SECTOR)):
            wide //= 2
        while wide > 1 and wide * deep * places > _SMALL_TILE and count(wide) < _ENOUGH and line(wide) > 2 * _SECTOR:
            wide //= 2
        if wide * deep * places > most or (wide < sets and line(wide) < _SECTOR):
            return None
    elements = wide * deep * places
    warps = 16 if elements > _ON_CHIP // 2 else max(1, min(8, elements // 512))
    return SetLaunch(sharing, deep, wide * deep, places, warps, count(wide))


def sort_launch(view: View, itemsize: int) -> SetLaunch | None:
    """The launch of a kernel that sorts planes, or None where these are too large.

    Example:
        >>> import torch
        >>> sort_launch(view_of(torch.zeros(32, 64, 56, 56)), itemsize=4)
        SetLaunch(sharing=1, deep=1, planes=1, places=4096, warps=16, programs=2048)
    """
    if view.places > _MOST_SORTED:
        return None
    launch = set_launch(view, 1, itemsize, _MOST_SORTED)
    if launch is None:
        return None
    # Keys of 64 bits, and the instructions to compare them, are spread over more threads.
    return launch._replace(warps=max(1, min(16, launch.planes * launch.places // 256)))


@lru_cache(maxsize=4096)
def pixel_launch(view: View, itemsize: int) -> PixelLaunch | None:
    """The launch of a kernel that takes all channels of some pixels, or None where they do not fit on chip.

    Where it sums over planes, a program takes ``steps`` tiles, one after the other.

    Example:
        >>> import torch
        >>> x = torch.zeros(32, 256, 28, 28)
        >>> pixel_launch(pixel_view(x), itemsize=2)
        PixelLaunch(planes=256, places=16, warps=8, steps=7, splits=7)
        >>> pixel_launch(pixel_view(torch.zeros(1, 4000, 2)), itemsize=2) is None
        True
    """
    planes = _power(view.planes)
    if planes > _MOST_PIXEL_CHANNELS or view.planes * view.places >= _FAR:
        return None
    places = max(_TILE // planes, 4)
    if view.rows:  # whole lines of every channel, or whole sectors, as far as registers go
        line = 2 * _SECTOR // itemsize
        places = max(places, line if planes * line <= _LARGE_TILE else line // 2)
        # Elements that are loaded in small pieces take registers for their addresses.
        most = _LARGE_TILE * 2 if view.unit >= 8 else _LARGE_TILE if view.unit >= 4 else _TILE
        places = min(places, most // planes)
    places = min(places, _power(view.places))
    tiles = _ceil(view.places, places)
    steps = _ceil(tiles, min(_ceil(_ENOUGH, view.groups), _ceil(tiles, 2 * _SHORT)))
    each = 16 if itemsize < 4 and view.unit >= 4 else 8  # elements of a thread
    warps = max(1, min(16, planes * places // (32 * each)))
    return PixelLaunch(planes, places, warps, steps, _ceil(tiles, steps))


@lru_cache(maxsize=4096)
def _sum_launch(groups: int, planes: int, places: int, rows: bool) -> Launch:
    tile = _tile(planes, places, rows, _LARGE_TILE)
    if not rows and tile[1] < places <= _TILE // 32:  # half a line of channels, and the plane in one tile
        tile = min(32, tile[0]), _power(places), 4
    columns, pieces = groups * _ceil(planes, tile[0]), _ceil(places, tile[1])
    wanted = min(_ceil(_ENOUGH, columns), _ceil(pieces, 2), _MOST_SPLITS)
    if pieces <= (_SHORT if columns < _ENOUGH // 4 else 2 * _SHORT):  # over before a second launch had begun
        wanted = 1
    segment = _ceil(pieces, wanted) * tile[1]
    return Launch(*tile, segment, _ceil(places, segment))


@lru_cache(maxsize=4096)
def _map_launch(planes: int, places: int, rows: bool) -> Launch:
    tile = _tile(planes, places, rows, _TILE)
    return Launch(*tile, tile[1], _ceil(places, tile[1]))


def _tile(planes: int, places: int, rows: bool, largest: int) -> tuple[int, int, int]:
    """Planes, places and warps of a tile."""
    if rows and places > _TILE // 2:
        length = _power(places) if places <= largest else _TILE
        return 1, length, 8 if length > _TILE else 4
    if rows:
        length = _power(places)
        height = min(_TILE // length, _power(planes))
        while height > 1 and height * length > _SMALL_TILE and _ceil(planes, height) < 2 * _ENOUGH:
            height //= 2
        return height, length, _warps(height * length)
    width = min(_CHANNELS, _power(planes))
    length = min(_power(places), _TILE // width)
    return width, length, _warps(width * length)


def _warps(elements: int) -> int:
    return max(1, min(4, elements // 128))


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _power(size: int) -> int:
    return 1 << (size - 1).bit_length()
