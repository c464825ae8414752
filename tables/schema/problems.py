"""What only an operator can mend about a company's schema."""

from __future__ import annotations

from tables.errors import StorageError


class SchemaProblem(StorageError):
    """Tables or columns are missing, or the schema is another company's; waiting does not help."""


class SchemaMissing(SchemaProblem):
    """There is no such schema, and none is to be made."""

    def __init__(self, schema: str) -> None:
        super().__init__(f"there is no schema {schema}")


class SchemaTaken(SchemaProblem):
    """The schema is another company's, whose name differs only in case (SUB-5)."""

    def __init__(self, schema: str, company: str, owner: str) -> None:
        super().__init__(
            f"company {company!r}: schema {schema} belongs to {owner!r}, which differs only in case"
        )
        self.company = company
        self.owner = owner
