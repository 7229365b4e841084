"""A whole evaluation: its numbers by hand, and the model as it was found."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

from shiftnorm import norms
from shiftnorm.data import ImageSet, corrupt
from shiftnorm.data.dataset import Dataset
from shiftnorm.evaluate.plan import refuse_collectives
from shiftnorm.evaluate.result import Result
from shiftnorm.evaluate.robustness import robustness

NAMES = ("gaussian_noise", "brightness")


def make_images(n=21, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    colours = torch.randint(0, 256, (n, 3, 2, 2), generator=generator).float()
    noise = 20 * torch.randn(n, 3, side, side, generator=generator)
    return (nn.functional.interpolate(colours, (side, side), mode="bilinear") + noise).clamp(0, 255).to(torch.uint8)


def make_net(classes=3, seed=1):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )
    with torch.no_grad():
        net[6].weight *= 20  # so that predictions differ between images
        net[6].bias.zero_()
    return net


def run(model, data, corruptions=NAMES, severities=(1, 4), **options):
    options = {"normalize": "half", "progress": False, "bootstrap": 50, **options}
    return robustness(model, data, corruptions, severities, **options)


def test_every_error_by_hand():
    images, labels, model = make_images(), torch.arange(21) % 3, make_net()
    result = run(model, (images, labels), seed=7, batch_size=8)
    model.eval()

    def error(shown):
        with torch.no_grad():
            return 100 * (model(shown.float() / 255 * 2 - 1).argmax(1) != labels).double().mean().item()

    assert result.clean.error.value == pytest.approx(error(images))
    for cell in result.cells:
        expected = error(corrupt(images, cell.corruption, cell.severity, seed=7, constants="cifar32"))
        assert cell.error.value == pytest.approx(expected)
    assert [(cell.corruption, cell.severity) for cell in result.cells] == [(n, s) for n in NAMES for s in (1, 4)]
    plain = sum(cell.error.value for cell in result.cells) / 4
    assert len({cell.error.value for cell in result.cells}) > 2
    assert result.mean_corruption_error.value == pytest.approx(plain)
    assert result.mean_corruption_error.low <= plain <= result.mean_corruption_error.high
    assert result.images == 21 and result.cost["parameters"] == sum(p.numel() for p in model.parameters())
    assert result.cost["ms_per_image"] > 0


def test_batch_size_does_not_matter():
    data, model = (make_images(), torch.arange(21) % 3), make_net()
    first, second = (run(model, data, batch_size=size) for size in (5, 64))
    assert first.errors == second.errors
    assert first.clean.nll == pytest.approx(second.clean.nll, rel=1e-5)


def test_kinds_of_data_agree():
    images, labels = make_images(), torch.arange(21) % 3
    data = [
        (images, labels),
        [images.float() / 255, labels.to(torch.int32)],
        ImageSet(images, labels, ("a", "b", "c"), "toy"),
        Dataset.of_images("toy", images, labels, ("a", "b", "c")),
    ]
    results = [run(make_net(), each, ["fog"], [2]) for each in data]
    assert len({str(result.errors) for result in results}) == 1
    assert results[2].classes == ["a", "b", "c"] and results[2].data["name"] == "toy"
    assert len({result.fingerprint["data"] for result in results}) == 1


def test_a_subset_sees_the_pixels_of_the_whole_and_other_outputs_do_not_count():
    images, labels = make_images(), torch.arange(21) % 3
    whole = Dataset.of_images("toy", images, labels, ("a", "b", "c"))
    part = whole.subset([20, 3, 11])
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return x.float().mean((2, 3))

    model = Spy()
    run(model, part, ["gaussian_noise"], [3], normalize="bytes", examples=False, bootstrap=0)
    assert torch.equal(seen[-1], corrupt(images, "gaussian_noise", 3)[[20, 3, 11]])
    # the model has 5 outputs, of which 4 and 1 are the two classes of the data
    subset = Dataset.of_images(
        "r", images[:4], torch.tensor([0, 1, 0, 1]), ("x", "y"), class_subset=torch.tensor([4, 1])
    )

    class Fixed(nn.Module):
        def forward(self, x):
            return torch.tensor([9.0, 1.0, 9.0, 9.0, 2.0]).expand(len(x), 5)

    assert run(Fixed(), subset, ["fog"], [1]).clean.error.value == 50.0


class Adapting(nn.Module):
    """Changes a buffer in eval mode, and draws."""

    def __init__(self):
        super().__init__()
        self.register_buffer("level", torch.zeros(()))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        self.level += x.mean()
        return self.head(x.mean((2, 3)) + torch.randn(3)) + self.level


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_model_and_the_generators_are_left_as_they_were(channels_last):
    model = nn.Sequential(make_net(), nn.Identity()).train()
    model[0][1].eval()
    model[0][6].weight.grad = torch.ones_like(model[0][6].weight)
    before = copy.deepcopy(model.state_dict())
    pointers = [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())]
    strides = [parameter.stride() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    state, python = torch.get_rng_state(), random.getstate()
    run(model, (make_images(), torch.arange(21) % 3), channels_last=channels_last)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())] == pointers
    assert [parameter.stride() for parameter in model.parameters()] == strides
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    assert model[0][6].weight.grad is not None
    model(torch.zeros(2, 3, 32, 32)).sum().backward()


def test_a_model_is_left_as_it_was_when_it_fails():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.inner = nn.BatchNorm2d(3)

        def forward(self, x):
            self.calls += 1
            raise OSError("broken")

    model = Failing().train()
    with pytest.raises(OSError, match="broken"):
        run(model, (make_images(), torch.arange(21) % 3))
    assert model.training and model.inner.training and model.calls == 0


def test_cells_do_not_depend_on_each_other(tmp_path):
    model, data = Adapting().train(), (make_images(), torch.arange(21) % 3)
    whole = run(model, data)
    alone = run(model, data, ["brightness"], [4])
    assert alone.errors["brightness"][0] == whole.errors["brightness"][1]
    assert alone.cells[0].nll == whole.cells[-1].nll
    assert model.level == 0


def test_norms_that_use_the_batch_are_noted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norms.BatchNorm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[1].source = "batch"
    result = run(model, (make_images(), torch.arange(21) % 3), ["fog"], [1])
    assert any("1 norm, such as '1', uses the moments of each batch" in note for note in result.notes)
    assert (
        "batch size" in result.fingerprint
        and "batch size" not in run(make_net(), (make_images(), torch.arange(21) % 3), ["fog"], [1]).fingerprint
    )


def test_ranks_refuse_forward_passes_that_wait_for_each_other():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norms.BatchNorm(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refuse_collectives(model)
    model[1].process_group = "all"
    refuse_collectives(model)  # in eval mode it uses running moments
    model[1].source = "batch"
    with pytest.raises(ValueError, match="the norm '1' pools the moments of the batch over ranks"):
        refuse_collectives(model)


def test_autocast():
    model, data = make_net(), (make_images(), torch.arange(21) % 3)
    seen = []
    model[6].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    result = run(model, data, ["fog"], [1], amp="bfloat16")
    assert set(seen) == {torch.bfloat16} and result.settings["amp"] == "bfloat16"
    full = run(make_net(), data, ["fog"], [1])
    assert result.clean.nll == pytest.approx(full.clean.nll, abs=0.2) and full.settings["amp"] is None


@pytest.mark.parametrize(
    "make", [lambda scores: {"logits": scores}, lambda scores: (scores, None), lambda scores: {"out": scores}]
)
def test_scores_in_containers(make):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            return make(self.net(x))

    data = (make_images(), torch.arange(21) % 3)
    assert run(Wrapped(), data, ["fog"], [1]).errors == run(make_net(), data, ["fog"], [1]).errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"corruptions": "fgo"}, ValueError, "did you mean one of fog"),
        ({"corruptions": ["frost"]}, ValueError, "pass frost_dir, or use 'frost_procedural'"),
        ({"severities": [0]}, ValueError, r"severities must be among 1 to 5, got \[0\]"),
        ({"severities": [2, 2]}, ValueError, "each severity once"),
        ({"severities": []}, ValueError, "severities must be among"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"seed": 1.5}, TypeError, "seed must be a whole number"),
        ({"constants": "cifar23"}, ValueError, "did you mean 'cifar32'"),
        ({"storage": "png"}, ValueError, "storage must be one of"),
        ({"amp": "float8"}, ValueError, "amp must be True"),
        ({"baseline": "alexnet"}, KeyError, "did you mean 'AlexNet'"),
        ({"process_group": "alne"}, TypeError, "process_group"),
    ],
)
def test_wrong_settings_are_refused_before_anything_runs(options, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run(make_net(), (make_images(), torch.arange(21) % 3), out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("folder", TypeError, "expected a shiftnorm Dataset"),
        ((make_images(0), torch.arange(0)), ValueError, "has no images"),
        ((make_images().float(), torch.arange(21) % 3), ValueError, r"must be in \[0, 1\]"),
        ((make_images(), torch.rand(21)), ValueError, "labels"),
        ((make_images(), torch.arange(20)), ValueError, "20"),
        ((make_images(side=40), torch.arange(21) % 3), ValueError, r"for 40x40 .*, constants= cifar32, .*crop224\""),
        ((make_images(), torch.arange(21) % 3 + 1), ValueError, r"3 outputs, but images has 4 classes"),
    ],
)
def test_wrong_data_are_refused(data, error, message):
    with pytest.raises(error, match=message):
        run(make_net(), data)


def test_nan_scores_name_their_cell():
    class Diverging(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)) * (1.0 if x.flatten(2).std(-1).mean() > 0.15 else float("nan"))

    with pytest.raises(ValueError, match=r"in the cell contrast 5: .*NaN"):
        run(Diverging(), (make_images(), torch.arange(21) % 3), ["contrast"], [1, 5])


def test_a_wrong_output_is_named():
    with pytest.raises(TypeError, match=r"\(N, classes\) scores, it returned \(21, 3, 32, 32\)"):
        run(nn.Identity(), (make_images(), torch.arange(21) % 3))


def test_progress_tells_of_cells(capsys):
    run(make_net(), (make_images(), torch.arange(21) % 3), ["fog"], [1], progress=True)
    told = capsys.readouterr().err
    assert "2 of 2 cells" in told and "fog 1" in told  # lines, as standard error is no terminal here


def test_the_mean_error_of_mce_needs_a_baseline_that_covers():
    data, model = (make_images(), torch.arange(21) % 3), make_net()
    reference = run(model, data)
    again = run(model, data, baseline=reference)
    assert again.mce.value == pytest.approx(100.0)
    assert again.baseline["called"] == "mCE" and again.baseline["name"] == "Sequential"
    short = run(model, data, ["fog"], [1], baseline=reference)
    assert short.mce is None and any("No mCE" in note and "fog" in note for note in short.notes)
    named = run(model, data, baseline="AlexNet")
    assert named.mce is None and any("imagenet224" in note and "1000 classes" in note for note in named.notes)


def test_a_saved_result_is_the_same(tmp_path):
    result = run(make_net(), (make_images(), torch.arange(21) % 3), out=tmp_path)
    loaded = Result.load(tmp_path)
    assert loaded.to_json() == result.to_json() and loaded.folder == tmp_path.resolve()
    assert str(loaded) == str(result) and "mean corruption error" in str(result)
    assert {(shown.corruption, shown.severity) for shown in loaded.examples} == {
        ("clean", 0),
        *((name, severity) for name in NAMES for severity in (1, 4)),
    }
    assert torch.equal(loaded.examples[0].image, make_images()[0])
