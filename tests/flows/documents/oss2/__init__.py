"""Stands in for Alibaba's SDK in the documents' programs: a bucket is a folder, named by OSS_ROOT."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any


class ProviderAuth:
    def __init__(self, provider: Any) -> None:
        self.provider = provider


class Bucket:
    def __init__(self, auth: ProviderAuth, endpoint: str, bucket_name: str) -> None:
        self.name = bucket_name

    def get_object_to_file(self, key: str, filename: str) -> None:
        shutil.copyfile(Path(os.environ["OSS_ROOT"]) / key, filename)
