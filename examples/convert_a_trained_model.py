"""Put norms into a model you have: see what changed and by how much, save it, load it, take the norms out again.

python examples/convert_a_trained_model.py
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

import torch

from shiftnorm.surgery import build_model, convert, load, revert, save


def main() -> None:
    torch.manual_seed(0)
    library = "torchvision" if importlib.util.find_spec("torchvision") else "shiftnorm"
    model = build_model(f"{library}/resnet18", num_classes=10).eval()  # random weights stand in for yours
    x = torch.randn(2, 3, 64, 64)
    before = model(x)

    print("SelfNorm starts such that a trained model keeps its function:")
    model, selfnorm = convert(model, "selfnorm@post", where="stages:1-2", example_input=x)
    print(selfnorm)

    print("\nIBN does not, and the report says so:")
    model, ibn = convert(model, "ibn_a", where="stages:1", example_input=x)
    print(ibn)

    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / "model.safetensors")
        again, _ = load(path)
    print("\nloaded from its file, the model gives the same outputs:", torch.equal(again(x), model(x)))

    model = revert(revert(model, ibn), selfnorm)
    print("taken back, it gives the outputs it gave before:", torch.equal(model(x), before))


if __name__ == "__main__":
    main()
