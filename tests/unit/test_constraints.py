"""The gate sees when constraints.txt and pyproject.toml have come apart."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from tools.constraints import declared, pinned, problems


def found(requirement: str, constraints: str) -> list[str]:
    return list(problems([Requirement(requirement)], pinned(constraints)))


@pytest.fixture
def pins() -> str:
    from importlib.metadata import version

    return f"pytest-asyncio=={version('pytest-asyncio')}\n"


def test_missing_dependency_is_a_problem() -> None:
    assert found("psutil>=1", "") == ["psutil>=1 is missing"]


def test_version_outside_its_range_is_a_problem() -> None:
    assert found("psutil>=2,<3", "psutil==1.0\n") == ["psutil==1.0 is outside psutil<3,>=2"]


def test_other_version_than_the_installed_one_is_a_problem() -> None:
    assert "psutil==1.0 is not what is installed" in found("psutil>=1", "psutil==1.0\n")[0]


def test_missing_dependency_of_a_dependency_is_a_problem(pins: str) -> None:
    assert any(
        line.startswith("pytest") and line.endswith("is missing") for line in found("pytest-asyncio", pins)
    )


def test_pins_for_other_platforms_do_not_count() -> None:
    assert pinned("# a comment\ncolorama==0.4.6 ; sys_platform == 'no-such'\nPy_Yaml==6.0\n") == {
        "py-yaml": "6.0"
    }


def test_optional_dependencies_are_declared_too() -> None:
    project = '[project]\ndependencies = ["a>1"]\n[project.optional-dependencies]\ndev = ["b"]\n'
    assert [str(each) for each in declared(project)] == ["a>1", "b"]
