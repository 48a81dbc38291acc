"""Denoise very many images on an engine that exists: batches for Ray Data, folders of object stores.

Nothing here imports Ray; :class:`segaware.bulk.batch.DenoiseBatch` is a plain callable.
"""

from segaware.bulk.batch import DenoiseBatch
from segaware.bulk.storage import Storage
from segaware.fingerprint import model_hash

__all__ = ["DenoiseBatch", "Storage", "model_hash"]
