from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import shiftnorm
from command_line import one_clear_line
from pictures import tree
from shiftnorm import cli, cli_corrupt, trained
from shiftnorm.evaluate.measure import Measurer
from shiftnorm.evaluate.result import Result
from shiftnorm.recipe import CompareRecipe
from shiftnorm.run import compare
from shiftnorm.surgery import build_model, convert, save
from shiftnorm.training import load_data, train_and_evaluate
from shiftnorm.variants import build

QUICK = ["--corruptions", "contrast", "--severities", "5", "--bootstrap", "20"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(shiftnorm.__file__).parents[1])}


@pytest.fixture
def pets(tmp_path):
    return tree(tmp_path / "pets", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(4)], size=(32, 32))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A comparison of two norms with one seed, and its folder of images."""
    root = tmp_path_factory.mktemp("compared")
    folder = tree(root / "pets", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(10)], size=(32, 32))
    recipe = CompareRecipe(
        norms=("BatchNorm", "CNSN"), corruptions=("contrast",), severities=(5,), seeds=(0,), epochs=1, batch_size=8,
        size=16, workers=0,
    )  # fmt: skip
    compare(recipe, data_dir=folder, out_dir=root / "runs", say=lambda line: None)
    return root / "runs", folder


class Mean(nn.Module):
    """The brightest channel is the class: no weights to load, and clean images are easy to get right."""

    def __init__(self) -> None:
        super().__init__()
        self.input_normalization = ([0.5] * 3, [0.25] * 3)

    def forward(self, x):
        return x.mean((2, 3))[:, :2]


def make_mean() -> nn.Module:
    return Mean()


def test_evaluate_a_file_then_report(run, pets, tmp_path):
    model = build_model("shiftnorm/wide_resnet16_4", num_classes=2)
    save(model, tmp_path / "a.safetensors")
    save(convert(model, "ibn_a")[0], tmp_path / "b.safetensors")
    status, out, _ = run("evaluate", "a.safetensors", "--data", pets, *QUICK, "--normalize", "half")
    assert status == 0
    assert out.startswith("a on 8 images of pets") and "Report: runs/evaluate-a-pets/report.html" in out
    folder = tmp_path / "runs" / "evaluate-a-pets"
    assert {each.name for each in folder.iterdir()} >= {
        "result.json",
        "report.html",
        "report.md",
        "report.csv",
        "cells",
    }
    result = Result.load(folder)
    assert result.settings["constants"] == "cifar32" and result.settings["mean"] == [0.5] * 3
    assert result.command is not None and result.command.startswith("shiftnorm evaluate a.safetensors --data ")

    words = ["evaluate", "b.safetensors", "--data", pets, *QUICK, "--normalize", *"0.5 0.5 0.5 0.5 0.5 0.5".split()]
    assert run(*words, "--out", "b", "--name", "with IBN", "--baseline", folder)[0] == 0
    assert Result.load("b").name == "with IBN"

    status, out, _ = run("report", folder, "b/result.json", "--out", "both.html", "--title", "Two nets")
    assert status == 0
    assert "with IBN  clean" in out and ", against a " in out and "p = " in out
    assert "<title>Two nets</title>" in (tmp_path / "both.html").read_text()
    one_clear_line(run("report", folder, "--out", "both.html"), "both.html exists already; --force overwrites it")
    assert run("report", folder, "--out", "both.html", "--force")[0] == 0


def test_again_measures_nothing_and_other_settings_are_refused(run, pets, monkeypatch):
    words = ["evaluate", f"{__name__}:make_mean", "--allow-code", "--data", pets, "--out", "r"]
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    first = run(*words, *QUICK)
    assert first[0] == 0
    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "measure", lambda *_: pytest.fail("nothing is to be measured"))
        again = run(*words, *QUICK)
    assert again[0] == 0 and again[1] == first[1]
    one_clear_line(run(*words, *QUICK, "--seed", 1), "seed was 0, now 1", "Choose another folder")
    more = run(*words, "--corruptions", "contrast", "fog", "--severities", 5)
    assert more[0] == 0 and "fog" in more[1]


def test_a_run_of_a_comparison_on_the_images_it_held_back(run, compared):
    runs, folder = compared
    status, out, _ = run("evaluate", runs / "CNSN-seed0", "--data", folder, *QUICK, "--constants", "cifar32")
    assert status == 0
    assert out.startswith("4 images of pets that the comparison held back.\nCNSN, seed 0 on 4 images of pets")
    record = json.loads(next((runs / "records").glob("CNSN-*.json")).read_text())
    result = Result.load("runs/evaluate-CNSN-seed-0-pets")
    assert result.clean.error.value == record["clean_error"]
    assert result.errors == record["corruption_errors"]
    assert result.settings["normalize"] == "the model's input_normalization"

    words = ["evaluate", runs / "CNSN", "--data", folder, *QUICK, "--constants", "cifar32", "--limit", 1]
    others = (
        "data are other images (4 were measured, now 2: another --limit or --split?). Choose another folder for --out"
    )
    one_clear_line(run(*words), "holds another evaluation", others)
    assert run(*words, "--out", "few")[1].startswith("2 images of pets that the comparison held back.")

    # the record, the file and the norm alone are the same run; a part of other data is read as it is asked for
    path = next((runs / "networks").glob("CNSN-*.safetensors"))
    for model in (runs / "cnsn", path, next((runs / "records").glob("CNSN-*.json"))):
        assert trained.find_network(model) == path
    words = ["evaluate", path, "--data", folder, "--split", "all", "--preprocess", "resize16x16", *QUICK]
    status, out, _ = run(*words, "--constants", "cifar32", "--out", "all")
    assert status == 0 and "held back" not in out and "on 20 images" in out


def test_which_run(run, compared, tmp_path):
    runs, folder = compared
    words = ["--data", folder, *QUICK]
    one_clear_line(run("evaluate", runs, *words), "holds the networks of 2 runs; name one of them", "CNSN-seed0")
    one_clear_line(run("evaluate", runs / "CNSN-seed7", *words), "there is no run 'CNSN-seed7'", "BatchNorm-seed0")
    one_clear_line(run("evaluate", runs / "CNSN", *words, "--pretrained"), "--pretrained is for a model of a library")
    one_clear_line(run("report", runs), "is a comparison, whose report is", "evaluate its runs first")
    other = tree(tmp_path / "birds", ["owl/a.png", "cat/b.png"], size=(16, 16))
    one_clear_line(run("evaluate", runs / "CNSN", "--data", other, *QUICK), "not trained on, such as 'owl'", "cat, dog")
    old = tmp_path / "old"
    (old / "records").mkdir(parents=True)
    one_clear_line(run("evaluate", old, *words), "the run kept no network")
    (tmp_path / "all" / "train-a" / "evaluation").mkdir(parents=True)
    (tmp_path / "all" / "train-a" / "model.safetensors").touch()
    (tmp_path / "all" / "compared").symlink_to(runs)
    for above in ("all", "."):
        named = "no run itself, but has runs in it; name one: all/compared, all/train-a."
        one_clear_line(run("evaluate", above, *words), f"{above} is {named}")
    (tmp_path / "all" / "train-a" / "evaluation" / "0f").mkdir()
    (tmp_path / "all" / "train-a" / "evaluation" / "0f" / "result.json").touch()
    named = "no result itself, but has results in it; name one: all/train-a/evaluation/0f."
    one_clear_line(run("report", "all"), f"all is {named}")


def test_labels_go_by_the_names_of_the_classes(run, tmp_path):
    torch.manual_seed(0)
    model = build("BatchNorm", depth=10, widen_factor=1, num_classes=3).model
    with torch.no_grad():
        model.fc.bias.copy_(torch.tensor([0.0, 0.0, 1000.0]))
    content = trained.pack_network(
        model, norm="BatchNorm", seed=0, depth=10, widen_factor=1, classes=["dog", "eel", "cat"], mean=[0.5] * 3,
        std=[0.25] * 3, images={},
    )  # fmt: skip
    trained.write_network(tmp_path / "net.safetensors", content)
    data = tree(tmp_path / "pets", ["cat/0.png", "cat/1.png", "cat/2.png", "dog/0.png"], size=(32, 32))
    assert run("evaluate", "net.safetensors", "--data", data, *QUICK, "--out", "r")[0] == 0
    assert Result.load("r").clean.error.value == 25.0


def test_a_network_packed_is_the_network(run, tmp_path):
    recipe = CompareRecipe(norms=("CNSN",), corruptions=("contrast",), epochs=1, size=16, limit=4)
    data = load_data(recipe, None)
    content = train_and_evaluate(recipe, "CNSN", 0, data, lambda part, text: None)["network"]
    trained.write_network(tmp_path / "a.safetensors", content)
    model, about = trained.load_network(tmp_path / "a.safetensors")
    assert about["norm"] == "CNSN" and about["images"]["sha256"] == data.sha256()
    again = trained.pack_network(
        model, **{key: about[key] for key in about.keys() - {"format", "num_classes"}}
    )  # fmt: skip
    assert again == content
    # trained on the bundled digits, it needs no data to be named
    status, out, _ = run("evaluate", "a.safetensors", *QUICK, "--limit", 1, "--constants", "cifar32")
    assert status == 0 and out.startswith("10 images of digits on photos that the comparison held back.")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"depth": 100000}, "depth cannot be as it says"),
        ({"norm": 3}, r"another version of shiftnorm, or is damaged \(\['norm'\]\)"),
        ({"format": 2}, "another version"),
        ({"norm": "NoNorm"}, "unknown norm 'NoNorm'"),
        ({"norm": "AttentiveNorm"}, "does not hold the weights of AttentiveNorm"),
        ({"classes": ["a"]}, "classes cannot be as it says"),
    ],
)
def test_a_damaged_network(tmp_path, change, text):
    import safetensors.torch

    model = build("BatchNorm", depth=10, widen_factor=1, num_classes=2).model
    facts = {
        "format": 1, "norm": "BatchNorm", "seed": 0, "depth": 10, "widen_factor": 1, "num_classes": 2,
        "classes": ["a", "b"], "mean": [0.5] * 3, "std": [0.5] * 3, "images": {}, **change,
    }  # fmt: skip
    file = tmp_path / "a.safetensors"
    safetensors.torch.save_file(dict(model.state_dict()), file, {"shiftnorm.compare": json.dumps(facts)})
    assert trained.is_network(file)
    with pytest.raises(ValueError, match=text):
        trained.load_network(file)


def test_first_mistakes_of_evaluate(run, pets, tmp_path):
    data, net = ["--data", pets], "shiftnorm/wide_resnet16_4"
    (tmp_path / "file").write_text("mine")
    for words, parts in (
        ([net], ["expected --data"]),
        ([net, "--data", "nowhere"], ["there is nothing at nowhere"]),
        ([net, "--data", "cifar11"], ["did you mean the data set 'cifar10"]),
        ([net, "--data", "cifar10-c", "--root", tmp_path], ["no cifar10-c in", "CIFAR-10-C/CORRUPTION.npy", "--root"]),
        ([net, "--data", "cifar10-p", "--root", tmp_path], ["no cifar10-p in", "CIFAR-10-P/PERTURBATION.npy"]),
        ([net, *data, "--clean", "mine"], ["--clean and --partial are for images that are corrupted already"]),
        ([net, *data, "--classes", "c.txt"], ["there is no file --classes c.txt"]),
        ([net, "--data", "imagenet", "--root", tmp_path], ["expected there: val/WNID/FILE", "--root"]),
        (["shiftnorm/wide_resnet16", *data], ["unknown model"]),
        (["nowhere.safetensors", *data], ["there is no file nowhere.safetensors"]),
        ([pets, *data], ["is a folder, but not one of `shiftnorm compare`", "expected a .safetensors file"]),
        ([pets, "--data", net], ["is a folder, but not one of", "MODEL and --data look swapped"]),
        (["json:loads", *data], ["would import and run code", "--allow-code"]),
        ([net, *data, "--corruptions", "frog"], ["error: unknown corruption 'frog'; did you mean one of fog"]),
        ([net, *data, "--corruptions", "fog,snow"], ["--corruptions with blanks between the names, got 'fog,snow'"]),
        ([net, *data, "--corruptions", "frost"], ["--frost-dir", "frost_procedural"]),
        ([net, *data, "--severities", 6], ["--severities from 1 to 5, got 6"]),
        ([net, *data, "--normalize", "imagnet"], ["expected --normalize model, imagenet"]),
        ([net, *data, "--normalize", "none", "--constants", "cifar"], ["cifar32"]),
        ([net, *data, "--normalize", "none", "--baseline", "vgg"], ["expected --baseline alexnet"]),
        ([net, *data, "--device", "gpu"], ["expected --device such as cpu"]),
        ([net, *data, "--device", "cuda:99"], ["there is no cuda:99 here"]),
        ([net, *data, "--weights", "w.pth"], ["there is no file --weights w.pth"]),
        ([net, *data, "--limit", 0], ["--limit to be at least 1"]),
        ([net, *data, "--batch-size", 0], ["--batch-size of at least 1"]),
        ([net, *data, "--out", "file"], ["cannot write into", "is a file, not a folder; choose another --out"]),
    ):
        one_clear_line(run("evaluate", *words), *parts)
    assert not (tmp_path / "runs").exists()
    words = ["evaluate", net, *data, *QUICK, "--normalize", "none", "--num-classes", 1]
    one_clear_line(run(*words), "the model has 1 output, but pets has 2 classes, labels from 0 to 1", "--num-classes 2")
    assert not (tmp_path / "runs").exists()
    one_clear_line(run("report", "nowhere"), "error: no file nowhere")
    one_clear_line(run("report", tmp_path / "file"), "file is no result; expected the folder of an evaluation")
    one_clear_line(run("report", "nowhere", "--out", "r.pdf"), "expected --out to end in .html")


def test_the_outputs_names(run, pets, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\neel\ncat\n")
    words = ["evaluate", "shiftnorm/wide_resnet16_4", "--num-classes", 3, "--data", pets, *QUICK, "--normalize", "none"]
    one_clear_line(run(*words), "the model has 3 outputs, but pets has 2 classes", "--classes FILE")
    assert run(*words, "--classes", "classes.txt", "--out", "r")[0] == 0
    assert Result.load("r").data["class_subset"] == [2, 0]
    (tmp_path / "classes.txt").write_text("dog\ndog\n")
    one_clear_line(run(*words, "--classes", "classes.txt"), "one name a line, each once")
    (tmp_path / "classes.txt").write_text("dog\neel\n")
    one_clear_line(run(*words, "--classes", "classes.txt"), "not trained on, such as 'cat'")


def test_a_normalization_that_nobody_names_is_warned_of(run, pets):
    words = ["evaluate", "shiftnorm/wide_resnet16_4", "--num-classes", 2, "--data", pets, *QUICK, "--out", "r"]
    status, out, _ = run(*words)
    assert status == 0 and "warning: robustness: the model does not say how its inputs are normalized" in out
    assert "by normalize= or --normalize: imagenet, half, none" in out
    assert "given images in [0, 1]" in Path("r/report.html").read_text()


def test_random_weights_are_said(run, pets):
    net = "shiftnorm/wide_resnet16_4"
    status, out, _ = run(
        "evaluate", net, "--num-classes", 2, "--data", pets, *QUICK, "--normalize", "none", "--limit", 2, "--out", "r"
    )
    assert status == 0 and out.startswith("The weights are random")
    assert Result.load("r").name == f"{net} (random weights)" and Result.load("r").images == 4


def test_corrupt_and_verify(run, pets, tmp_path):
    words = ["corrupt", pets, "--out", "c", "--corruptions", "fog", "gaussian-noise", "--severities", 2, 5]
    status, out, _ = run(*words)
    assert status == 0
    assert out.startswith("8 images of pets, 2 corruptions, strengths imagenet224")
    assert "Wrote 32 corrupted images to c." in out
    assert len(list((tmp_path / "c").glob("gaussian_noise/2/dog/*.JPEG"))) == 4
    assert "Wrote 0 corrupted images to c, 32 were there." in run(*words)[1]
    assert run("corrupt", "--out", "c", "--verify")[:2] == (0, "All 32 files are as they were made.\n")
    next((tmp_path / "c").glob("fog/5/cat/*.JPEG")).write_bytes(b"x")
    status, out, err = run("corrupt", "--out", "c", "--verify")
    assert status == 1 and "another content" in out and "1 of 32 files are damaged" in err

    status, out, _ = run("corrupt", pets, "--out", "d", "--layout", "cifar-c", "--corruptions", "extra", "--limit", 1)
    assert status == 0 and "2 images of pets, 4 corruptions, strengths cifar32" in out
    assert (tmp_path / "d" / "spatter.npy").stat().st_size > 10 * 32 * 32 * 3


def test_first_mistakes_of_corrupt(run, pets, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for words, parts in (
        ([pets], ["expected --out"]),
        (["--out", "c"], ["expected DATA"]),
        (["--out", "c", "--verify"], ["has no manifest.json"]),
        ([pets, "--out", "mine"], ["has files of its own, such as notes.txt"]),
        ([pets, "--out", pets / "c"], ["is inside"]),
        ([pets, "--out", "c", "--corruptions", "frog"], ["did you mean one of fog"]),
        ([pets, "--out", "c", "--constants", "imagenet"], ["constants must be one of cifar32"]),
        ([pets, "--out", "c", "--layout", "cifar-c", "--severities", 1], ["leave out --severities"]),
        ([pets, "--out", "c", "--preprocess", "huge"], ["must look like"]),
        ([pets, "--out", "c", "--frost-dir", tmp_path], ["frost1.png"]),
        (["cifar10-c", "--out", "c"], ["is corrupted already", "give cifar10.", "shiftnorm evaluate MODEL --data"]),
    ):
        one_clear_line(run("corrupt", *words), *parts)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mine", "pets"]


@pytest.mark.parametrize("verb", ["evaluate", "report", "corrupt"])
def test_help_ends_with_examples(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    examples = capsys.readouterr().out.partition("examples:\n")[2].strip().splitlines()
    assert len(examples) >= 2 and all(line.strip().startswith("shiftnorm ") for line in examples)


def test_progress_tells_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 0.0, 1.0, 11.0])
    monkeypatch.setattr(cli_corrupt.time, "monotonic", lambda: next(clock))
    with cli_corrupt._shown("image") as show:
        show(10, 110, "")
        show(60, 110, "fog, severity 2")
    assert capsys.readouterr().err == "60 of 110 images, 11 s left (fog, severity 2)\n"


@pytest.mark.parametrize(
    ("words", "stop", "begun", "kept"),
    [
        (["corrupt", "--layout", "cifar-c"], signal.SIGINT, "SHA256SUMS", "Finished files are kept"),
        (
            "evaluate shiftnorm/wide_resnet16_4 --num-classes 2 --normalize none --bootstrap 20 --severities 5".split(),
            signal.SIGTERM,
            "cells/clean-0.safetensors",
            "Finished cells are kept",
        ),
    ],
)
def test_interrupted_it_goes_on(pets, tmp_path, words, stop, begun, kept):
    # Enough that a busy machine does not finish before it is told to stop.
    names = ["--corruptions", "fog", "contrast", "brightness", "glass_blur"]
    names += ["zoom_blur", "snow", "motion_blur", "elastic_transform", "spatter"] if words[0] == "corrupt" else []
    call = [sys.executable, "-m", "shiftnorm", *words, "--out", "c", *names]
    call[4:4] = [str(pets)] if words[0] == "corrupt" else []
    call += ["--data", str(pets)] if words[0] == "evaluate" else []
    started = subprocess.Popen(
        call,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A suite in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "c" / begun).exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    started.send_signal(stop)
    _, err = started.communicate(timeout=60)
    assert started.returncode == 130, err
    assert f"Interrupted. {kept}: the same command continues from there." in err
    assert "Traceback" not in err
    done = subprocess.run(call, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "corrupted images to c" in done.stdout or "Report: c/report.html" in done.stdout
    assert not list((tmp_path / "c").glob(".*.tmp"))
