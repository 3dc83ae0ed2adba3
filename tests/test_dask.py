"""The search of tests/test_search.py on a cluster of processes."""

import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose

from skpatchcore.datasets import make_surface_defects
from tests.test_search import make_detector, make_search, scores_of

distributed = pytest.importorskip("distributed")


@pytest.mark.slow
# Dask's shutting down is not ours to keep silent.
@pytest.mark.filterwarnings("default")
def test_a_search_on_a_local_cluster(tmp_path):
    surfaces = make_surface_defects(
        n_train=10, n_test_good=2, n_test_defective=4, image_size=64, random_state=0
    )
    grid = {"sampler__fraction": [0.1, 0.2], "n_neighbors": [1, 3]}
    expected = make_search(make_detector(), grid)
    expected.fit(surfaces.data, surfaces.target)
    search = make_search(make_detector(tmp_path / "cache"), grid)
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            host="127.0.0.1",
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
        parallel_config(backend="dask"),
    ):
        search.fit(surfaces.data, surfaces.target)
        assert len(client.scheduler_info()["workers"]) == 2
    assert_allclose(scores_of(search), scores_of(expected), rtol=1e-6)
    maps = list((tmp_path / "cache").rglob("maps/*/output.pkl"))
    assert len(maps) == len(surfaces.data)
