"""One process that forks the runs of this folder, on the session's Prefect server."""

import pytest

from tests.chaos.attempts import Kitchen, Merge, small_plan


@pytest.fixture(scope="session")
def kitchen(prefect_server, tmp_path_factory):
    from prefect.settings import PREFECT_API_URL

    folder = tmp_path_factory.mktemp("kitchen")
    kitchen = Kitchen(folder, PREFECT_API_URL.value(), folder / ".prefect")
    yield kitchen
    kitchen.close()


@pytest.fixture(scope="session")
def unbroken(kitchen, tmp_path_factory):
    """A run that nothing happened to."""
    merge = Merge(kitchen, tmp_path_factory.mktemp("merge") / "unbroken", small_plan())
    assert merge.run() == 0
    return merge
