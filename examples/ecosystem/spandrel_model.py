"""A checkpoint that spandrel knows: train it on, segmentation-aware, and hand it back to spandrel.

    python examples/ecosystem/spandrel_model.py FILE.pth --steps 20

Without FILE it makes a small DnCNN of KAIR's layout. Needs: pip install spandrel
"""

import argparse
import tempfile
from pathlib import Path

import torch
from spandrel import ModelLoader
from spandrel.architectures.DnCNN import DnCNN

from segaware import SegAwareWrapper


def small_checkpoint(file: Path) -> Path:
    torch.save(DnCNN(in_nc=3, out_nc=3, nc=16, nb=8, act_mode="R").state_dict(), file)
    return file


def main(file: Path | None, steps: int, out: Path | None = None) -> Path:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        descriptor = ModelLoader("cpu").load_from_file(file or small_checkpoint(Path(folder) / "dncnn.pth"))

    # Not the descriptor: it runs in inference mode and clamps. Its network learns.
    size = descriptor.size_requirements
    model = SegAwareWrapper(descriptor.model, size_multiple=size.multiple_of)
    model.train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(1, steps + 1):
        clean = torch.rand(4, descriptor.input_channels, 6, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
        output = model(clean + 25 / 255 * torch.randn_like(clean), clean=clean)
        optimiser.zero_grad()
        output.loss.backward()
        optimiser.step()
        if step % 5 == 0 or step == steps:
            print(f"step {step}  loss {float(output.loss.detach()):.3f}")

    target = out or Path("segaware-trained.pth")
    torch.save(model.state_dict(), target)  # the network's own key names: spandrel, chaiNNer and KAIR read it
    again = ModelLoader("cpu").load_from_file(target)
    print(f"{target}: {again.architecture.name}, {again.input_channels} channels")
    return target


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("file", type=Path, nargs="?")
    arguments.add_argument("--steps", type=int, default=20)
    arguments.add_argument("--out", type=Path)
    main(**vars(arguments.parse_args()))
