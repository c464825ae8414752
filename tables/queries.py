"""Named SQL statements, read from the `.sql` files beside this module, and timed when they run."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Final

from tables.errors import translated

# operation, entity, seconds, whether it succeeded (contract 9.4)
Observer = Callable[[str, str, float, bool], None]

_FOLDER: Final = Path(__file__).parent / "sql"
_NAME: Final = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)


def quoted(identifier: str) -> str:
    """An SQL identifier that means exactly this name."""
    return '"' + identifier.replace('"', '""') + '"'


@cache
def _statements(file: str) -> dict[str, str]:
    pieces = _NAME.split((_FOLDER / f"{file}.sql").read_text(encoding="utf-8"))
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def load(file: str, schema: str) -> dict[str, str]:
    """The statements of `sql/<file>.sql` for one tenant's schema.

    Each begins with `-- name: <name>` and a comment that says what it does; `{schema}` stands for the quoted
    schema.
    """
    return {name: text.replace("{schema}", quoted(schema)) for name, text in _statements(file).items()}


@contextmanager
def operation(observer: Observer, name: str, entity: str) -> Iterator[None]:
    """Time one database operation and tell the observer; the driver's errors become ours."""
    start = time.perf_counter()
    succeeded = False
    try:
        with translated():
            yield
        succeeded = True
    finally:
        observer(name, entity, time.perf_counter() - start, succeeded)
