"""Places that nothing can be written to: one clear line before the work begins, and nothing left behind."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import one_clear_line
from pictures import tree
from robustness_results import make_result
from shiftnorm import cli_corrupt, cli_evaluate
from shiftnorm.data import open_dataset
from shiftnorm.data.materialise import corrupt_folder
from shiftnorm.evaluate.cell_folder import CellFolder
from shiftnorm.evaluate.outcome import CellOutcome
from shiftnorm.result_folder import check_writable, plain_faults

Run = Callable[..., tuple[int, str, str]]
LONG = "n" * 300
NET = "shiftnorm/wide_resnet16_4"


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "nothing").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    make_result("net", corruptions=["fog"]).save(tmp_path / "net" / "result.json")
    return tree(tmp_path / "pets", [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(4)], size=(32, 32))


def listing(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


PLACES = {
    "file.txt": "file.txt is a file, not a folder; choose another --out",
    "file.txt/deep/er": "file.txt is a file, not a folder; choose another --out",
    "nothing/deep": "nothing is a link to nothing; choose another --out",
    "loop/deep": "is a link to nothing; choose another --out",
    f"deep/{LONG}/deeper": "a name in it is longer than the disk allows; choose a shorter --out",
}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[:12])
def test_impossible_places(run: Run, pets: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # nothing is opened before the place is looked at
    monkeypatch.setattr(cli_evaluate, "open_model", lambda _: pytest.fail("the model was opened"))
    monkeypatch.setattr(cli_evaluate, "open_images", lambda _: pytest.fail("the images were opened"))
    monkeypatch.setattr(cli_corrupt, "open_images", lambda _: pytest.fail("the images were opened"))
    before = listing(tmp_path)
    one_clear_line(run("evaluate", NET, "--data", pets, "--out", place), "evaluate: cannot write into", PLACES[place])
    one_clear_line(run("corrupt", pets, "--out", place), "cannot write into", PLACES[place])
    if place != "file.txt":
        one_clear_line(run("report", "net", "--out", f"{place}/r.html"), "report: cannot write", PLACES[place])
    assert listing(tmp_path) == before


def test_impossible_files_of_a_report(run: Run, pets: Path, tmp_path: Path) -> None:
    (tmp_path / "r.summary.csv").mkdir()
    for words in ((), ("--force",)):
        one_clear_line(run("report", "net", "--out", "r.html", *words), "r.summary.csv: it is a folder; choose another")
    one_clear_line(run("report", "net", "--out", f"{LONG}.html"), "a name in it is longer than the disk allows")
    # one that fits itself, but not with what is set before it while it is written
    one_clear_line(run("report", "net", "--out", f"{LONG[:245]}.html"), "a name in it is longer than the disk allows")
    assert run("report", "net", "--out", "s.html")[0] == 0


def test_a_verified_folder_that_cannot_be_looked_at(run: Run, pets: Path) -> None:
    one_clear_line(run("corrupt", "--out", LONG, "--verify"), "a name in it is longer than the disk allows")


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "there is no permission to write in {}; change its mode, or choose another out="),
        (errno.EROFS, "the disk of {} is read-only; choose another out="),
        (errno.ENOSPC, "the disk of {} is full; free some space, or choose another out="),
        (errno.EMLINK, "Too many links; choose another out="),
    ],
)
def test_what_the_system_says_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number), str(tmp_path))

    images = open_dataset(tree(tmp_path / "pets", ["cat/a.png", "dog/b.png"], size=(32, 32)))
    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    for who, write in (
        ("evaluate", lambda: check_writable(tmp_path / "a" / "b", "evaluate")),
        ("robustness", lambda: CellFolder(tmp_path / "a" / "b", {})),
        ("corrupt", lambda: corrupt_folder(images, tmp_path / "a" / "b", corruptions=["fog"])),
    ):
        with pytest.raises(type(OSError(number, ""))) as fault:
            write()
        said = f"{who}: cannot write into {tmp_path}/a/b: {reason.format(tmp_path)}."
        assert str(fault.value) == said and not (tmp_path / "a").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission(run: Run, pets: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    for words in (("evaluate", NET, "--data", pets), ("corrupt", pets)):
        one_clear_line(run(*words, "--out", "locked/out"), "there is no permission to write in", "choose another --out")


def test_a_disk_that_fills_up_later_is_named(run: Run, pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["evaluate", NET, "--num-classes", 2, "--data", pets, "--normalize", "half", "--bootstrap", 0]
    words += ["--corruptions", "contrast", "--severities", 1, 5, "--out", "r"]
    write, count = CellOutcome.to_file, iter(range(9))

    def full(self, path, metadata):
        if next(count) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(self, path, metadata)

    monkeypatch.setattr(CellOutcome, "to_file", full)
    one_clear_line(run(*words), "contrast-5.safetensors: the disk of r/cells is full; free some space, or choose")
    assert len(list(Path("r/cells").glob("*.safetensors"))) == 2
    assert run(*words)[0] == 0


def test_other_faults_are_left_as_they_are() -> None:
    for fault in (FileNotFoundError("report: there is no r"), OSError(errno.ENOENT, "No such file", "r")):
        with pytest.raises(OSError) as caught, plain_faults("report", Path("r")):
            raise fault
        assert caught.value is fault
    with pytest.raises(OSError, match=r"^report: cannot write into r: the disk of r is full; free"):
        with plain_faults("report", Path("r")):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_groups_of_seeds(run: Run, tmp_path: Path) -> None:
    for place, (name, base) in enumerate((("bn", 8.0), ("bn", 8.5), ("cnsn", 6.0), ("cnsn", 6.6))):
        result = make_result("net", base=base, corruptions=["fog"], fingerprint={"model": str(place), "data": "d"})
        result.save(tmp_path / "runs" / f"{name}-seed{place % 2}" / "result.json")
    groups = ["--group", "BatchNorm", "runs/bn-seed0", "runs/bn-seed1", "--group", "CNSN"]
    one_clear_line(run("report", *groups), "expected --group NAME RESULT..., got the name 'CNSN' alone")
    groups += ["runs/cnsn-seed1", "runs/cnsn-seed0"]
    status, out, _ = run("report", *groups, "--out", "seeds.html")
    lines = out.splitlines()
    assert status == 0 and lines[0].startswith("BatchNorm  2 seeds (0, 1)  clean 8.2 ± 0.4 %, corrupted ")
    assert lines[1].startswith("CNSN       2 seeds (0, 1)  clean 6.3 ± 0.4 %") and "p over seeds 0." in lines[1]
    assert "BatchNorm, seed 1" in (tmp_path / "seeds.html").read_text()
    one_clear_line(run("report", "runs/bn-seed0", *groups), "runs/bn-seed0 belongs to no group")
    one_clear_line(run("report", *groups, "--group", "CNSN", "runs/bn-seed0", "--force"), "'CNSN' is given twice")
    one_clear_line(run("report"), "expected at least one RESULT")
    shutil.rmtree(tmp_path / "runs" / "bn-seed0")
    one_clear_line(run("report", *groups, "--force"), "no file runs/bn-seed0")
