"""What is loaded when: the command line answers without torch, and the package has its names nevertheless."""

from __future__ import annotations

import subprocess
import sys

import pytest

import shiftnorm
from shiftnorm import norms, ops, public

HEAVY = ("torch", "numpy", "torchvision", "lightning", "matplotlib", "sklearn", "jinja2", "yaml")


def fresh(code):
    """What a new process prints that runs this code, and at its end names the heavy packages that it has loaded."""
    code += f"\nimport sys\nprint([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *lines, heavy = done.stdout.splitlines()
    return lines, heavy, done.stderr


def command(*words):
    """What the command line does in a new process, its exit status before the heavy packages."""
    lines, heavy, errors = fresh(
        f"from shiftnorm.cli import main\ntry:\n    status = main({words})\n"
        "except SystemExit as stop:\n    status = stop.code\nprint(status)"
    )
    return lines, heavy, errors


VERBS = ("compare", "norms", "recipes", "train", "evaluate", "report", "corrupt", "models", "convert", "describe")


@pytest.mark.parametrize("words", [(), *((verb,) for verb in VERBS)], ids=" ".join)
def test_help_needs_no_torch(words):
    lines, heavy, _ = command(*words, "--help")
    assert lines[0].startswith(" ".join(["usage: shiftnorm", *words]))
    assert lines[-1] in ("0", "None") and heavy == "[]"


def test_the_version_needs_no_torch():
    lines, heavy, _ = command("--version")
    assert lines[0] == f"shiftnorm {shiftnorm.__version__}" and heavy == "[]"


def test_a_mistyped_verb_needs_no_torch():
    lines, heavy, errors = command("evalute")
    assert lines == ["2"] and heavy == "[]" and "unknown verb 'evalute'; did you mean evaluate?" in errors


def test_the_list_of_recipes_needs_no_torch():
    lines, heavy, _ = command("recipes", "list", "--plain")
    assert "small/cnsn" in lines and lines[-1] == "0" and heavy == "[]"


@pytest.mark.parametrize(
    "code",
    [
        "from shiftnorm import BatchNorm\nprint(BatchNorm.__name__)",
        "import shiftnorm\nprint(shiftnorm.BatchNorm.__name__)",
        "import shiftnorm\nprint(shiftnorm.norms.BatchNorm.__name__)",
        "from shiftnorm import norms\nprint(norms.BatchNorm.__name__)",
        "from shiftnorm import *\nprint(BatchNorm.__name__)",
        "import shiftnorm\nassert 'BatchNorm' in shiftnorm.__all__\nprint('BatchNorm')",
        "import shiftnorm\nassert {*shiftnorm.__all__} < {*dir(shiftnorm)}\nprint('BatchNorm')",
        "import shiftnorm.public\nprint(shiftnorm.public.BatchNorm.__name__)",
        # the package is loaded while what was asked for by its full name is being loaded
        "from shiftnorm.surgery import replace\nfrom shiftnorm import BatchNorm\nprint(BatchNorm.__name__)",
    ],
)
def test_a_first_name_is_found_in_whatever_way_it_is_asked_for(code):
    lines, heavy, _ = fresh(code)
    assert lines == ["BatchNorm"] and "torch" in heavy


def test_a_compiled_function_may_ask_for_the_first_name():
    lines, _, _ = fresh(
        "import shiftnorm, torch\n"
        "spread = torch.compile(lambda x: shiftnorm.moments(x).var, fullgraph=True, backend='eager')\n"
        "assert 'moments' not in vars(shiftnorm)\n"
        "print(tuple(spread(torch.randn(2, 3, 4, 4)).shape))"
    )
    assert lines == ["(2, 3)"]


def test_the_names_are_those_of_the_roster():
    assert shiftnorm.__all__ == public.__all__ and set(norms.__all__) < set(shiftnorm.__all__)
    for name in shiftnorm.__all__:
        assert getattr(shiftnorm, name) is getattr(norms if name in norms.__all__ else ops, name)
        assert name in vars(shiftnorm)


def test_a_name_there_is_not():
    with pytest.raises(AttributeError, match="module 'shiftnorm' has no attribute 'BatchNrm'") as caught:
        _ = shiftnorm.BatchNrm
    assert (caught.value.name, caught.value.obj) == ("BatchNrm", shiftnorm)  # Python suggests BatchNorm from these
    with pytest.raises(ImportError, match="cannot import name 'BatchNrm' from 'shiftnorm'"):
        from shiftnorm import BatchNrm  # noqa: F401
    assert not hasattr(shiftnorm, "__wrapped__")
