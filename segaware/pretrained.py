"""``Model.from_pretrained``, ``model.save_pretrained`` and ``model.push_to_hub``, on every architecture."""

from __future__ import annotations

import importlib
import os
from typing import Any, TypeVar

__all__ = ["Pretrained"]

_Model = TypeVar("_Model", bound="Pretrained")


class Pretrained:
    """Methods that hand over to :mod:`segaware.zoo`, imported by name when called: the zoo is floors above.

    For ``nn.Module`` classes that keep their constructor's arguments in ``config``.
    """

    @classmethod
    def from_pretrained(cls: type[_Model], source: str | os.PathLike[str], **options: Any) -> _Model:
        """A trained network of this class: see :func:`segaware.from_pretrained` for source and options.

        Raises:
            WeightsError: as there, and a source that holds another architecture.
        """
        load: Any = importlib.import_module("segaware.zoo.load")
        model: _Model = load.from_pretrained_as(cls, source, **options)
        return model

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> Any:
        """Save as a folder that ``from_pretrained`` reads: see :func:`segaware.zoo.save.save_pretrained`."""
        save: Any = importlib.import_module("segaware.zoo.save")
        return save.save_pretrained(self, folder, **options)

    def push_to_hub(self, repo: str, **options: Any) -> str:
        """Upload to the Hugging Face Hub: see :func:`segaware.zoo.save.push_to_hub`."""
        save: Any = importlib.import_module("segaware.zoo.save")
        url: str = save.push_to_hub(self, repo, **options)
        return url
