"""Train a denoiser with Lightning: the wrapper computes the loss, Lightning does the rest.

    python examples/ecosystem/lightning_module.py --steps 100

Trains on generated squares, saves a checkpoint and loads it again. Needs: pip install lightning
"""

import argparse
import tempfile
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from segaware import DnCNN, SegAwareWrapper


class Denoising(L.LightningModule):
    """``awareness`` as for the wrapper: None is the entropy of the segmenter that ships with segaware."""

    def __init__(self, depth: int = 8, width: int = 32, gamma: float = 1.0, rate: float = 1e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = SegAwareWrapper(DnCNN(depth=depth, width=width), gamma=gamma)

    def forward(self, noisy: torch.Tensor) -> torch.Tensor:
        return self.model(noisy)

    def training_step(self, clean: torch.Tensor, index: int) -> torch.Tensor:
        noisy = clean + 25 / 255 * torch.randn_like(clean)
        output = self.model(noisy, clean=clean)
        self.log_dict({name: term.detach() for name, term in output.terms.items()}, prog_bar=True)
        return output.loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # the segmenter behind the loss is frozen and not among them
        return torch.optim.Adam(self.model.parameters(), lr=self.hparams["rate"])


def squares(count: int, side: int = 48) -> torch.Tensor:
    cells = -(-side // 8)
    return torch.rand(count, 3, cells, cells).repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :side, :side]


def main(steps: int) -> Denoising:
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(
        max_steps=steps, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(Denoising(), DataLoader(list(squares(32)), batch_size=8, shuffle=True))
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_checkpoint(Path(folder) / "last.ckpt")
        loaded = Denoising.load_from_checkpoint(Path(folder) / "last.ckpt", map_location="cpu")
    print({name: round(float(value), 3) for name, value in trainer.callback_metrics.items()})
    return loaded.eval()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=100)
    main(**vars(arguments.parse_args()))
