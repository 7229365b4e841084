"""Where the known data sets are published, for downloading and for saying where to get them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shiftnorm.data.download import download

__all__ = ["SOURCES", "Source", "SourceFile", "download_dataset"]


@dataclass(frozen=True)
class SourceFile:
    """One file of a published data set.

    Example:
        >>> from shiftnorm.data.sources import SOURCES
        >>> SOURCES["cifar10-c"].files[0].name
        'CIFAR-10-C.tar'

    Args:
        name: its file name.
        urls: its addresses, the best first.
        checksum: md5 or sha256, hexadecimal.
        size: bytes.
    """

    name: str
    urls: tuple[str, ...]
    checksum: str
    size: int | None = None


@dataclass(frozen=True)
class Source:
    """How to get a data set.

    Example:
        >>> from shiftnorm.data.sources import SOURCES
        >>> print(SOURCES["imagenet"].instructions)
        https://image-net.org (registration): ILSVRC2012_img_val.tar, sorted into one folder per WordNet number

    Args:
        instructions: where it is published, for a person.
        layout: what must lie below the root.
        files: what `download_dataset` gets; none if it cannot.
        torchvision: the class in torchvision.datasets that downloads it.
    """

    instructions: str
    layout: str
    files: tuple[SourceFile, ...] = ()
    torchvision: str | None = None


def _zenodo(record: int, name: str, checksum: str, size: int | None) -> SourceFile:
    # The second form is the record's older address, which redirects; some networks know only one of them.
    forms = ("records", "record")
    return SourceFile(
        name, tuple(f"https://zenodo.org/{form}/{record}/files/{name}?download=1" for form in forms), checksum, size
    )


_BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
_WNIDS = "WNID/FILE, one folder per WordNet number"
_VIDEOS = "WNID/FILE.mp4"
_DOMAINS = "DOMAIN/CLASS/FILE"

# Checksums of Zenodo are those its records state.
SOURCES: dict[str, Source] = {
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/cifar.html (python version)",
        "cifar-10-batches-py/ (or cifar-10-python.tar.gz, or train/CLASS/FILE and test/CLASS/FILE)",
        torchvision="CIFAR10",
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/cifar.html (python version)",
        "cifar-100-python/ (or cifar-100-python.tar.gz)",
        torchvision="CIFAR100",
    ),
    "cifar10-c": Source(
        "https://zenodo.org/records/2535967",
        "CIFAR-10-C/CORRUPTION.npy and CIFAR-10-C/labels.npy (or CIFAR-10-C.tar)",
        (_zenodo(2535967, "CIFAR-10-C.tar", "56bf5dcef84df0e2308c6dcbcbbd8499", 2918471680),),
    ),
    "cifar100-c": Source(
        "https://zenodo.org/records/3555552",
        "CIFAR-100-C/CORRUPTION.npy and CIFAR-100-C/labels.npy (or CIFAR-100-C.tar)",
        (_zenodo(3555552, "CIFAR-100-C.tar", "11f0ed0f1191edbf9fa23466ae6021d3", 2918473216),),
    ),
    "cifar10.1": Source(
        "https://github.com/modestyachts/CIFAR-10.1, folder datasets",
        "cifar10.1_v6_data.npy and cifar10.1_v6_labels.npy (v4 likewise)",
    ),
    "imagenet": Source(
        "https://image-net.org (registration): ILSVRC2012_img_val.tar, sorted into one folder per WordNet number",
        f"val/{_WNIDS}",
    ),
    "imagenet-c": Source(
        "https://zenodo.org/records/2235448",
        f"CORRUPTION/SEVERITY/{_WNIDS}",
        (
            _zenodo(2235448, "noise.tar", "e80562d7f6c3f8834afb1ecf27252745", 22565673785),
            _zenodo(2235448, "blur.tar", "2d8e81fdd8e07fef67b9334fa635e45c", 7112704951),
            _zenodo(2235448, "weather.tar", "33ffea4db4d93fe4a428c40a6ce0c25d", 12797438995),
            _zenodo(2235448, "digital.tar", "89157860d7b10d5797849337ca2e5c03", 7757510705),
            _zenodo(2235448, "extra.tar", "d492dfba5fc162d8ec2c3cd8ee672984", 15789490144),
        ),
    ),
    "cifar10-p": Source(
        "https://zenodo.org/records/2535967",
        "CIFAR-10-P/PERTURBATION.npy (or CIFAR-10-P.tar)",
        (_zenodo(2535967, "CIFAR-10-P.tar", "125d6775afc5846ea84584d7524dedff", None),),
    ),
    "imagenet-p": Source(
        "https://zenodo.org/records/3565846",
        f"PERTURBATION/{_VIDEOS}, or frames as PERTURBATION/[CLASS/]SEQUENCE/FRAME",
    ),
    "imagenet-v2": Source(
        "https://github.com/modestyachts/ImageNetV2", "imagenetv2-matched-frequency-format-val/NUMBER/FILE"
    ),
    "imagenet-r": Source(
        "https://github.com/hendrycks/imagenet-r",
        f"imagenet-r/{_WNIDS} (or imagenet-r.tar)",
        (SourceFile("imagenet-r.tar", (f"{_BERKELEY}/imagenet-r.tar",), "a61312130a589d0ca1a8fca1f2bd3337"),),
    ),
    "imagenet-a": Source(
        "https://github.com/hendrycks/natural-adv-examples",
        f"imagenet-a/{_WNIDS} (or imagenet-a.tar)",
        (
            SourceFile(
                "imagenet-a.tar", (f"{_BERKELEY}/imagenet-a.tar",), "c3e55429088dc681f30d81f4726b6595", 687552512
            ),
        ),
    ),
    "imagenet-sketch": Source(
        "https://github.com/HaohanWang/ImageNet-Sketch", f"sketch/{_WNIDS} (or ImageNet-Sketch.zip)"
    ),
    "pacs": Source(
        "the authors of Li et al., Deeper, Broader and Artier Domain Generalization, ICCV 2017",
        f"{{art_painting,cartoon,photo,sketch}}/CLASS/FILE, lists as splits/DOMAIN_{{train,val,test}}.txt: {_DOMAINS} "
        "LABEL",
    ),
    "vlcs": Source(
        "the authors of Fang et al., Unbiased Metric Learning, ICCV 2013",
        "{Caltech101,LabelMe,SUN09,VOC2007}/CLASS/FILE, or with {train,crossval,test,full} in between",
    ),
    "office31": Source("the authors of Saenko et al., ECCV 2010", "{amazon,dslr,webcam}/[images/]CLASS/FILE"),
    "officehome": Source(
        "https://www.hemanthdv.org/officeHomeDataset.html", "{Art,Clipart,Product,Real World}/CLASS/FILE"
    ),
    "domainnet": Source(
        "http://ai.bu.edu/M3SDA",
        "{clipart,infograph,painting,quickdraw,real,sketch}/CLASS/FILE, lists as DOMAIN_{train,test}.txt",
    ),
    "office_caltech10": Source("the authors of Gong et al., CVPR 2012", "{amazon,caltech10,dslr,webcam}/CLASS/FILE"),
    "mnist": Source(
        "https://yann.lecun.com/exdb/mnist",
        "[MNIST/raw/]{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz], also with mnist- before the name",
        torchvision="MNIST",
    ),
    "usps": Source(
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets",
        "usps.bz2 and usps.t.bz2, or usps-{train,test}-{images-idx3,labels-idx1}-ubyte[.gz]",
        torchvision="USPS",
    ),
    "mnist-m": Source(
        "the authors of Ganin et al., JMLR 2016",
        "mnist_m_{train,test}/DIGIT/FILE, or mnist_m_test/FILE with mnist_m_test_labels.txt: FILE DIGIT",
    ),
}


def download_dataset(
    name: str, root: Path, *, only: str | None = None, on_progress: Callable[[int, int | None], object] | None = None
) -> list[Path]:
    """Download a data set's published files into ``root``, resumed if interrupted and checked.

    CIFAR, MNIST and USPS are downloaded by torchvision, everything else by `download`.

    Example:
        >>> download_dataset("imagenet", Path("data"))
        Traceback (most recent call last):
            ...
        ValueError: download_dataset: imagenet cannot be downloaded by a program; get it from https://image-net.org ...

    Args:
        name: a key of `SOURCES`.
        root: the folder.
        only: the name of the one file to get of several, such as ``"blur.tar"`` of ImageNet-C.
        on_progress: called with the bytes there are and the size of all.

    Returns:
        The files; none where torchvision downloads.

    Raises:
        ValueError: an unknown name or file, or a data set that no program can get.
        DownloadError: no mirror gave the file.
    """
    if name not in SOURCES:
        raise ValueError(f"download_dataset: name must be one of {', '.join(SOURCES)}, got {name!r}")
    source = SOURCES[name]
    if source.torchvision is not None:
        try:
            from torchvision import datasets
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"download_dataset: {name} is downloaded by torchvision; install it with: pip install "
                "'shiftnorm[train]'"
            ) from error
        for train in (True, False):
            getattr(datasets, source.torchvision)(root, train=train, download=True)
        return []
    if not source.files:
        raise ValueError(
            f"download_dataset: {name} cannot be downloaded by a program; get it from {source.instructions} and put "
            f"{source.layout} into {root}"
        )
    files = [file for file in source.files if only in (None, file.name)]
    if not files:
        names = ", ".join(file.name for file in source.files)
        raise ValueError(f"download_dataset: the files of {name} are {names}, got only={only!r}")
    return [
        download(file.urls, root / file.name, checksum=file.checksum, size=file.size, on_progress=on_progress)
        for file in files
    ]
