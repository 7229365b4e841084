"""Wrong normalization of a trained network's inputs is noticed, and the right one is not complained about."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from shiftnorm.evaluate.normalization import (
    NAMED,
    Normalization,
    choose_normalization,
    known_normalization,
    unknown_warning,
)
from shiftnorm.evaluate.plausibility import check_inputs, first_norm_distance
from shiftnorm.evaluate.robustness import robustness
from shiftnorm.models import create_model
from shiftnorm.norms import CNSN, BatchNorm, Chain
from shiftnorm.surgery import build_model, convert

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def make_images(n, seed):
    """Smooth coloured pictures with about the moments of photographs; the class is the colour that prevails."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(n, 3, 4, 4, generator=generator)
    fine = torch.randn(n, 3, 32, 32, generator=generator)
    images = 120 + 55 * F.interpolate(coarse, (32, 32), mode="bicubic") + 12 * fine
    return images.clamp(0, 255).to(torch.uint8), images.mean((2, 3)).argmax(1)


class Normalizing(nn.Module):
    """Takes images in [0, 1] and normalizes them itself."""

    def __init__(self, net, mean, std):
        super().__init__()
        self.net = net
        self.mean, self.std = (torch.tensor(part).view(1, 3, 1, 1) for part in (mean, std))

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def train(net, normalization, steps=25, batch=64, momentum=0.3):
    for module in net.modules():
        if hasattr(module, "running_mean"):
            module.momentum = momentum  # so few steps would leave some of the initial statistics
    images, labels = make_images(256, 0)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for step in range(steps):
        part = slice(batch * (step % 4), batch * (step % 4) + batch)
        loss = F.cross_entropy(net(normalization.apply(images[part])), labels[part])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def small_net(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), norm(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), norm(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3)),
    )


def named(name):
    return Normalization(*(CIFAR if name == "cifar" else NAMED[name]), name)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    return {name: train(small_net(), named(name)) for name in ("imagenet", "half", "none", "cifar")}


TEST = make_images(64, 1)


@pytest.mark.parametrize("right", ["imagenet", "half", "none", "cifar"])
@pytest.mark.parametrize("given", ["imagenet", "half", "none", "cifar"])
def test_every_pair_of_normalizations(trained, right, given):
    found = check_inputs(trained[right], TEST[0], named(given))
    if right == given or {right, given} == {"imagenet", "cifar"}:  # those two are nearly alike
        assert found.warnings == [] and found.notes == [] and found.distance < 0.1
        return
    assert len(found.warnings) == 1 and found.distance > 0.5
    remedies = {"cifar": "CIFAR's|imagenet", "imagenet": "CIFAR's|imagenet"}
    assert any(name in found.warnings[0].split("with normalize=")[1] for name in remedies.get(right, right).split("|"))
    assert ("images in [0, 1] reach a model" in found.warnings[0]) == (given == "none")


def test_double_normalization_is_named(trained):
    model = Normalizing(trained["imagenet"], *NAMED["imagenet"]).eval()
    assert check_inputs(model, TEST[0], named("none")).warnings == []
    found = check_inputs(model, TEST[0], named("imagenet"))
    assert 'normalize="none" it fits' in found.warnings[0] and "normalized twice" in found.warnings[0]


def test_levels_0_to_255(trained):
    model = train(small_net(), named("none")._replace(std=(1 / 255,) * 3), steps=12)
    assert "levels 0 to 255" in check_inputs(model, TEST[0], named("none")).warnings[0]
    levels = named("none")._replace(std=(1 / 255,) * 3)
    assert 'normalize="none" it fits' in check_inputs(trained["none"], TEST[0], levels).warnings[0]
    with pytest.raises(ValueError, match="divide both by 255"):
        choose_normalization(model, ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4)))


def test_corrupted_training_data_would_not_be_blamed_on_the_normalization(trained):
    # another domain: darker pictures with less contrast
    darker = (TEST[0].float() * 0.8).to(torch.uint8)
    assert check_inputs(trained["imagenet"], darker, named("imagenet")).warnings == []


def test_features_that_nothing_explains(trained):
    noise = torch.randint(0, 2, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0)) * 255
    model = trained["imagenet"]
    found = check_inputs(model, noise.to(torch.uint8), named("imagenet"))
    assert found.distance > 0.5 and (found.warnings or "another domain" in found.notes[0])


@pytest.mark.parametrize("norm", [BatchNorm, CNSN, lambda channels: Chain(BatchNorm(channels), BatchNorm(channels))])
def test_our_norms(norm):
    if norm is CNSN:
        norm = lambda channels: Chain(BatchNorm(channels), *CNSN(channels))
    model = train(small_net(norm), named("half"))
    assert check_inputs(model, TEST[0], named("half")).warnings == []
    assert 'normalize="half" it fits' in check_inputs(model, TEST[0], named("imagenet")).warnings[0]


def test_a_residual_network_and_one_after_surgery():
    torch.manual_seed(0)
    model = train(create_model("wide_resnet16_4", num_classes=3), named("imagenet"), steps=5, batch=16, momentum=0.9)
    for net in (model, convert(model, "ibn_a", where="stage:1")[0].eval()):
        assert check_inputs(net, TEST[0], named("imagenet")).warnings == []
        assert check_inputs(net, TEST[0], named("none")).warnings
        assert not any(module._forward_pre_hooks for module in net.modules())


def test_untrained_norms_cannot_be_checked():
    for model in (small_net().eval(), small_net(lambda channels: nn.GroupNorm(4, channels)).eval(), nn.Flatten()):
        found = check_inputs(model, TEST[0], named("imagenet"))
        assert found.warnings == [] and "could not be checked" in found.notes[0] and found.distance is None


def test_distance_by_hand():
    norm = nn.BatchNorm2d(1).eval()
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)  # mean 1, variance 1
    found = first_norm_distance(norm, x)
    assert found.value == pytest.approx(0.5 * (1 / 4 + 4) - 1 + 0.5 * 1 * (1 + 1 / 4), rel=1e-4)
    assert found.scale == pytest.approx(0.5, rel=1e-4) and found.shift == pytest.approx(0.5, rel=1e-4)


def test_the_whole_evaluation_warns(trained):
    images, labels = make_images(64, 2)
    run = lambda normalize: robustness(
        trained["imagenet"], (images, labels), ["fog"], [1], normalize=normalize, bootstrap=0, progress=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        right = run("imagenet")
    assert right.warnings == [] and right.clean.error.value < 30 and right.cost["input_distance"] < 0.1
    with pytest.warns(UserWarning, match="normalized otherwise than in training"):
        wrong = run("none")
    assert len(wrong.warnings) == 1 and wrong.cost["input_distance"] > 0.5


def test_the_model_says_it_itself():
    model = small_net()
    assert known_normalization(model) is None
    silent = choose_normalization(model, "model")
    assert silent.mean == (0.0,) * 3 and silent.std == (1.0,) * 3
    assert "Say what it was trained with, by normalize= or --normalize: imagenet" in unknown_warning(silent)[0]
    assert unknown_warning(choose_normalization(model, "none")) == []
    model.input_normalization = CIFAR
    assert choose_normalization(model, "model").mean == CIFAR[0]
    assert choose_normalization(nn.DataParallel(model), "model").mean == CIFAR[0]
    model.input_normalization = ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
    with pytest.raises(ValueError, match=r"not for images in \[0, 1\]"):
        choose_normalization(model, "model")


def test_what_is_given_goes_before_what_the_model_says_and_that_before_its_weights(trained):
    pytest.importorskip("torchvision")
    model = build_model("torchvision/resnet18")
    assert choose_normalization(model, "model").name == "torchvision's weights of this architecture"
    model.input_normalization = CIFAR
    assert choose_normalization(model, "model").name == "the model's input_normalization"
    assert choose_normalization(model, "half").name == "half"
    # of a model that says nothing it is told in the result, also where nothing else looks wrong
    with pytest.warns(UserWarning, match="the model does not say how its inputs are normalized"):
        result = robustness(trained["none"], TEST, "contrast", [5], progress=False, bootstrap=0, constants="cifar32")
    assert len(result.warnings) == 1 and result.settings["normalize"] == "none, as the model does not say"
    with pytest.warns(UserWarning) as both:
        robustness(trained["imagenet"], TEST, "contrast", [5], progress=False, bootstrap=0)
    assert len(both) == 2


def test_timm_and_torchvision_say_it():
    pytest.importorskip("timm")
    pytest.importorskip("torchvision")
    imagenet = named("imagenet")
    assert known_normalization(build_model("torchvision/resnet18")).same_as(imagenet)
    assert known_normalization(build_model("torchvision/resnet18", num_classes=10)) is None
    assert known_normalization(build_model("timm/resnet18")).same_as(imagenet)
    assert known_normalization(build_model("timm/vit_tiny_patch16_224")).same_as(named("half"))
    import torchvision

    assert known_normalization(torchvision.models.resnet18()).same_as(imagenet)
    assert known_normalization(torchvision.models.resnet18(num_classes=5)) is None
    model = build_model("timm/resnet18").eval()
    found = check_inputs(model, TEST[0][:8], named("none"))
    assert "timm's pretrained_cfg says mean (0.485" in found.warnings[0]


@pytest.mark.parametrize("layers", [small_net(), nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))])
def test_bytes_for_a_model_that_does_not_take_them(layers, tmp_path):
    with pytest.raises(ValueError, match=r"normalize='bytes' hands the model uint8 images, .*name what this one was"):
        robustness(layers, TEST, ["fog"], [1], normalize="bytes", out=tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("normalize", ["imagnet", ((0.5,), (0.5,)), ((0, 0, 0), (1, 0, 1)), 3])
def test_wrong_normalizations(normalize):
    with pytest.raises(ValueError, match=r"robustness: (normalize must be|expected .mean, std.)"):
        choose_normalization(small_net(), normalize)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here(device):
    with pytest.raises(ValueError, match=r"robustness: (expected device such as cpu|there is no cuda:99)"):
        robustness(small_net(), TEST, device=device)
