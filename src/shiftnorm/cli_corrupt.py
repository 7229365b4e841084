"""The verb that writes corrupted copies of a data set, and the options by which verbs open one."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftnorm.cli_verb import add_on_error, add_verb, require, speaking_of_options, stopping_politely
from shiftnorm.result_folder import check_writable, plain_faults

if TYPE_CHECKING:
    from shiftnorm.data import Dataset

__all__ = [
    "add_corrupt_verb",
    "add_corruption_options",
    "add_data_options",
    "named_corruptions",
    "open_images",
]

GROUPS = ("common", "extra", "all")
# The published layouts with the strengths that were used for them.
LAYOUTS = {"cifar-c": "cifar32", "imagenet-c": "imagenet224"}
CORRUPTED = ("cifar10-c", "cifar100-c", "imagenet-c")
LINE_SECONDS = 10.0


def add_data_options(verb: argparse.ArgumentParser) -> None:
    """Add the options that say how images are read.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_data_options(parser)
        >>> parser.parse_args(["--split", "train", "--limit", "5"]).limit
        5

    Args:
        verb: the parser of a verb.
    """
    group = verb.add_argument_group("how the images are read")
    group.add_argument("--root", metavar="DIR", help="where a data set given by its name lies (or $SHIFTNORM_DATA)")
    group.add_argument("--download", action="store_true", help="get a data set given by its name, where possible")
    group.add_argument("--split", choices=("train", "val", "test", "all"), help="which part (default: test)")
    group.add_argument("--domain", metavar="NAME", help="only this domain of a data set that has several")
    group.add_argument(
        "--preprocess", metavar="STEPS", help="such as resize256-crop224, resize224x224 or none (default: none if all "
        "images have one size, else resize256-crop224)"
    )  # fmt: skip
    group.add_argument("--limit", type=int, metavar="N", help="use at most so many images per class")
    add_on_error(group)


def add_corruption_options(verb: argparse.ArgumentParser, *, constants: str) -> None:
    """Add the options that say how images are corrupted.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_corruption_options(parser, constants="by the size of the images")
        >>> parser.parse_args(["--severities", "1", "5"]).severities
        [1, 5]

    Args:
        verb: the parser of a verb.
        constants: the default, in words.
    """
    group = verb.add_argument_group("how the images are corrupted")
    group.add_argument(
        "--corruptions", nargs="+", metavar="NAME", default=["common"],
        help="common (the 15 of the published benchmarks, default), extra (4 more), all, or names",
    )  # fmt: skip
    group.add_argument("--severities", nargs="+", type=int, metavar="N", default=[1, 2, 3, 4, 5], help="of 1 to 5")
    group.add_argument(
        "--constants", metavar="SET",
        help=f"the strengths: cifar32, tiny64, imagenet224 or inception299 (default: {constants})",
    )  # fmt: skip
    group.add_argument(
        "--frost-dir", metavar="DIR", help="the authors' photographs of frost; without, frost is made procedurally"
    )
    group.add_argument(
        "--storage", choices=("default", "jpeg85", "none"), default="default",
        help="what the images pass through afterwards (default: as in the published set with these constants)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the corruptions (default: 0)")


def named_corruptions(options: argparse.Namespace) -> tuple[str, ...]:
    """The corruptions that ``--corruptions`` stands for, checked.

    Example:
        >>> named_corruptions(argparse.Namespace(corruptions=["extra", "fog"], frost_dir=None))
        ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate', 'fog')

    Raises:
        ValueError: for an unknown name, names with commas, or a severity that there is not.
    """
    from shiftnorm.data.corruptions import SEVERITIES, choose_corruptions

    given: list[str] = [name.replace("-", "_") for name in options.corruptions]
    wrong = [each for each in getattr(options, "severities", ()) if each not in SEVERITIES]
    if wrong:
        raise ValueError(f"expected --severities from 1 to 5, got {wrong[0]}.")
    if joined := [name for name in given if "," in name]:
        raise ValueError(f"expected --corruptions with blanks between the names, got {joined[0]!r}.")
    names: list[str] = []
    for name in given:
        names += choose_corruptions(name if name in GROUPS else [name], frost_dir=options.frost_dir)
    if "frost" in names and options.frost_dir is None:
        raise ValueError(
            "frost needs the authors' photographs, which are not shipped: give their folder by --frost-dir, or use "
            "frost_procedural."
        )
    return tuple(dict.fromkeys(names))


def open_images(options: argparse.Namespace) -> Dataset:
    """Open the images that the options name.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> for name in ("cat", "dog"):
        ...     folder = Path(tempfile.gettempdir()) / "pets" / name
        ...     folder.mkdir(parents=True, exist_ok=True)
        ...     Image.new("RGB", (32, 32)).save(folder / "0.png")
        >>> parser = argparse.ArgumentParser()
        >>> parser.add_argument("--data") and add_data_options(parser)
        >>> open_images(parser.parse_args(["--data", str(folder.parent)])).classes
        ('cat', 'dog')

    Args:
        options: with ``data`` and those of `add_data_options`.

    Returns:
        The data set.
    """
    from shiftnorm.data import open_dataset

    given = {"domain": options.domain, "wnids": getattr(options, "wnids", None)}
    if options.data in CORRUPTED:
        raise ValueError(
            f"{options.data} is corrupted already, and corruptions are made from clean images: give "
            f"{options.data.removesuffix('-c')}. As it is, it is measured by shiftnorm evaluate MODEL --data "
            f"{options.data}."
        )
    with speaking_of_options():
        if options.limit is not None and options.limit < 1:
            raise ValueError(f"expected --limit to be at least 1 image per class, got {options.limit}.")
        dataset = open_dataset(
            options.data,
            options.root,
            options.split or "test",
            preprocess=options.preprocess or "auto",
            on_error=options.on_error,
            download=options.download,
            **{key: value for key, value in given.items() if value is not None},
        )
    return dataset if options.limit is None else dataset.limit(options.limit)


def add_corrupt_verb(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verb corrupt.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_corrupt_verb(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        >>> parser.parse_args(["corrupt", "photos", "--out", "photos-c"]).data
        'photos'

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
    """
    corrupt = add_verb(
        verbs,
        common,
        "corrupt",
        help="write corrupted copies of images in the layouts of CIFAR-10-C and ImageNet-C",
        description="Write corrupted copies of a folder of images, or of a data set by its name, in one of the "
        "published layouts. Interrupted at any moment, the same command continues; nothing of others is overwritten.",
        examples=[
            "corrupt cifar10 --root DIR --out CIFAR-10-C",
            "corrupt photos --out photos-c --corruptions fog snow --severities 3 --limit 20",
            "corrupt imagenet --root DIR --split val --out ImageNet-C --frost-dir DIR",
            "corrupt --out photos-c --verify",
        ],
    )
    corrupt.usage = "shiftnorm corrupt DATA --out DIR [options]"
    corrupt.add_argument("data", nargs="?", metavar="DATA", help="a folder or archive of images, or a data set's name")
    corrupt.add_argument("--out", metavar="DIR", help="where the copies go: a new folder, or one to continue in")
    corrupt.add_argument(
        "--layout", choices=tuple(LAYOUTS), help="cifar-c: CORRUPTION.npy and labels.npy (default for cifar10 and "
        "cifar100); imagenet-c: CORRUPTION/SEVERITY/CLASS/FILE (default for all others)"
    )  # fmt: skip
    corrupt.add_argument("--verify", action="store_true", help="only compare the files in --out with their checksums")
    add_corruption_options(corrupt, constants="cifar32 for cifar-c, imagenet224 for imagenet-c")
    add_data_options(corrupt)
    corrupt.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that decode images (default: 0)"
    )
    corrupt.set_defaults(run=_corrupt)


def _corrupt(options: argparse.Namespace) -> int:
    if options.out is None:
        raise ValueError("corrupt: expected --out DIR, where the copies go.")
    with speaking_of_options(), plain_faults("corrupt", Path(options.out)):
        return _verify(Path(options.out)) if options.verify else _make(options, Path(options.out))


def _make(options: argparse.Namespace, out: Path) -> int:
    require("corrupt", "numpy", "PIL")
    check_writable(out, "corrupt")
    if options.data is None:
        raise ValueError("corrupt: expected DATA, a folder of images or a data set's name, such as cifar10.")
    names = named_corruptions(options)
    from shiftnorm.data.materialise import corrupt_cifar, corrupt_folder

    layout = options.layout or ("cifar-c" if options.data in ("cifar10", "cifar100") else "imagenet-c")
    if layout == "cifar-c" and sorted(options.severities) != [1, 2, 3, 4, 5]:
        raise ValueError("corrupt: the files of --layout cifar-c hold all five severities; leave out --severities.")
    constants = options.constants or LAYOUTS[layout]
    dataset = open_images(options)
    from shiftnorm.evaluate.progress import plural

    counted = f"{len(dataset):,} {plural('image', len(dataset))} of {dataset.name}"
    print(f"{counted}, {len(names)} {plural('corruption', len(names))}, strengths {constants}", flush=True)
    shared: dict[str, Any] = {
        "corruptions": names,
        "constants": constants,
        "frost_dir": options.frost_dir,
        "storage": options.storage,
        "seed": options.seed,
        "workers": options.workers,
    }
    with speaking_of_options(), stopping_politely(), _shown("image") as show:
        if layout == "cifar-c":
            made = corrupt_cifar(dataset, out, **shared, on_progress=show)
        else:
            made = corrupt_folder(dataset, out, **shared, severities=options.severities, on_progress=show)
    for item in dataset.skipped:
        print(f"left out: {item}")
    before = f", {made.found:,} {'was' if made.found == 1 else 'were'} there" if made.found else ""
    wrote = f"Wrote {made.made:,} corrupted {plural('image', made.made)} to {out}{before}"
    print(f"{wrote}. Check what is there: shiftnorm corrupt --out {out} --verify")
    return 0


def _verify(out: Path) -> int:
    from shiftnorm.data.made_folder import verify_folder
    from shiftnorm.evaluate.progress import plural

    found = verify_folder(out)
    for each in found.damaged:
        print(each)
    for each in found.unfinished:
        print(f"{each}: not finished; repeat the command that makes it")
    if found.good:
        one = found.files == 1
        print("The one file is as it was made." if one else f"All {found.files:,} files are as they were made.")
        return 0
    parts = f"{len(found.unfinished)} {plural('part', len(found.unfinished))} not finished"
    print(
        f"shiftnorm: {len(found.damaged)} of {found.files:,} files are damaged, {parts}. Delete damaged files and "
        "repeat the command that made them.",
        file=sys.stderr,
    )
    return 1


@contextmanager
def _shown(unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on a terminal with tqdm, else a line now and then, with the time left."""
    began, last, first = time.monotonic(), time.monotonic(), -1
    bar: Any = None
    if sys.stderr.isatty():
        try:
            from tqdm import tqdm

            bar = tqdm(unit=unit, smoothing=0.05, dynamic_ncols=True)
        except ModuleNotFoundError:
            bar = None

    def show(done: int, total: int, what: str) -> None:
        nonlocal last, first
        now = time.monotonic()
        if first < 0:
            first = done
        if bar is not None:
            if bar.total != total:
                bar.reset(total)
                bar.initial = bar.n = done
            bar.set_postfix_str(what, refresh=False)
            bar.update(done - bar.n)
        elif now - last >= LINE_SECONDS and done > first:
            from shiftnorm.evaluate.progress import plural, spell_seconds

            last = now
            left = spell_seconds((last - began) / (done - first) * (total - done))
            print(f"{done:,} of {total:,} {plural(unit, total)}, {left} left ({what})", file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
