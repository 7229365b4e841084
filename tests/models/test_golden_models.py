"""The authors' numbers: every golden network, built from our backbones and norms.

``pytest tests -k golden --golden DIR``: DIR is the folder with ``models/``, or one that holds such files itself.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from conftest import DEFAULT_GOLDEN
from golden_families import BUILDERS, DEAD, FAMILIES, IBN_NET, Network, build, identify, parse
from golden_models import (
    ModelCase,
    check_case,
    check_listing,
    count_parameters,
    differences,
    find_counts,
    find_listings,
    find_model_cases,
    load_model_case,
    replay,
    run_case,
    sensitivity,
    shapes_of,
)
from golden_weights import formula_images, formula_state, formula_tensor, places, probe, signed_draws, unit_draws
from shiftnorm import norms
from shiftnorm.models import create_model

FIND = {"model_path": find_model_cases, "listing_path": find_listings, "counts_path": find_counts}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for fixture in FIND.keys() & set(metafunc.fixturenames):
        given = metafunc.config.getoption("--golden", default=None)
        directory = DEFAULT_GOLDEN if given is None else metafunc.config.invocation_params.dir / given
        cases = [pytest.param(path, id=f"golden-{path.stem}") for path in FIND[fixture](directory)]
        if not cases:
            absent = pytest.mark.skip(reason=f"no golden networks in {directory}")
            # A folder that was asked for and is not there is a failure; one of layers only is none.
            marks = [absent] if given is None or any(directory.rglob("*.npz")) else []
            cases = [pytest.param(directory, id="golden-none", marks=marks)]
        metafunc.parametrize(fixture, cases)


def require_file(path: Path) -> None:
    if not path.is_file():
        state = "holds no *.npz" if path.is_dir() else "does not exist"
        pytest.fail(f"--golden {path}: expected a folder with golden networks, but it {state}")


def test_golden_model(model_path: Path) -> None:
    require_file(model_path)
    check_case(load_model_case(model_path))


def test_golden_listing(listing_path: Path) -> None:
    require_file(listing_path)
    listing = json.loads(listing_path.read_text())
    check_listing(build(parse(listing["model"]), device="meta"), listing)


def test_golden_parameter_counts(counts_path: Path) -> None:
    require_file(counts_path)
    counts = json.loads(counts_path.read_text())
    assert {name: count_parameters(build(parse(name), device="meta")) for name in counts} == counts


# Every list of the golden folder, with its parameters; those of the residual places are alike.
PARAMETERS = {
    "allconv_sn_pos1": 1_415_434,
    "allconv_sn_pos2": 1_415_434,
    "allconv_sn_pos3": 1_415_434,
    "densenet121_ibn_a": 7_978_856,
    "densenet40_sn_conv1_pre": 1_092_994,
    "densenet40_sn_conv1_post": 1_061_026,
    "resnet18_ibn_a": 11_689_512,
    "resnet18_ibn_b": 11_689_896,
    "resnet34_ibn_a": 21_797_672,
    "resnet34_ibn_b": 21_798_056,
    "resnet50_sn_post": 25_617_448,
    "resnet50_ibn_a": 25_557_032,
    "resnet50_ibn_a_sn_identity": 25_617_448,
    "resnet50_ibn_a_sn_pre": 25_609_512,
    "resnet50_ibn_a_sn_residual": 25_617_448,
    "resnet50_ibn_b": 25_558_568,
    "resnet50_ibn_b_sn_post": 25_615_912,
    "resnet50_ibn_b_sn_residual": 25_618_984,
    "resnet50_plain_cnsnrepo": 25_557_032,
    "resnet50_sn_identity": 25_617_448,
    "resnet50_sn_pre": 25_609_512,
    "resnet50_sn_residual": 25_617_448,
    "resnext101_ibn_a": 44_177_704,
    "resnext29_sn_identity": 6_825_546,
    "resnext29_sn_post": 6_829_386,
    "resnext29_sn_pre": 6_825_546,
    "resnext29_sn_residual": 6_829_386,
    "resnext50_ibn_a": 25_028_904,
    "se_resnet50_ibn_a": 28_071_976,
    "wrn40_2_cn_post_neither": 2_243_546,
    "wrn40_2_sn_identity": 2_248_922,
    "wrn40_2_sn_post": 2_248_922,
    "wrn40_2_sn_pre": 2_248_474,
    "wrn40_2_sn_residual": 2_248_922,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_every_network(name: str) -> None:
    assert count_parameters(build(parse(name), device="meta")) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("wrn40_2_cnsn_pre_both", Network("wrn40_2", "", "cnsn", "pre", "both")),
        ("allconv_cnsn_pos1_style", Network("allconv", "", "cnsn", "pos1", "style")),
        ("densenet40_cnsn_conv1_pre_content", Network("densenet40", "", "cnsn", "conv1_pre", "content")),
        ("resnext29_cnsn_identity_both_all", Network("resnext29", "", "cnsn", "identity", "both")),
        ("resnet50_ibn_b_sn_post", Network("resnet50", "b", "sn", "post")),
        ("se_resnet50_ibn_a", Network("se_resnet50", "a")),
        ("resnet50_plain_cnsnrepo", Network("resnet50")),
    ],
)
def test_names_say_what_to_build(name: str, network: Network) -> None:
    assert parse(name) == network
    assert network.backbone in BUILDERS


@pytest.mark.parametrize(
    "name",
    [
        "vgg16_ibn_a",
        "wrn40_2_sn_conv1_pre",
        "wrn40_2_sn",
        "wrn40_2_ibn_a_sn_post",
        "densenet121_ibn_b",
        "se_resnet50_ibn_b",
        "allconv_sn_pos4",
        "resnet50_ibn_c",
        "",
    ],
)
def test_unknown_names_fail(name: str) -> None:
    with pytest.raises(ValueError, match="the harness knows no such network"):
        parse(name)


def meta(name: str, family: str, **kw: object) -> dict[str, object]:
    return {"name": name, "part": "eval", "family": family, "kw": kw, "N": 2, "HW": 32}


def test_family_and_arguments_must_bear_the_name_out() -> None:
    name = "wrn40_2_cnsn_post_both"
    known = identify(meta(name, "wrn", cnsn_type="cnsn", pos="post", crop="both", beta=1, active_num=2))
    assert known == identify(meta(name, "wrn")) == identify(meta(name, "wide", depth=40)) == parse(name)
    assert identify(meta("wrn40_2_cnsn_post", "wrn", crop="style")).crop == "style"
    assert identify(meta("allconv_sn_pos2", "allconv", pos=2)).position == "pos2"
    assert identify(meta("resnet50_ibn_a_sn_pre", "resnet50_cnsn", ibn_cfg=["a"])).ibn == "a"
    for family, kw, message in (
        ("wrn", {"pos": "pre"}, "does not fit its arguments"),
        ("wrn", {"cnsn_type": "cn"}, "does not fit its arguments"),
        ("wrn", {"crop": "style"}, "does not fit its arguments"),
        ("wrn", {"depth": 16}, r"unknown arguments \['depth'\] of family 'wrn'"),
        ("resnext", {}, "family 'resnext' has resnext29"),
    ):
        with pytest.raises(ValueError, match=message):
            identify(meta(name, family, **kw))
    with pytest.raises(ValueError, match="does not fit its fn='resnet50_ibn_b'"):
        identify(meta("resnet50_ibn_a", "ibnnet") | {"fn": "resnet50_ibn_b"})
    assert {backbone for known in FAMILIES.values() for backbone in known} == BUILDERS.keys() >= IBN_NET.keys()


def test_formula() -> None:
    assert unit_draws(0, 3).tolist() == [0.8833108082136426, 0.43152799704850997, 0.026433771592597743]
    # The same in Python's own integers.
    for i, k in ((0, 3), (7, 1000003), (41, 7777777)):
        z = (0x9E3779B97F4A7C15 * (i + 1) + 0xBF58476D1CE4E5B9 * k) % 2**64
        z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) % 2**64
        assert unit_draws(k, 50)[i] == ((z ^ z >> 31) >> 11) / 2**53
    s = signed_draws(5, (4,))
    torch.testing.assert_close(formula_tensor("bn.weight", (4,), 5), 1 + 0.4 * s)
    torch.testing.assert_close(formula_tensor("bn.bias", (4,), 5), 0.2 * s)
    torch.testing.assert_close(formula_tensor("bn.running_mean", (4,), 5), 0.2 * s)
    torch.testing.assert_close(formula_tensor("bn.running_var", (4,), 5), 1 + 0.5 * s)
    torch.testing.assert_close(formula_tensor("fc.weight", (2, 3), 5), 1.4 * signed_draws(5, (2, 3)))
    state = formula_state({"b.weight": (1,), "a.num_batches_tracked": (), "a.weight": (1,)})
    assert state["a.num_batches_tracked"] == 0
    torch.testing.assert_close(state["b.weight"], 1 + 0.4 * signed_draws(1, (1,)))
    n, c, h, w = 1, 2, 3, 4
    base = 0.8 * np.sin(0.3 * (h + 1) * (1 + 0.5 * c) + 0.7 * n) * np.cos(0.2 * (w + 1) + 0.1 * c)
    noise = signed_draws(1000003, (2, 3, 5, 5))[n, c, h, w]
    pixel = 0.4 * ((n + 2 * c) % 3 - 1) + (0.5 + 0.25 * ((n + c) % 4)) * (base + noise)
    torch.testing.assert_close(formula_images(2, 5)[n, c, h, w], pixel)


@pytest.fixture(scope="module")
def own_case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train file made here, of the network whose names are ours already."""
    model = create_model("wide_resnet40_2").double()
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    k = {name: place for place, name in enumerate(sorted(names))}
    for name in names:
        model.state_dict()[name].copy_(formula_tensor(name, tuple(model.state_dict()[name].shape), k[name]))
    found = {}
    model.get_submodule("block2").register_forward_hook(lambda _, __, y: found.update(y=y.detach()))
    images = formula_images(4, 32).requires_grad_()
    logits = model(images)
    labels = torch.tensor([0, 3, 6, 9])
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    assert images.grad is not None
    parameters = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    buffers = {name: value for name, value in model.named_buffers() if name in k}
    facts = meta("wrn40_2_cn_post_neither", "wrn") | {"part": "train", "N": 4, "no_grad_params": []}
    facts |= {"grad_names": list(parameters), "buffer_names": list(buffers)}
    path = tmp_path_factory.mktemp("golden") / "models" / "own.npz"
    path.parent.mkdir()
    np.savez(
        path,
        **{
            "meta": json.dumps(facts),
            "logits": logits.detach().numpy(),
            "loss": loss.detach().numpy(),
            "labels": labels.numpy(),
            "stage.block2.mean": found["y"].mean((2, 3)).numpy(),
            "stage.block2.std": found["y"].std((2, 3), correction=0).numpy(),
            "grad_probe": torch.stack([probe(value, k[name]) for name, value in parameters.items()]).numpy(),
            "buffer_after_probe": torch.stack([probe(value, k[name]) for name, value in buffers.items()]).numpy(),
            "grad_x_probe": probe(images.grad, 7777777).numpy(),
        },
    )
    return path


def changed(case: ModelCase, key: str, amount: float) -> ModelCase:
    value = case.arrays[key].clone()
    value.view(-1)[-1] += amount
    return replace(case, arrays=case.arrays | {key: value})


def test_harness_on_a_case_of_ours(own_case: Path) -> None:
    case = load_model_case(own_case)
    outcome = run_case(case)
    assert differences(case, outcome) == []

    def problems(**arrays: torch.Tensor) -> list[str]:
        return differences(replace(case, arrays=case.arrays | arrays), outcome)

    for key in case.arrays:
        found = differences(changed(case, key, 1 if key == "labels" else 1e-5), outcome)
        assert len(found) == 1 and "differs by" in found[0]
    assert problems(logits=torch.zeros(4, 9)) == ["logits: shape (4, 10), expected (4, 9)"]
    assert problems(loss=torch.tensor(float("nan")))[0].startswith("loss: differs by nan")
    assert problems(**{"stage.block1.mean": torch.zeros(4, 32)}) == ["stage.block1.mean: missing"]
    fewer = replace(
        case,
        meta={**case.meta, "grad_names": case.meta["grad_names"][1:]},
        arrays=case.arrays | {"grad_probe": case.arrays["grad_probe"][1:]},
    )
    assert differences(fewer, outcome) == ["grad.conv1.weight: not theirs"]
    barred = replace(case, meta={**case.meta, "no_grad_params": ["conv1.weight"]})
    assert differences(barred, outcome) == ["grad.conv1.weight: expected no gradient"]


def test_only_ill_conditioned_results_are_given_more_room(own_case: Path) -> None:
    case = load_model_case(own_case)
    outcome = run_case(case)
    sensitive = sensitivity(case, outcome.got)
    assert sensitive.keys() == {"block2", "logits", "labels", "grad", "buffer_after"}
    assert 0 < sensitive["grad"] < 1e-11
    other = changed(case, "grad_probe", 1e-5)
    assert differences(other, outcome, sensitive) == differences(other, outcome) != []
    assert differences(other, outcome, {"grad": 1e-3}) == []
    assert differences(other, outcome, {"logits": 1e-3}) != []
    with pytest.raises(
        AssertionError, match=r"golden case wrn40_2_cn_post_neither_train .*\n  grad\.fc\.bias: differs"
    ):
        check_case(other)


def test_running_moments_of_an_eval_file_must_be_complete(own_case: Path) -> None:
    case = load_model_case(own_case)
    with pytest.raises(AssertionError, match=r"expected running moments.*missing \['block1.*unknown \['bn9"):
        run_case(
            replace(
                case,
                meta={**case.meta, "part": "eval"},
                arrays=case.arrays | {"running.bn9.running_mean": torch.zeros(3)},
            )
        )


def test_listing_with_other_tensors_fails() -> None:
    ours = build(parse("wrn40_2_sn_post"), device="meta")
    listing: dict[str, Any] = {"model": "wrn40_2_sn_post", "n_parameters": 2_248_921, "tensors": []}
    tensors = [("bn1.weight", [64]), ("extra", [1])]
    listing["tensors"] = [{"name": name, "shape": shape, "kind": "parameter", "k": 0} for name, shape in tensors]
    with pytest.raises(AssertionError) as failure:
        check_listing(ours, listing)
    for message in (
        "bn1.bias: (128,), expected none",
        "bn1.weight: (128,), expected (64,)",
        "extra: missing, expected (1,)",
    ):
        assert message in str(failure.value)
    own = [{"name": name, "shape": list(shape)} for name, shape in shapes_of(ours).items()]
    learned = {name for name in shapes_of(ours) if not name.endswith(("running_mean", "running_var", "tracked"))}
    k = places(shapes_of(ours))
    for entry in own:
        entry |= {"kind": "parameter" if entry["name"] in learned else "buffer", "k": k.get(entry["name"])}
    with pytest.raises(AssertionError, match="2,248,922 parameters, expected 2,248,921"):
        check_listing(ours, {**listing, "tensors": own})
    listing["n_parameters"] += 1
    check_listing(ours, {**listing, "tensors": own})
    own[-1] = own[-1] | {"shape": [11]}
    with pytest.raises(AssertionError, match=r"fc\.bias: \(10,\), expected \(11,\)"):
        check_listing(ours, {**listing, "tensors": own})
    with pytest.raises(AssertionError, match=r"bn1\.bias: \(128,\), expected none"):
        check_listing(ours, {**listing, "tensors": [entry for entry in own if entry["name"] != "bn1.bias"]})


def case_with_draws(name: str, draws: list[tuple[str, list[int]]]) -> ModelCase:
    arrays = {f"draw.{place:02}.{function}": torch.tensor(value) for place, (function, value) in enumerate(draws)}
    return ModelCase(Path("x.npz"), meta(name, "any") | {"part": "train"}, arrays)


def test_draws_go_to_the_active_cross_norms_in_order_of_depth() -> None:
    """The first block of every stage has a dead CrossNorm, whose draws are passed over."""
    name = "resnext29_cnsn_identity_both_all"
    golden, order = build(parse(name), device="cpu"), [1, 0]
    boxes = [("cn_rand_bbox", [place, 0, 8, 8]) for place in range(6)]
    draws = [("np.random.choice", [4, 3, 1])]
    for place in range(3):
        draws += [("randperm", order), boxes[2 * place], boxes[2 * place + 1]]
    replay(golden, case_with_draws(name, draws), "both")
    crossings = golden.cross_norms()
    assert [norm is None for norm in crossings] == [True, False, False] * 3
    assert [place for place, norm in enumerate(crossings) if norm is not None and norm.active] == [1, 4]
    for index, place in ((1, 0), (4, 2)):
        norm = crossings[index]
        assert norm is not None
        draw = norm.draw(torch.zeros(2, 3, 8, 8))
        assert draw.partner.tolist() == order
        taken = [None if box is None else box.tolist() for box in (draw.style_box, draw.content_box)]
        assert taken == [boxes[2 * place][1], boxes[2 * place + 1][1]]
    with pytest.raises(AssertionError, match="expected a draw of cn_rand_bbox, the file has no more"):
        replay(golden, case_with_draws(name, draws[:-1]), "both")
    with pytest.raises(AssertionError, match=r"draws that no CrossNorm takes: \['cn_rand_bbox'\]"):
        replay(golden, case_with_draws(name, [*draws, boxes[0]]), "both")
    with pytest.raises(AssertionError, match=r"CrossNorms \[9\] are active, ours has 9"):
        replay(golden, case_with_draws(name, [("np.random.choice", [9])]), "both")


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("wrn40_2_cnsn_pre_both", 18),
        ("resnext29_cnsn_post_neither", 9),
        ("densenet40_cnsn_conv1_pre_content", 36),
        ("allconv_cnsn_pos1_style", 9),
        ("resnet50_cnsn_post_both", 16),
    ],
)
def test_cross_norms_are_all_found(name: str, count: int) -> None:
    golden = build(parse(name), device="meta")
    assert len(golden.cross_norms()) == count == sum(isinstance(m, norms.CrossNorm) for m in golden.model.modules())


def test_only_the_table_names_dead_parts() -> None:
    for name in PARAMETERS:
        network = parse(name)
        golden = build(network, device="meta")
        assert golden.dead == tuple(DEAD.get((network.backbone, network.position), ()))


def test_layers_and_other_files_are_no_networks(own_case: Path, tmp_path: Path) -> None:
    for folder, said in ((".", {"layer": "IBN"}), ("layers", {"family": "wrn"}), ("sub", {"family": "wrn"})):
        (tmp_path / folder).mkdir(exist_ok=True)
        np.savez(tmp_path / folder / "file.npz", meta=json.dumps(said))
    np.savez(tmp_path / "plain.npz", x=np.zeros(1))
    assert find_model_cases(tmp_path) == [tmp_path / "sub" / "file.npz"]
    assert find_model_cases(own_case.parent) == find_model_cases(own_case.parent.parent) == [own_case]
    with pytest.raises(ValueError, match=r"plain\.npz: expected a golden network with a 'meta' entry"):
        load_model_case(tmp_path / "plain.npz")
    with pytest.raises(ValueError, match=r"expected the entries \['HW', 'N', 'kw', 'name', 'part'\] in its meta too"):
        load_model_case(tmp_path / "sub" / "file.npz")
