from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from steepest.core.records import Store
from steepest.report.site import write_site
from steepest.studies import registry
from tests.report import sample


@pytest.fixture(scope="package")
def studies() -> object:
    """Every test of the report sees the invented studies in place of the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "has_study", lambda key: key in (*sample.METHODS, "cbo", "harpg"))
        patch.setattr(registry, "load_study", sample.study)
        yield


@pytest.fixture(scope="package")
def store(studies: object, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return sample.fill(tmp_path_factory.mktemp("store") / "steepest-results")


@pytest.fixture(scope="package")
def site(store: Store) -> Path:
    return write_site(store)


@pytest.fixture(scope="package")
def page(site: Path) -> Callable[[str], str]:
    return lambda key: (site / ("index.html" if key == "index" else f"method/{key}.html")).read_text("utf-8")
