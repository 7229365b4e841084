"""DenseNet: parity with torchvision, the places of IBN-a, slots, the network without its top."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import Factory, by, layout, shuffled, size, small
from shiftnorm import models
from shiftnorm.models import DenseNet, create_model, densenet121
from shiftnorm.norms import IBN

NAMES = ("densenet121", "densenet161", "densenet169", "densenet201")
PARAMETERS = dict(zip(NAMES, (7_978_856, 28_681_000, 14_149_480, 20_013_928), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_order_and_counts_are_torchvisions(name: str) -> None:
    theirs = pytest.importorskip("torchvision").models.get_model
    with torch.device("meta"):
        ours, expected = create_model(name), theirs(name)
    assert layout(ours) == layout(expected)
    assert size(ours) == PARAMETERS[name]


@pytest.mark.parametrize("name", ["densenet121", "densenet161"])
def test_torchvisions_weights_give_the_same_logits(name: str) -> None:
    theirs = shuffled(pytest.importorskip("torchvision").models.get_model(name, num_classes=12))
    with torch.device("meta"):
        ours = create_model(name, num_classes=12)
    ours.load_state_dict({key: value.clone() for key, value in theirs.state_dict().items()}, strict=True, assign=True)
    x = torch.randn(4, 3, 48, 64)
    with torch.no_grad():
        for mode in (False, True):
            expected = theirs.train(mode)(x)
            torch.testing.assert_close(
                ours.train(mode)(x), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max())
            )
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_the_start_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    torch.manual_seed(3)
    theirs = torchvision.models.densenet121(num_classes=10)
    torch.manual_seed(3)
    ours = densenet121(num_classes=10)
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())


@pytest.mark.parametrize(("name", "count"), list(zip(NAMES, (14, 18, 17, 22), strict=True)))
def test_places_of_ibn_a(name: str, count: int) -> None:
    ibn = partial(IBN, ratio=0.4, order="batch_first")
    with torch.device("meta"):
        model = getattr(models, name)(inner_norm=[ibn, ibn, ibn, None])
    places = [path.split(".")[1:] for path, module in model.named_modules() if isinstance(module, IBN)]
    assert len(places) == count
    assert {norm for *_, norm in places} == {"norm1"}
    assert {int(layer.removeprefix("denselayer")) % 3 for _, layer, _ in places} == {1}
    assert {block for block, *_ in places} == {"denseblock1", "denseblock2", "denseblock3"}
    assert size(model) == PARAMETERS[name]
    first = model.features.denseblock1.denselayer1.norm1
    assert first.num_features - first.num_instance == int(first.num_features * 0.6)


def test_inner_norm_can_stand_in_every_layer() -> None:
    model = small(DenseNet, inner_norm=[None, nn.InstanceNorm2d, None, None], inner_every=1)
    kinds = [[type(layer.norm1) for layer in getattr(model.features, f"denseblock{number}")] for number in (1, 2)]
    assert kinds == [[nn.BatchNorm2d] * 4, [nn.InstanceNorm2d] * 2]


def test_slots_stand_where_they_say() -> None:
    x = torch.randn(2, 8, 8, 8)

    def layer(**slots: Factory) -> nn.Module:
        return small(DenseNet, slots=slots).features.denseblock1[0]

    plain = layer()

    def new(start: Tensor) -> Tensor:
        return plain.conv2(F.relu(plain.norm2(plain.conv1(F.relu(plain.norm1(start))))))

    same = torch.testing.assert_close
    same(plain(x), torch.cat([x, new(x)], 1))
    # What is concatenated stays raw.
    same(layer(pre=by(2))(x), torch.cat([x, new(2 * x)], 1))
    same(layer(post=by(3))(x), torch.cat([x, 3 * new(x)], 1))
    same(layer(pre=by(1), post=by(1))(x), plain(x))
    blocks = small(DenseNet, slots={"pre": by(1), "post": by(1)}).features.denseblock2
    assert [(block.pre.channels, block.post.channels) for block in blocks] == [(12, 4), (16, 4)]


def test_without_the_top() -> None:
    whole, headless = small(DenseNet), small(DenseNet, include_top=False)
    headless.load_state_dict(
        {name: value for name, value in whole.state_dict().items() if not name.startswith("classifier")}
    )
    x = torch.randn(2, 3, 64, 96)
    feature = headless(x)
    assert feature.shape == (2, 13, 2, 3) and feature.min() >= 0
    torch.testing.assert_close(whole.classifier(feature.mean((2, 3))), whole(x))


def test_a_stem_without_stride_takes_smaller_images() -> None:
    model = small(DenseNet)
    model.features.conv0, model.features.pool0 = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.Identity()
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
