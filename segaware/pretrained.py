"""``Model.from_pretrained``, ``model.save_pretrained`` and ``model.push_to_hub``, on every architecture; and
models by name for rooms below the zoo.
"""

from __future__ import annotations

import importlib
import os
import re
from typing import Any, TypeVar

__all__ = ["Pretrained", "is_repo", "load_pretrained"]

_Model = TypeVar("_Model", bound="Pretrained")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


def is_repo(source: object) -> bool:
    """Whether it reads as ``owner/name`` or ``owner/name@revision``, and no folder of this name is there."""
    return isinstance(source, str) and bool(_REPO.fullmatch(source)) and not os.path.lexists(source)


def load_pretrained(source: str | os.PathLike[str], **options: Any) -> Any:
    """:func:`segaware.from_pretrained`, imported by name when called: the zoo is floors above."""
    load: Any = importlib.import_module("segaware.zoo.load")
    return load.from_pretrained(source, **options)


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
