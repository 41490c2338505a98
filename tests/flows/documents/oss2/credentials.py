"""As far as the documents' programs use it."""

from __future__ import annotations


class EnvironmentVariableCredentialsProvider:
    pass
