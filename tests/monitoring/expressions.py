"""Metrics and labels of a parsed PromQL expression."""

from __future__ import annotations

from dataclasses import dataclass, field

import promql_parser
from promql_parser import AggregateExpr, BinaryExpr, Call, Expr, MatrixSelector, StringLiteral, VectorSelector

# Functions whose second argument is the name of a label that they make.
_MAKES_LABEL = ("label_replace", "label_join")


@dataclass(slots=True)
class Named:
    """The metrics of an expression, its selectors as text, and the labels that it expects or makes."""

    metrics: set[str] = field(default_factory=set)
    selectors: set[str] = field(default_factory=set)
    labels: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)


def named(expression: str) -> Named:
    """Everything that an expression names. Raises `ValueError` where it is no PromQL."""
    found = Named()

    def visit(part: Expr) -> None:
        match part:
            case VectorSelector():
                _note_selector(found, part)
            case MatrixSelector():
                _note_selector(found, part.vector_selector)
            case AggregateExpr() if part.modifier is not None:
                found.labels.update(part.modifier.labels)
            case BinaryExpr() if part.modifier is not None:
                if part.modifier.matching is not None:
                    found.labels.update(part.modifier.matching.labels)
                found.labels.update(part.modifier.group_labels or ())
            case Call() if part.func.name in _MAKES_LABEL and isinstance(part.args[1], StringLiteral):
                found.made.add(part.args[1].val)
            case _:
                pass

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def _note_selector(found: Named, selector: VectorSelector) -> None:
    assert selector.name is not None, f"{selector} names no metric"
    found.metrics.add(selector.name)
    found.selectors.add(
        f"{selector.name}{selector.matchers}" if selector.matchers.matchers else selector.name
    )
    found.labels.update(matcher.name for matcher in selector.matchers.matchers)
