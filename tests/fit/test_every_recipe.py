"""Every training recipe of the package trains for two steps: its network, edits, objective and optimizer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from shiftnorm.fit.network import build_network
from shiftnorm.recipe_files import list_recipes
from shiftnorm.train_recipe import load_train_recipe
from toy_training import CLASSES, Given, batch, task, trainer

# Most of the papers' recipes differ in numbers, not in code: of them only these are in the quick suite.
QUICK = {"cifar10/allconv/cnsn-consist", "cifar100/densenet40_12/cn", "cifar10/resnet18/bin"}


def names() -> list[object]:
    found = [name for name in list_recipes() if not name.startswith("compare-")]
    return [
        name if name.startswith("small/") or name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in found
    ]


@pytest.mark.parametrize("name", names())
def test_two_steps(name: str) -> None:
    recipe = load_train_recipe(name)
    # The recipe as it is, but for what only costs time: small images for ImageNet, one epoch, CrossNorm in every step.
    size = min(recipe.data.size, 64)
    p = min(recipe.crossnorm.p * 1e9, 1.0)
    arguments = {"weights": None} if "weights" in recipe.model.arguments else {}  # would be downloaded
    recipe = replace(
        recipe,
        data=replace(recipe.data, size=size),
        crossnorm=replace(recipe.crossnorm, p=p),
        model=replace(recipe.model, arguments={**recipe.model.arguments, **arguments}),
        loop=replace(recipe.loop, epochs=1, device="cpu", processes=1, nodes=1),
    )
    model = build_network(recipe.model, CLASSES, size, seed=recipe.loop.seed, say=lambda line: None)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = task(model, 2, recipe)
    trainer(max_epochs=1).fit(trained, Given([batch(4, seed, size) for seed in range(2)]))
    after = trained.model.state_dict()
    assert trained.batches_seen == 2
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    learned = [key for key, _ in trained.model.named_parameters()]
    still = [key for key in learned if torch.equal(before[key], after[key])]
    assert not still, f"{len(still)} of {len(learned)} parameters did not move, such as {still[:3]}"
