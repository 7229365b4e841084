"""Backends are chosen in order, say why they decline, and can be forced."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from shiftnorm.ops import choose, dispatch, explain, moments, use_backend


@pytest.fixture(autouse=True)
def _without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same backends whether this machine has a compiler or not; test_cpp.py has the compiled one.
    monkeypatch.setattr(dispatch, "BACKENDS", (dispatch.AtenBackend(), dispatch.EagerBackend()))


DECLINED = {
    "dtype": (torch.zeros(2, 3, 4, dtype=torch.float16), "takes float32 and float64, x is float16"),
    "rank": (torch.zeros(2, 3), "takes x with spatial dimensions"),
    "empty": (torch.zeros(0, 3, 4), "at least one element"),
    "strides": (torch.zeros(2, 3, 4, 8)[..., ::2], "contiguous or channels-last"),
    "length": (torch.zeros(1, 1, 70001), "split into equal pieces"),
    "device": (torch.zeros(2, 3, 4, device="meta"), "takes CPU tensors, x is on meta"),
}


@pytest.mark.parametrize("case", DECLINED)
def test_a_backend_says_why_it_declines(case: str) -> None:
    x, reason = DECLINED[case]
    backend = dispatch.AtenBackend()
    assert reason in (backend.unsupported(x) or "")
    if case != "device":
        assert choose(x).name == "eager"
        assert f"aten: declines, {backend.unsupported(x)}\neager: runs" == explain(x)


def test_forcing_a_backend() -> None:
    x = torch.randn(2, 3, 4, 4)
    with use_backend("eager"):
        assert choose(x).name == "eager"
        assert explain(x).splitlines()[0] == "aten: set aside by use_backend('eager')"
        torch.testing.assert_close(moments(x).var, x.var((2, 3), correction=0))
    assert choose(x).name == "aten"
    with use_backend("aten"), pytest.raises(RuntimeError, match="aten takes float32 and float64, x is bfloat16"):
        moments(x.bfloat16())
    with pytest.raises(ValueError, match="expected one of aten, eager, got 'cuda'"), use_backend("cuda"):
        pass


def test_a_forced_backend_leaves_no_whole_norm_to_torch() -> None:
    from shiftnorm.norms import BatchNorm, InstanceNorm

    x = torch.randn(2, 3, 8, 8)
    for norm in (InstanceNorm(3), BatchNorm(3).eval()):
        with torch.profiler.profile() as free:
            norm(x)
        with use_backend("eager"), torch.profiler.profile() as forced:
            norm(x)
        native = {"aten::native_group_norm", "aten::native_batch_norm", "aten::batch_norm"}
        assert native & {event.name for event in free.events()}
        assert not native & {event.name for event in forced.events()}


def test_a_further_backend_is_one_more_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Counting(dispatch.EagerBackend):
        name = "counting"

        def unsupported(self, x: Tensor) -> str | None:
            return None if x.shape[0] == 2 else "takes batches of 2"

        def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
            calls.append("moments")
            return super().moments(x)

    monkeypatch.setattr(dispatch, "BACKENDS", (Counting(), *dispatch.BACKENDS))
    moments(torch.randn(2, 3, 4))
    moments(torch.randn(3, 3, 4))
    assert calls == ["moments"]
    assert explain(torch.randn(3, 3, 4)).startswith("counting: declines, takes batches of 2\naten: runs")


def test_long_planes_are_summed_in_pieces() -> None:
    x = torch.randn(1, 2, 1 << 18) + 3
    m = moments(x)
    torch.testing.assert_close(m.var.double(), x.double().var(2, correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(m.mean.double(), x.double().mean(2), rtol=1e-6, atol=0)


def test_explain_asks_for_a_tensor() -> None:
    with pytest.raises(TypeError, match="explain: expected a tensor, got str"):
        explain("x")  # pyright: ignore[reportArgumentType]
