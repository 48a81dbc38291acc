"""Train a denoiser with the ``Trainer`` of Hugging Face transformers.

    python examples/ecosystem/hf_trainer.py --steps 100

Trains on generated squares and prints the loss of each tenth of the run. The Trainer wants a
dictionary with a loss, and hands columns by name: two small pieces of glue. Needs: pip install ".[ecosystem]"
"""

import argparse
import tempfile

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from segaware import DnCNN, SegAwareWrapper


class ForTrainer(SegAwareWrapper):
    """The wrapper, with its answer as the Trainer reads it. Checkpoints hold the denoiser alone."""

    def forward(self, noisy: Tensor, clean: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        output = super().forward(noisy, clean=clean)
        return {"loss": output.loss, "denoised": output.denoised}


class Squares(Dataset):
    """Pairs of a noisy and a clean image; noise is drawn anew each time."""

    def __init__(self, count: int) -> None:
        self.clean = torch.rand(count, 3, 6, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)

    def __len__(self) -> int:
        return len(self.clean)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clean = self.clean[index]
        return {"noisy": clean + 25 / 255 * torch.randn_like(clean), "clean": clean}


def main(steps: int) -> tuple[DnCNN, list[float]]:
    torch.manual_seed(0)
    denoiser = DnCNN(depth=8, width=32)
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=8,
            learning_rate=1e-3,
            logging_steps=max(1, steps // 10),
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(model=ForTrainer(denoiser), args=options, train_dataset=Squares(32))
        trainer.train()
        trainer.save_model(folder)  # model.safetensors, under the denoiser's own names
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print("loss", *losses)
    return denoiser.eval(), [float(loss) for loss in losses]


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--steps", type=int, default=100)
    main(**vars(arguments.parse_args()))
