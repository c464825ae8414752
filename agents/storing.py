"""The former name of `agents.backoff`."""

from __future__ import annotations

from agents.backoff import Backoff as Pauses

__all__ = ["Pauses"]
