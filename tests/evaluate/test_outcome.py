from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from shiftnorm.evaluate.cells import CLEAN, stack
from shiftnorm.evaluate.classification import brier_score, negative_log_likelihood, top_k_error
from shiftnorm.evaluate.outcome import CellOutcome, merge, read_metadata


def make(count: int = 40, classes: int = 10, start: int = 0, seed: int = 0) -> CellOutcome:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator)
    return CellOutcome.from_logits(logits, torch.arange(count) % classes, start=start)


def equal(first: CellOutcome, second: CellOutcome) -> bool:
    names = [field.name for field in dataclasses.fields(CellOutcome)]
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def part(cell: CellOutcome, rows: torch.Tensor) -> CellOutcome:
    return CellOutcome(**{f.name: getattr(cell, f.name)[rows] for f in dataclasses.fields(CellOutcome)})


def test_an_outcome_holds_the_metrics_of_its_logits():
    logits, labels = 2 * torch.randn(300, 20), torch.randint(20, (300,))
    cell = CellOutcome.from_logits(logits, labels)
    assert cell.error == pytest.approx(top_k_error(logits, labels, 1))
    assert cell.top5_error == pytest.approx(top_k_error(logits, labels, 5))
    assert cell.nll.mean().item() == pytest.approx(negative_log_likelihood(logits, labels), rel=1e-5)
    assert cell.brier.mean().item() == pytest.approx(brier_score(logits, labels), rel=1e-5)
    assert torch.allclose(cell.confidence, logits.softmax(1).amax(1))
    assert sum(t.element_size() for t in vars(cell).values()) == 29


def test_logits_and_probabilities_agree():
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    one = CellOutcome.from_logits(logits, labels)
    other = CellOutcome.from_probabilities(logits.softmax(1), labels)
    assert torch.equal(one.predicted, other.predicted) and torch.equal(one.top5, other.top5)
    for name in ("confidence", "nll", "brier"):
        assert torch.allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_right_is_always_among_the_first_five():
    cell = CellOutcome.from_logits(torch.zeros(3, 9), torch.tensor([0, 4, 8]))
    assert cell.correct.tolist() == [True, False, False]
    assert cell.top5.tolist() == [True, True, False]
    assert CellOutcome.from_logits(torch.zeros(2, 3), torch.tensor([2, 1])).top5_error == 0.0


def test_outcomes_hold_no_graph_and_lie_on_the_cpu():
    cell = CellOutcome.from_logits(torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2]))
    assert not any(tensor.requires_grad for tensor in vars(cell).values())


def test_nan_logits_are_refused():
    with pytest.raises(ValueError, match="diverged"):
        CellOutcome.from_logits(torch.full((2, 3), math.nan), torch.tensor([0, 1]))


def test_other_dtypes_or_lengths_are_refused():
    cell = make()
    with pytest.raises(ValueError, match="expected tensors"):
        dataclasses.replace(cell, nll=cell.nll.double())
    with pytest.raises(ValueError, match="expected tensors"):
        dataclasses.replace(cell, nll=cell.nll[1:])


def test_file_round_trip(tmp_path: Path):
    cell = make(start=7)
    path = cell.to_file(tmp_path / "deep" / "fog-2.safetensors", {"corruption": "fog", "seed": 0})
    assert equal(CellOutcome.from_file(path), cell)
    assert read_metadata(path) == {"corruption": "fog", "seed": 0}
    assert [item.name for item in path.parent.iterdir()] == ["fog-2.safetensors"]


def test_an_empty_shard_can_be_written(tmp_path: Path):
    empty = make(count=0)
    assert len(CellOutcome.from_file(empty.to_file(tmp_path / "empty.safetensors"))) == 0
    with pytest.raises(ValueError, match="without images"):
        _ = empty.error


def test_what_json_cannot_hold_leaves_no_file(tmp_path: Path):
    with pytest.raises(TypeError, match="JSON"):
        make().to_file(tmp_path / "cell.safetensors", {"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_damaged_and_foreign_files_are_named(tmp_path: Path):
    from safetensors.torch import save_file

    whole = make().to_file(tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for size in (0, 5, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"cut\.safetensors is damaged"):
            CellOutcome.from_file(cut)
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"expected a file of format 'shiftnorm\.cell/1'"):
        CellOutcome.from_file(tmp_path / "model.safetensors")


@pytest.mark.parametrize("ranks", [1, 3, 7])
def test_merge_restores_the_order_of_the_images(ranks):
    cell = make()
    shards = [part(cell, torch.arange(rank, len(cell), ranks)) for rank in range(ranks)]
    assert equal(merge(shards[::-1], expected=40), cell)


def test_padding_of_a_distributed_sampler_counts_once():
    cell = make(count=10)
    shards = [part(cell, torch.tensor([0, 4, 8, 0])), part(cell, torch.tensor([1, 5, 9, 1]))]
    shards += [part(cell, torch.tensor([2, 6, 0, 2])), part(cell, torch.tensor([3, 7, 1, 3]))]
    assert equal(merge(shards, expected=10), cell)


def test_merge_refuses():
    cell = make(count=10)
    with pytest.raises(ValueError, match=r"expected the images 0 to 9, got 8, numbered 0 to 8"):
        merge([part(cell, torch.tensor([0, 1, 2, 3, 4, 5, 6, 8]))], expected=10)
    with pytest.raises(ValueError, match="images 0 to 9, got 0"):
        merge([make(count=0)], expected=10)
    with pytest.raises(ValueError, match="different labels"):
        merge([cell, dataclasses.replace(cell, label=cell.label.flip(0))])
    with pytest.raises(ValueError, match="at least one shard"):
        merge([])


def test_stack_orders_cells_like_another():
    first = {CLEAN: make(), ("fog", 1): make(seed=1)}
    second = {("fog", 1): make(seed=2), CLEAN: make(seed=3)}
    ours = stack(first)
    theirs = stack(second, like=ours)
    assert theirs.keys == ours.keys == (CLEAN, ("fog", 1))
    assert theirs.values[0].mean().item() == pytest.approx(second[CLEAN].error)
    assert ours.values.unique().tolist() == [0.0, 100.0]
    assert torch.equal(stack(first, "nll").values[1], first["fog", 1].nll)
    assert stack(first, "top5_error").values[0].mean().item() == pytest.approx(first[CLEAN].top5_error)


def test_stack_refuses_other_images():
    cell = make()
    with pytest.raises(ValueError, match=r"\('fog', 2\) was not measured on the same images .* as \('fog', 1\)"):
        stack({("fog", 1): cell, ("fog", 2): make(start=1)})
    with pytest.raises(ValueError, match="as the other network"):
        stack({CLEAN: make(start=1)}, like=stack({CLEAN: cell}))
    with pytest.raises(ValueError, match=r"missing \[\('fog', 1\)\]"):
        stack({CLEAN: cell}, like=stack({CLEAN: cell, ("fog", 1): cell}))
    with pytest.raises(ValueError, match="expected 'error'"):
        stack({CLEAN: cell}, "accuracy")
    with pytest.raises(ValueError, match="at least one cell"):
        stack({})
