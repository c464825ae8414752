"""Why a change was not written, when nothing failed."""

from __future__ import annotations

from typing import Literal, NamedTuple


class WriteRejection(NamedTuple):
    """A change that no row would take. `ref` is the change's own.

    `not_found`: the row to update is not there; `company`: the stored row is another company's.
    """

    ref: int
    reason: Literal["not_found", "company"]
