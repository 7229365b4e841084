from __future__ import annotations

import importlib.util
import json
import os

import pytest
import torch

from shiftnorm import cli
from shiftnorm.models import create_model, list_models
from shiftnorm.norms import IBN, SelfNorm
from shiftnorm.surgery import PLACEMENTS, build_model, convert, describe, load

SMALL = ["shiftnorm/wide_resnet16_4", "--num-classes", "3", "--input", "3x16x16"]


@pytest.fixture
def converted(run):
    """A small model with IBN, written by the command line."""
    assert run("convert", *SMALL, "--with", "ibn_a", "--out", "a.safetensors")[0] == 0
    return "a.safetensors"


def assert_one_clear_line(result, *parts):
    status, out, err = result
    assert status == 2
    assert out == ""
    assert err.startswith("shiftnorm: error: ") and err.count("\n") == 1
    for part in parts:
        assert part in err


def test_convert_describe_convert_further_load(run, tmp_path):
    words = ["convert", "shiftnorm/resnet18", "--num-classes", 3, "--input", "3x32x32", "--with", "ibn_a"]
    status, out, err = run(*words, "--where", "stages:1-2", "--set", "ratio=0.25", "--out", "deep/a.safetensors")
    assert (status, err) == (0, "")
    assert "random weights" in out and "ibn_a: 4 changed, 0 left alone; parameters 11,178,051 -> 11,178,051." in out
    assert "layer2.1.bn1  BatchNorm2d -> IBN" in out and "The function moved: max" in out
    assert "Wrote deep/a.safetensors (44.8 MB)" in out and "say little" not in out
    _, out, _ = run(*words[:-1], "selfnorm", "--out", "still.safetensors")
    assert "The function is kept" in out and "Random weights say little of it" in out

    status, out, _ = run("describe", "deep/a.safetensors", "--where", "type:IBN")
    assert status == 0 and "shiftnorm/resnet18 with 4 changes" in out
    assert [line.split()[0] for line in out.splitlines()[3:]] == [
        "layer1.0.bn1", "layer1.1.bn1", "layer2.0.bn1", "layer2.1.bn1",
    ]  # fmt: skip

    words = ["convert", "deep/a.safetensors", "--with", "rbn", "--with", "selfnorm@post", "--out", "b.safetensors"]
    status, out, _ = run(*words, "--where", "stages:4", "--report", "b.json", "--input", "3x32x32")
    assert status == 0 and "weights of the file" in out
    assert out.count("The function is kept") == 2 and "All together: the function is kept" in out

    first, _ = load(tmp_path / "deep" / "a.safetensors")
    second, report = load(tmp_path / "b.safetensors")
    assert isinstance(second.layer4[1].post, SelfNorm) and second.layer1[0].bn1.ratio == 0.25
    assert len(report) == 4 + 5 + 2
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(second(x), first(x))

    record = json.loads((tmp_path / "b.json").read_text())
    assert [item["what"] for item in record["conversions"]] == ["rbn", "selfnorm@post"]
    assert record["source"] == {"name": "shiftnorm/resnet18", "arguments": {"num_classes": 3}}
    assert record["movement"]["kept"] is True and record["weights"] == "weights of the file"


def test_convert_is_the_function_of_the_same_name(run, tmp_path):
    words = ["convert", *SMALL, "--with", "se", "--slot", "post", "--as-published", "--seed", 5]
    assert run(*words, "--out", "a.safetensors")[0] == 0
    torch.manual_seed(5)
    expected = build_model("shiftnorm/wide_resnet16_4", num_classes=3)
    torch.randn(2, 3, 16, 16)
    convert(expected, "se", slot="post", preserve=False)
    found, _ = load(tmp_path / "a.safetensors")
    for (name, ours), (other, theirs) in zip(expected.state_dict().items(), found.state_dict().items(), strict=True):
        assert name == other and torch.equal(ours, theirs)
    assert len(describe(found, "type:SqueezeExcite").rows) == 6


def test_as_published_moves_the_function(run):
    words = ["convert", *SMALL, "--with", "selfnorm", "--out", "a.safetensors", "--force"]
    assert "The function is kept" in run(*words)[1]
    assert "The function moved" in run(*words, "--as-published")[1]


def test_the_random_numbers_of_the_caller_are_left_alone(run):
    state = torch.get_rng_state()
    run("convert", *SMALL, "--with", "se", "--out", "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_setting_of_one_of_several_placements(run, tmp_path):
    words = ["convert", *SMALL, "--no-example", "--with", "ibn_a", "--with", "mixstyle", "--out", "a.safetensors"]
    status, out, _ = run(*words, "--set", "ibn_a.ratio=0.25", "--set", "mixstyle.p=0.1", "--report", "r.json")
    assert status == 0 and "The function" not in out
    model, _ = load(tmp_path / "a.safetensors")
    assert {norm.ratio for norm in model.modules() if isinstance(norm, IBN)} == {0.25}
    assert json.loads((tmp_path / "r.json").read_text())["movement"] is None
    assert_one_clear_line(run(*words, "--force", "--set", "ratio=0.25"), "MixStyle has no argument", "PLACEMENT.KEY")


def test_selectors_given_twice_mean_either(run, tmp_path):
    words = ["convert", *SMALL, "--with", "rbn", "--where", "block1.*", "--where", "stages:3", "--out", "a.safetensors"]
    assert run(*words)[0] == 0
    rows = describe(load(tmp_path / "a.safetensors")[0], "type:RepresentativeBatchNorm").rows
    assert {row.stage for row in rows} == {1, 3}


def test_weights_of_a_file(run, tmp_path):
    trained = create_model("wide_resnet16_4", num_classes=5)
    torch.save({"state_dict": {f"module.{key}": value for key, value in trained.state_dict().items()}}, "w.pth")
    words = ["convert", *SMALL, "--weights", "w.pth", "--with", "selfnorm", "--out", "a.safetensors"]
    assert_one_clear_line(run(*words), "fc.weight (5, 256) in the file, (3, 256) in the model", "--head skip")
    status, out, _ = run(*words, "--head", "skip", "--report", "r.json")
    assert status == 0 and "weights of w.pth" in out and "without the prefix 'module.'" in out and "random" not in out
    assert json.loads((tmp_path / "r.json").read_text())["weights"]["prefix"] == "module."
    model, _ = load(tmp_path / "a.safetensors")
    torch.testing.assert_close(model.block1.layer[0].conv1.weight, trained.block1.layer[0].conv1.weight)

    del trained.block1
    torch.save(trained.state_dict(), "part.pth")
    words[words.index("w.pth")] = "part.pth"
    assert_one_clear_line(run(*words, "--head", "skip", "--force"), "missing in the file", "--no-strict loads")
    assert run(*words, "--head", "skip", "--force", "--no-strict")[0] == 0


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_models_of_libraries_and_their_input_sizes(run, library, tmp_path):
    pytest.importorskip(library)
    status, out, _ = run("convert", f"{library}/resnet18", "--with", "cnsn@post", "--out", "a.safetensors")
    assert status == 0 and "8 changed, 0 left alone" in out and "The function is kept" in out
    assert len(describe(load(tmp_path / "a.safetensors")[0], "type:SelfNorm").rows) == 8


def test_input_sizes():
    from shiftnorm.cli_convert import _input_size

    assert _input_size(build_model("shiftnorm/wide_resnet16_4")) == (3, 32, 32)
    with torch.device("meta"):
        assert _input_size(build_model("shiftnorm/resnet18", in_channels=1)) == (1, 224, 224)
        for library, name, size in (
            ("timm", "resnet26t", (3, 256, 256)),
            ("torchvision", "inception_v3", (3, 299, 299)),
            ("torchvision", "lraspp_mobilenet_v3_large", (3, 520, 520)),
            ("torchvision", "r3d_18", None),
        ):
            if importlib.util.find_spec(library) is not None:
                arguments = {"init_weights": False} if name == "inception_v3" else {}
                assert _input_size(build_model(f"{library}/{name}", **arguments)) == size


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["shiftnorm/resnet81", "--with", "ibn_a"], ["unknown model 'shiftnorm/resnet81'", "shiftnorm/resnet18"]),
        (["resnet18", "--with", "ibn_a"], ["unknown model 'resnet18'", "shiftnorm/resnet18"]),
        (["none.safetensors", "--with", "ibn_a"], ["no file none.safetensors", "shiftnorm models"]),
        (["os:getcwd", "--with", "ibn_a"], ["would import and run code", "--allow-code"]),
        ([*SMALL], ["expected --with PLACEMENT", "shiftnorm placements"]),
        ([*SMALL, "--with", "ibn_q"], ["unknown placement 'ibn_q'", "did you mean", "ibn_a"]),
        ([*SMALL, "--with", "selfnrm@post"], ["unknown placement 'selfnrm@post'", "did you mean selfnorm"]),
        ([*SMALL, "--with", "cnsn@pots"], ["unknown slot 'pots'; did you mean post?"]),
        ([*SMALL, "--with", "cnsn", "--slot", "pots"], ["unknown slot 'pots'; did you mean post?"]),
        ([*SMALL, "--with", "ibn_a", "--slot", "post"], ["ibn_a has its own places"]),
        ([*SMALL, "--with", "cnsn", "--where", "stagess:1"], ["unknown key 'stagess'", "did you mean 'stages'"]),
        ([*SMALL, "--with", "rbn", "--where", "block9.*"], ["matches no norm", "block3.layer.1.bn2"]),
        ([*SMALL, "--with", "rbn", "--where", "stages:a"], ["expected numbers such as 3"]),
        ([*SMALL, "--with", "ibn_a", "--set", "ratioo=0.2"], ["IBN has no argument 'ratioo'; did you mean ratio?"]),
        ([*SMALL, "--with", "ibn_a", "--set", "num_features=2"], ["IBN has no argument 'num_features'"]),
        ([*SMALL, "--with", "ibn_a", "--set", "ratio"], ["expected --set KEY=VALUE", "got 'ratio'"]),
        ([*SMALL, "--with", "ibn_a", "--set", "se.ratio=1"], ["--set se.ratio is for 'se'", "expected one of ibn_a"]),
        ([*SMALL, "--with", "ibn_a", "--set", "ratio=half"], ['ibn_a with {"ratio": "half"}', "read as JSON"]),
        ([*SMALL, "--with", "ibn_a", "--set", "ratio=7"], ["ratio", "7"]),
        ([*SMALL, "--with", "ibn_a", "--input", "224"], ["does not take inputs of 224", "--no-example"]),
        ([*SMALL, "--with", "ibn_a", "--input", "3*8*8"], ["expected --input as numbers with x between", "3*8*8"]),
        ([*SMALL, "--with", "ibn_a", "--weights", "none.pth"], ["none.pth"]),
        ([*SMALL, "--with", "ibn_a", "--pretrained"], ["comes without weights"]),
        ([*SMALL, "--with", "ibn_a", "--pretrained", "--weights", "w.pth"], ["--pretrained or --weights, got both"]),
        (["torchvision/resnet18", "--with", "se", "--pretrained", "--num-classes", 3], ["its own number of classes"]),
    ],
)
def test_mistakes_end_with_one_line_and_no_file(run, tmp_path, words, parts):
    assert_one_clear_line(run("convert", *words, "--out", "a.safetensors"), *parts)
    assert not list(tmp_path.iterdir())


def test_where_the_file_goes(run, converted, tmp_path, monkeypatch):
    words = ["convert", *SMALL, "--with", "rbn"]
    assert_one_clear_line(run(*words), "expected --out FILE.safetensors")
    assert_one_clear_line(run(*words, "--out", "a.pth"), "expected --out to end in .safetensors, got a.pth")
    written = (tmp_path / converted).read_bytes()
    assert_one_clear_line(run(*words, "--out", converted), "a.safetensors exists already", "--force")
    assert (tmp_path / converted).read_bytes() == written
    (tmp_path / "d.safetensors").mkdir()
    assert_one_clear_line(run(*words, "--out", "d.safetensors", "--force"), "is a directory")
    assert_one_clear_line(run(*words, "--out", f"{converted}/b.safetensors"), "a.safetensors is a file")
    (tmp_path / "r.json").write_text("mine")
    assert_one_clear_line(run(*words, "--out", "b.safetensors", "--report", "r.json"), "r.json exists already")
    assert_one_clear_line(run(*words, "--out", "b.safetensors", "--report", "r.txt"), "--report to end in .json")
    assert (tmp_path / "r.json").read_text() == "mine" and not (tmp_path / "b.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write anywhere
        assert_one_clear_line(run(*words, "--out", "b.safetensors"), "no permission to write in", str(tmp_path))


def test_a_file_is_converted_in_place_by_force(run, converted, tmp_path):
    words = ["convert", converted, "--with", "selfnorm", "--input", "3x16x16", "--out", converted, "--report"]
    assert run(*words, "--force")[0] == 0
    assert len(load(tmp_path / converted)[1]) == 4 + 6


def test_nothing_to_change(run, converted, tmp_path):
    status, out, err = run("convert", converted, "--with", "ibn_a", "--out", "b.safetensors")
    assert status == 2 and "it is IBN already" in out and "nothing changed" in err
    assert not (tmp_path / "b.safetensors").exists()


def test_files_that_are_no_models(run, converted, tmp_path):
    from safetensors.torch import save_file

    save_file({"fc.weight": torch.ones(1)}, "weights.safetensors")
    (tmp_path / "text.safetensors").write_text("hello")
    torch.save({"fc.weight": torch.ones(1)}, "weights.pth")
    assert_one_clear_line(run("describe", "weights.safetensors"), "not written by", "--weights weights.safetensors")
    assert_one_clear_line(run("describe", "text.safetensors"), "expected a safetensors file", "text.safetensors")
    assert_one_clear_line(run("describe", "weights.pth"), "expected a safetensors file", "--weights weights.pth")
    words = ["convert", converted, "--with", "rbn", "--out", "b.safetensors", "--num-classes", 4]
    assert_one_clear_line(run(*words), "--num-classes is for a model of a library")


def test_a_model_of_ones_own(run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_nets.py").write_text(
        "from shiftnorm.models import create_model\n"
        "def small(num_classes=10):\n    return create_model('wide_resnet16_4', num_classes=num_classes)\n"
    )
    words = ["convert", "my_nets:small", "--num-classes", 3, "--with", "ibn_a", "--out", "a.safetensors"]
    assert_one_clear_line(run(*words), "--allow-code")
    assert_one_clear_line(run(*words, "--allow-code"), "input size of WideResNet is not known", "--no-example")
    assert run(*words, "--allow-code", "--input", "3x16x16")[0] == 0
    assert_one_clear_line(run("describe", "a.safetensors"), "--allow-code")
    status, out, _ = run("describe", "a.safetensors", "--allow-code")
    assert status == 0 and "my_nets:small with 4 changes" in out


def test_describe(run, converted):
    status, out, _ = run("describe", "shiftnorm/wide_resnet16_4", "--where", "stages:1")
    assert status == 0 and out.startswith("WideResNet: 4 norms (4 BatchNorm2d)")
    status, out, _ = run("describe", converted, "--json")
    record = json.loads(out)
    assert status == 0 and record["source"]["name"] == "shiftnorm/wide_resnet16_4" and len(record["edits"]) == 4
    assert_one_clear_line(run("describe", converted, "--where", "type:Ibn"), "matches no norm", "IBN")
    assert_one_clear_line(run("describe", "shiftnorm/resnet81"), "did you mean")


def test_the_folder_of_a_run_is_a_model(run, converted, tmp_path):
    folder = tmp_path / "runs" / "train-a"
    folder.mkdir(parents=True)
    assert_one_clear_line(run("describe", folder), "is a folder without model.safetensors")
    (tmp_path / converted).rename(folder / "model.safetensors")
    assert_one_clear_line(
        run("describe", folder.parent), "is a folder without model.safetensors", f"name one: {folder}."
    )
    status, out, _ = run("describe", folder)
    assert status == 0 and f"{folder}: shiftnorm/wide_resnet16_4 with 4 changes" in out
    words = ["convert", folder, "--with", "rbn", "--input", "3x16x16", "--out", "b.safetensors"]
    status, out, _ = run(*words)
    assert status == 0 and "weights of the file" in out and len(load(tmp_path / "b.safetensors")[1]) > 4
    assert_one_clear_line(run(*words, "--force", "--pretrained"), "--pretrained is for a model of a library")


def test_what_is_no_file_of_weights_is_told(run, tmp_path):
    assert run("convert", *SMALL, "--with", "selfnorm@post", "--out", "a.safetensors")[0] == 0
    words = ["convert", *SMALL, "--with", "rbn", "--out", "b.safetensors", "--weights"]
    assert_one_clear_line(run(*words, "a.safetensors"), "a.safetensors is a converted model", "give it as MODEL")
    (tmp_path / "net.py").write_text("import os\nimport sys\n")
    assert_one_clear_line(run(*words, "net.py"), "net.py is no file of torch or safetensors")


def test_models(run):
    status, out, _ = run("models", "*resnet18")
    assert status == 0
    count = sum(parameter.numel() for parameter in create_model("resnet18").parameters())
    assert f"{count:,} parameters" in next(line for line in out.splitlines() if " shiftnorm/resnet18 " in line)
    _, out, _ = run("models", "--library", "shiftnorm", "--plain")
    assert out.split() == [f"shiftnorm/{name}" for name in list_models()]
    assert_one_clear_line(run("models", "resnt18"), "no model matches 'resnt18'", "did you mean shiftnorm/resnet18")
    assert_one_clear_line(run("models", "qqqq", "--library", "shiftnorm"), "'*qqqq*'")


def test_a_library_that_is_not_installed_is_named(run, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "timm" else find(name, *a))
    status, out, _ = run("models", "resnet18")
    assert status == 0 and 'timm is not installed: pip install "shiftnorm[timm]"' in out and "timm/" not in out
    assert "timm" not in run("models", "resnet18", "--plain")[1]
    assert_one_clear_line(run("models", "--library", "timm"), 'pip install "shiftnorm[timm]"')


def test_placements(run):
    status, out, _ = run("placements")
    assert status == 0
    for name, placement in PLACEMENTS.items():
        assert any(line.startswith(f"{name} ") and line.endswith(placement.summary) for line in out.splitlines())
    assert run("placements", "ibn*", "--plain")[1].split() == ["ibn_a", "ibn_b"]
    assert_one_clear_line(run("placements", "ibn_q"), "none matches 'ibn_q'", "did you mean", "ibn_a")


@pytest.mark.parametrize("verb", ["compare", "norms", "recipes", "models", "placements", "convert", "describe"])
def test_every_help_ends_with_examples_that_parse(capsys, verb):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    _, _, examples = capsys.readouterr().out.replace("\\\n", " ").partition("examples:\n")
    lines = examples.strip().splitlines()
    assert 2 <= len(lines) <= 3
    parser = cli._make_parser()
    for line in lines:
        program, *words = line.replace("'", "").partition(">")[0].split()
        assert program == "shiftnorm" and parser.parse_args(words).verb == verb


@pytest.mark.parametrize(
    "words",
    [["convert"], ["convert", "timm/resnet18", "--with"], ["describe", "timm/resnet18", "--wher"], ["conver"]],
)
def test_words_that_do_not_parse(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("shiftnorm") and "error: " in lines[-1]
