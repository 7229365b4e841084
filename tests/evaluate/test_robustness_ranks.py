"""Two processes that share an evaluation: the numbers of one, no image twice, and failing together."""

from __future__ import annotations

import datetime
import socket

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import distributed, nn

from shiftnorm.evaluate.outcome import CellOutcome
from shiftnorm.evaluate.ranks import Ranks
from shiftnorm.evaluate.robustness import robustness

SIZE = 23  # not a multiple of ranks times batch size


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


def make_data(size=SIZE):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8), torch.arange(size) % 3


def run(model, data, out=None, **options):
    options = {"normalize": "half", "batch_size": 4, "bootstrap": 50, "progress": False, **options}
    return robustness(model, data, ["gaussian_noise", "fog"], [1, 5], out=out, **options)


class Counting(nn.Module):
    """Counts images; fails at the given one."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.net, self.seen, self.fail_at = make_net(), 0, fail_at

    def forward(self, x):
        self.seen += len(x)
        if self.fail_at is not None and self.seen > self.fail_at:
            raise OSError("the disk is gone")
        return self.net(x)


def attempt(action):
    try:
        return action()
    except Exception as fault:  # any: the parent process asserts on it
        return f"{type(fault).__name__}: {fault}"


def work(rank, port, out, answers):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    model = Counting()
    result = run(model, make_data(), f"{out}/run")
    seen = model.seen
    again = run(model, make_data(), f"{out}/run")
    told = {"json": result.to_json(), "seen": seen, "again": again.to_json()["cells"], "resumed": model.seen - seen}
    told["few"] = run(make_net(), make_data(1), bootstrap=0).to_json()["clean"]
    told["failing"] = attempt(lambda: run(Counting(fail_at=30 if rank == 1 else None), make_data(), f"{out}/fail"))
    told["after"] = run(Counting(), make_data(), f"{out}/fail").to_json()["cells"]
    told["seeds"] = attempt(lambda: run(make_net(), make_data(), seed=rank))
    told["settings"] = attempt(lambda: run(make_net(), make_data(), batch_size=0 if rank == 0 else 4))
    told["folder"] = attempt(lambda: run(make_net(), make_data(), f"{out}/run", seed=9))
    told["alone"] = run(make_net(), make_data(), process_group="alone").to_json()["cells"] if rank == 1 else None
    wrapped = nn.parallel.DistributedDataParallel(make_net())
    told["wrapped"] = run(wrapped, make_data(), batch_size=11).to_json()["cells"]
    group = distributed.new_group([1])
    inside = attempt(lambda: run(make_net(), make_data(), process_group=group).to_json()["cells"])
    told["group"] = inside
    answers[rank] = told
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = tmp_path_factory.mktemp("ranks")
    with multiprocessing.Manager() as manager:
        told = manager.dict()
        multiprocessing.spawn(work, args=(port, str(out), told), nprocs=2)
        return [told[0], told[1]], out, run(make_net(), make_data()).to_json()


def test_two_ranks_are_as_one(answers):
    (first, second), _, alone = answers
    for key in ("images", "clean", "mean_corruption_error", "class_errors", "calibration", "examples"):
        assert first["json"][key] == alone[key], key
    assert [cell["error"] for cell in first["json"]["cells"]] == [cell["error"] for cell in alone["cells"]]
    assert second["json"] == first["json"]
    assert first["json"]["settings"]["ranks"] == 2


def test_every_image_is_measured_once(answers):
    (first, second), out, _ = answers
    assert first["seen"] + second["seen"] == 5 * SIZE and abs(first["seen"] - second["seen"]) == 5
    cells = [CellOutcome.from_file(file) for file in (out / "run").glob("cells/*")]
    assert len(cells) == 5 and all(torch.equal(cell.index, torch.arange(SIZE)) for cell in cells)


def test_resuming_on_two_ranks_runs_nothing(answers):
    (first, second), _, alone = answers
    assert first["resumed"] == second["resumed"] == 0
    assert [cell["error"] for cell in first["again"]] == [cell["error"] for cell in alone["cells"]]


def test_fewer_images_than_ranks(answers):
    (first, second), _, _ = answers
    assert first["few"] == second["few"] and first["few"]["corruption"] == "clean"


def test_one_failing_rank_stops_both_and_what_was_finished_stays(answers):
    (first, second), _, alone = answers
    assert second["failing"] == "OSError: the disk is gone"
    assert "the cell fog 1 failed on rank 1: OSError: the disk is gone" in first["failing"] or (
        "the cell gaussian_noise 5 failed on rank 1" in first["failing"]
    )
    assert [cell["error"] for cell in first["after"]] == [cell["error"] for cell in alone["cells"]]


def test_ranks_must_measure_the_same(answers):
    (first, second), _, _ = answers
    assert second["seeds"] == "ValueError: robustness: rank 1 and rank 0 have another seed."
    assert "failed on rank 1" in first["seeds"]
    assert "batch_size must be at least 1" in first["settings"] and "failed on rank 0" in second["settings"]
    assert "seed was 0, now 9" in first["folder"] and "opening out failed on rank 0" in second["folder"]


def test_a_wrapped_model_with_uneven_batches(answers):
    (first, second), _, alone = answers
    assert [cell["error"] for cell in first["wrapped"]] == [cell["error"] for cell in alone["cells"]]
    assert second["wrapped"] == first["wrapped"]


def test_groups(answers):
    (first, second), _, alone = answers
    errors = [cell["error"] for cell in alone["cells"]]
    assert [cell["error"] for cell in second["alone"]] == errors
    assert [cell["error"] for cell in second["group"]] == errors
    assert "not in process_group" in first["group"]


def test_without_torch_distributed():
    ranks = Ranks()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.gather({"a": 1}) == [{"a": 1}] and ranks.share("b") == "b"
