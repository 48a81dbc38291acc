"""A segmenter small enough to differentiate through in milliseconds, with all that must be frozen in it."""

import pytest
import torch
from torch import nn

pytest.register_assert_rewrite("losses.tester")


class TinySegmenter(nn.Module):
    """Three channels to ``num_classes`` logits at stride 4, with batch norm and dropout."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.num_classes, self.stride, self.class_names = num_classes, 4, None
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Conv2d(8, num_classes, 3, stride=2, padding=1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(torch.tanh(self.norm(self.stem(image)))))


@pytest.fixture
def segmenter() -> TinySegmenter:
    return TinySegmenter()


@pytest.fixture
def other_segmenter() -> TinySegmenter:
    return TinySegmenter()
