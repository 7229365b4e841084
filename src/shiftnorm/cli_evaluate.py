"""The verbs that measure models under corruption and compare what was found."""

from __future__ import annotations

import argparse
import importlib.util
import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shiftnorm.cli_convert import SUFFIX, TRAINED, is_file, model_file, open_model
from shiftnorm.cli_corrupt import (
    add_corruption_options,
    add_data_options,
    named_corruptions,
    open_images,
)
from shiftnorm.cli_open import (
    add_file_options,
    data_kind,
    match_classes,
    names_in_files,
    open_files,
    open_frames,
    open_tested,
    read_classes,
    remark_on_size,
)
from shiftnorm.cli_report import add_report_verb
from shiftnorm.cli_verb import add_verb, require, speaking_of_options, stopping_politely
from shiftnorm.result_folder import check_writable, plain_faults

if TYPE_CHECKING:
    from torch import nn

    from shiftnorm.data import Dataset
    from shiftnorm.data.corrupted_set import CorruptedSet
    from shiftnorm.evaluate.baselines import Baseline
    from shiftnorm.evaluate.result import Result
    from shiftnorm.evaluate.stability_result import StabilityResult

__all__ = ["add_evaluate_verbs"]

_RANDOM = " (random weights)"
NORMALIZATIONS = ("model", "imagenet", "half", "none", "bytes")
_BASELINES = {"alexnet": "AlexNet", "alexnet-robustbench-5k": "AlexNet, RobustBench 5k"}


def add_evaluate_verbs(verbs: Any, common: argparse.ArgumentParser) -> None:
    """Add the verbs evaluate and report.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> add_evaluate_verbs(parser.add_subparsers(), argparse.ArgumentParser(add_help=False))
        >>> parser.parse_args(["evaluate", "timm/resnet18", "--data", "photos", "--limit", "5"]).limit
        5

    Args:
        verbs: what ``add_subparsers`` returned.
        common: a parser with the options that all verbs have.
    """
    evaluate = add_verb(
        verbs,
        common,
        "evaluate",
        help="measure a model on clean and corrupted images, with a report",
        description="Measure a model's errors on clean images and under corruptions, with confidence intervals, and "
        "write a report. Interrupted at any moment, the same command continues.",
        examples=[
            "evaluate torchvision/resnet50 --pretrained --data imagenet --root DIR --split val",
            "evaluate timm/resnet18 --weights mine.pth --num-classes 7 --data photos --constants imagenet224",
            "evaluate cnsn.safetensors --data photos --normalize imagenet --corruptions fog snow --limit 50",
            "evaluate runs/compare-pets/CNSN-seed0 --data pets --baseline runs/batchnorm --out runs/cnsn",
            "evaluate timm/resnet50 --pretrained --data imagenet-c --root DIR --clean DIR/val --baseline alexnet",
            "evaluate runs/compare/CNSN-seed0 --data CIFAR-10-C --clean cifar10 --corruptions fog snow",
            "evaluate cnsn.safetensors --data cifar10-p --root DIR --difficulty 2",
            "report runs/batchnorm runs/cnsn --out both.html",
        ],
    )
    evaluate.usage = "shiftnorm evaluate MODEL --data DATA [options]"
    evaluate.add_argument(
        "model", metavar="MODEL", help=f"a {SUFFIX} file of ours, a run of `shiftnorm compare` (FOLDER/NORM-seedN), a "
        f"folder with {TRAINED} as recipes leave it, or LIBRARY/NAME as `shiftnorm models` lists it"
    )  # fmt: skip
    evaluate.add_argument(
        "--data", metavar="DATA", help="a folder or archive of images, clean or corrupted already, or of perturbation "
        "sequences; or a data set's name (default: what a run was measured on, where its recipe says where that is)"
    )  # fmt: skip
    evaluate.add_argument("--out", metavar="DIR", help="where results go (default: runs/evaluate-MODEL-DATA)")
    evaluate.add_argument("--name", metavar="TEXT", help="what the report calls the model")
    evaluate.add_argument(
        "--baseline", metavar="NAME", help="for mCE: alexnet (of ImageNet-C), or the result of another model"
    )
    evaluate.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples of the intervals")

    model = evaluate.add_argument_group("the model")
    model.add_argument("--pretrained", action="store_true", help="the library's own weights, which it downloads")
    model.add_argument("--weights", type=Path, metavar="FILE", help="fill the model from a checkpoint")
    model.add_argument("--num-classes", type=int, metavar="N", help="outputs of a library's model")
    model.add_argument(
        "--normalize", nargs="+", metavar="HOW", default=["model"],
        help=f"what its inputs are normalized by: {', '.join(NORMALIZATIONS)}, or six numbers, mean and std (default: "
        "model: what the model says, else timm or torchvision of its weights, else none, with a warning)",
    )  # fmt: skip
    model.add_argument(
        "--allow-code", action="store_true", help="let MODEL be package.module:function, which is imported and run"
    )
    model.add_argument("--device", metavar="DEVICE", default="cpu", help="such as cuda (default: cpu)")
    model.add_argument(
        "--amp", nargs="?", const="default", choices=("default", "bfloat16", "float16"), help="run under autocast"
    )
    model.add_argument("--channels-last", action="store_true", help="that memory format")
    model.add_argument("--batch-size", type=int, default=256, metavar="N", help="images per forward pass")

    add_corruption_options(evaluate, constants="the set published for images of this size, if there is one")
    add_data_options(evaluate)
    add_file_options(evaluate)
    evaluate.add_argument("--wnids", metavar="FILE", help="the classes behind the outputs, for ImageNet's relatives")
    evaluate.add_argument(
        "--classes", metavar="FILE", help="the names of the model's outputs, one a line, where those of the data are "
        "some of them or come in another order"
    )  # fmt: skip
    evaluate.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode images")
    evaluate.set_defaults(run=_evaluate)
    add_report_verb(verbs, common)


def _evaluate(options: argparse.Namespace) -> int:
    require("evaluate", "jinja2", "numpy", "PIL", "safetensors")
    with speaking_of_options(), plain_faults("evaluate", Path(options.out or "runs")):
        if options.out is not None:
            check_writable(Path(options.out), "evaluate")
        return _measured(options)


def _measured(options: argparse.Namespace) -> int:
    from shiftnorm.evaluate.borrow import find_device

    kind = data_kind(options)
    names = named_corruptions(options) if kind == "images" else names_in_files(options)
    normalize = _normalization(options.normalize)
    baseline = _baseline(options.baseline, kind)
    device = str(find_device(options.device, who="evaluate", what="--device"))
    _check_model_options(options)
    with warnings.catch_warnings():
        # they are part of the result, which is printed
        warnings.filterwarnings("ignore", category=UserWarning, module=__name__)
        if kind == "sequences":
            return _measure_sequences(options, normalize, baseline, device)
        result, out = _measure(options, kind, names, normalize, baseline, device)
    from shiftnorm.evaluate.html_report import write_report

    report = write_report(result, out / "report.html")
    print(f"{result}\nReport: {report}")
    return 0


def _opened(options: argparse.Namespace) -> tuple[nn.Module, str, dict[str, Any] | None]:
    import torch

    # random weights are the same again when the command is repeated
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model, name, about = _open(options)
    if name.endswith(_RANDOM):
        print("The weights are random: neither --pretrained nor --weights was given.", flush=True)
    return model, name, about


def _out(options: argparse.Namespace, name: str, data: str) -> Path:
    default = f"evaluate-{name}-{data}"
    return Path("runs", re.sub(r"[^\w.-]+", "-", default)) if options.out is None else Path(options.out)


def _images(options: argparse.Namespace, kind: str, about: dict[str, Any] | None) -> Dataset | CorruptedSet:
    """The images, with the outputs that their classes belong to."""
    if options.classes:
        classes = read_classes(options.classes)
    else:
        classes = about["classes"] if about else _classes_of_run(Path(options.model))
    if kind == "corrupted":
        files = open_files(options)
        return files if classes is None else replace(files, clean=match_classes(files.clean, classes))
    if options.clean is not None or options.partial:
        raise ValueError(
            "evaluate: --clean and --partial are for images that are corrupted already, CORRUPTION.npy with labels.npy "
            f"or CORRUPTION/SEVERITY/CLASS/FILE; {options.data} is not of such a layout."
        )
    dataset = _of_run(options, about) if about else None
    if dataset is None:
        dataset = open_tested(options) if options.data is None else open_images(options)
    if dataset is None:
        raise ValueError("evaluate: expected --data, a folder of images or a data set's name, such as cifar10.")
    remark_on_size(Path(options.model), dataset)
    return dataset if classes is None else match_classes(dataset, classes)


def _classes_of_run(model: Path) -> list[str] | None:
    """The classes that a recipe's run was trained on, from the record beside its network."""
    from shiftnorm.evaluate.record import read_json

    record = model.with_name("record.json")
    if model.name != TRAINED or not record.is_file():
        return None
    classes = read_json(record).get("data", {}).get("classes")
    return None if classes is None else [str(name) for name in classes]


def _measure(
    options: argparse.Namespace, kind: str, names: Any, normalize: Any, baseline: Any, device: str
) -> tuple[Result, Path]:
    from shiftnorm.evaluate.robustness import robustness

    model, name, about = _opened(options)
    images = _images(options, kind, about)
    out = _out(options, name, images.name)
    with speaking_of_options(), stopping_politely():
        result = robustness(
            model,
            images,
            names,
            options.severities,
            options.seed,
            normalize=normalize,
            constants=options.constants,
            storage=options.storage,
            frost_dir=options.frost_dir,
            batch_size=options.batch_size,
            workers=options.workers,
            device=device,
            amp=True if options.amp == "default" else options.amp,
            channels_last=options.channels_last,
            out=out,
            baseline=baseline,
            name=options.name or name,
            bootstrap=options.bootstrap,
            command=options.command,
        )
    return result, out


def _measure_sequences(options: argparse.Namespace, normalize: Any, baseline: Any, device: str) -> int:
    from shiftnorm.evaluate.sequence_stability import measure_stability

    model, name, _ = _opened(options)
    frames = open_frames(options)
    chosen = [each.replace("-", "_") for each in options.perturbations]
    out = _out(options, name, frames.name)
    with speaking_of_options(), stopping_politely():
        result = measure_stability(
            model,
            frames,
            chosen[0] if chosen == ["published"] else chosen,
            difficulty=options.difficulty,
            normalize=normalize,
            batch_size=options.batch_size,
            device=device,
            amp=True if options.amp == "default" else options.amp,
            channels_last=options.channels_last,
            limit=options.limit,
            out=out,
            baseline=baseline,
            on_missing="skip" if options.partial else "raise",
            name=options.name or name,
            command=options.command,
            resamples=options.bootstrap,
        )
    print(f"{result}\nResult: {out / 'stability.md'}")
    return 0


def _normalization(words: list[str]) -> Any:
    if len(words) == 1 and words[0] in NORMALIZATIONS:
        return words[0]
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 6:
        raise ValueError(
            f"evaluate: expected --normalize {', '.join(NORMALIZATIONS)}, or six numbers (the mean of red, green and "
            f"blue of images in [0, 1], then the std), got {' '.join(words)}."
        )
    return numbers[:3], numbers[3:]


def _baseline(given: str | None, kind: str) -> Baseline | Result | StabilityResult | None:
    from shiftnorm.evaluate.baselines import BASELINES
    from shiftnorm.evaluate.result import Result
    from shiftnorm.evaluate.stability_result import StabilityResult

    if given is None:
        return None
    if kind == "sequences":
        return StabilityResult.load(given)
    if given.lower() in _BASELINES:
        return BASELINES[_BASELINES[given.lower()]]
    if not Path(given).exists():
        raise FileNotFoundError(
            f"evaluate: expected --baseline {', '.join(_BASELINES)}, or the folder or result.json of another "
            f"evaluation, got {given}."
        )
    return Result.load(given)


def _check_model_options(options: argparse.Namespace) -> None:
    if options.pretrained and options.weights:
        raise ValueError("evaluate: expected --pretrained or --weights, got both.")
    if options.weights is not None and not options.weights.is_file():
        raise FileNotFoundError(f"evaluate: there is no file --weights {options.weights}.")
    if options.bootstrap < 0 or options.batch_size < 1 or options.workers < 0:
        raise ValueError("evaluate: expected --batch-size of at least 1, --bootstrap and --workers of at least 0.")


def _open(options: argparse.Namespace) -> tuple[nn.Module, str, dict[str, Any] | None]:
    """The model, what to call it, and what is known of a run of a comparison."""
    from shiftnorm.result_folder import name_below
    from shiftnorm.surgery.source import LIBRARIES
    from shiftnorm.trained import FOLDER, find_network, is_network, load_network

    inside = model_file(options.model)
    if inside != options.model:
        options.model = inside
        _refuse_library_options(options, "of a run of a recipe")
        return open_model(options), Path(inside).absolute().parent.name, None
    found = find_network(options.model)
    if found is not None and is_network(found):
        _refuse_library_options(options, "a run of a comparison")
        model, about = load_network(found)
        return model, f"{about['norm']}, seed {about['seed']}", about
    if Path(options.model).is_dir():
        if advice := name_below(Path(options.model), TRAINED, FOLDER):
            raise ValueError(f"evaluate: {options.model} is no run itself, but has runs in it; {advice}.")
        swapped = " MODEL and --data look swapped." if str(options.data).partition("/")[0] in LIBRARIES else ""
        raise ValueError(
            f"evaluate: {options.model} is a folder, but not one of `shiftnorm compare`, nor has it the {TRAINED} of "
            f"a recipe's run; expected a {SUFFIX} file, a run, or LIBRARY/NAME.{swapped}"
        )
    if is_file(options.model):
        _refuse_library_options(options, "a file")
        return open_model(options), Path(options.model).stem, None
    model = open_model(options)
    if options.weights:
        from shiftnorm.surgery import load_weights

        print(load_weights(model, options.weights))
        return model, f"{options.model} ({options.weights.stem})", None
    if options.pretrained or ":" in options.model:
        return model, options.model, None
    return model, f"{options.model}{_RANDOM}", None


def _refuse_library_options(options: argparse.Namespace, what: str) -> None:
    for name in ("pretrained", "weights", "num_classes"):
        if getattr(options, name):
            raise ValueError(
                f"evaluate: --{name.replace('_', '-')} is for a model of a library; {options.model} is {what}, which "
                "has it settled."
            )


def _of_run(options: argparse.Namespace, about: dict[str, Any]) -> Dataset | None:
    """The images that a comparison held back, if the data are its own and nothing else is asked for."""
    chosen = (options.split, options.preprocess, options.domain, options.root)
    if any(value is not None for value in chosen) or (options.data is not None and not Path(options.data).exists()):
        return None
    if importlib.util.find_spec("lightning") is None:
        return None
    from shiftnorm.data import Dataset
    from shiftnorm.evaluate.progress import plural
    from shiftnorm.recipe import load_recipe
    from shiftnorm.training import load_data

    known: dict[str, Any] = about["images"]
    try:
        recipe = load_recipe("compare-folder").changed(
            **{key: known[key] for key in ("size", "test_fraction", "limit") if key in known}
        )
        data = load_data(recipe, None if options.data is None else Path(options.data), on_error=options.on_error)
    except (ValueError, OSError):
        return None  # the images are read, or refused with the reason, as those of any other data
    if data.sha256() != known.get("sha256"):
        return None
    test = data.test
    held = Dataset.of_images(test.name, test.images, test.labels, test.classes)
    held = held if options.limit is None else held.limit(options.limit)
    print(f"{len(held):,} {plural('image', len(held))} of {held.name} that the comparison held back.", flush=True)
    return held
