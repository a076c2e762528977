"""dask computes the same tiles, lazily and on a cluster that loses workers."""

from __future__ import annotations

import os
import pickle
import signal

import numpy as np
import pytest

from kbnet_plugin import Restorer
from kbnet_plugin.cli import main
from kbnet_plugin.inference import dask as lazy

da = pytest.importorskip("dask.array")


@pytest.fixture
def restorer(lively):
    return Restorer(lively(), device="cpu", tile=48, halo=8, window=16)


def values(shape, dtype="u2"):
    scale = 1000 if dtype[0] == "f" else np.iinfo(dtype).max
    return (np.random.default_rng(0).random(shape) * scale).astype(dtype)


@pytest.mark.parametrize(
    ("shape", "axes", "dtype", "rule"),
    [
        ((60, 70), "YX", "u2", "dtype"),
        ((2, 60, 50, 3), "TYXS", "u1", "dtype"),
        ((2, 2, 40, 50), "CZYX", "f4", "dtype"),
        ((60, 2, 50), "XTY", "u2", "percentile"),
        ((50, 60, 4), "YXS", "f8", "percentile"),
    ],
)
def test_a_lazy_array_equals_the_direct_result(lively, shape, axes, dtype, rule):
    restorer = Restorer(lively(), device="cpu", tile=48, halo=8, window=16, range=rule)
    array = values(shape, dtype)
    lazily = restorer(da.from_array(array, chunks=40), axes)
    assert isinstance(lazily, da.Array)
    assert (lazily.shape, lazily.dtype) == (array.shape, array.dtype)
    out = lazily.compute(scheduler="synchronous")
    assert np.array_equal(out, restorer(array, axes))


def test_only_the_requested_part_is_computed(restorer, monkeypatch):
    array = da.from_array(values((3, 200, 200)), chunks=(1, 50, 50))
    calls = []
    solve = restorer.engine.solve
    monkeypatch.setattr(restorer.engine, "solve", lambda *step: calls.append(1) or solve(*step))
    restorer.map(array, "ZYX")[1, :20, :20].compute(scheduler="synchronous")
    assert len(calls) == 1


def test_dask_arrays_go_into_restore_into(restorer):
    array = values((60, 70))
    target = np.zeros_like(array)
    list(restorer.restore_into(da.from_array(array, chunks=32), target))
    assert np.array_equal(target, restorer(array))


def test_an_engine_is_unpickled_once(restorer):
    one, other = (pickle.loads(pickle.dumps(restorer.engine)) for _ in range(2))
    assert one is other
    again = pickle.loads(pickle.dumps(restorer))
    assert again.engine is one
    image = values((60, 70))
    assert np.array_equal(again(image), restorer(image))


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        yield cluster


@pytest.fixture
def client(cluster):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


def assert_alike(found, expected):
    """Compare whole numbers; a worker has one thread, and on some processors that changes last bits."""
    apart = np.abs(found.astype(int) - expected)
    assert apart.max() <= 1
    assert (apart > 0).mean() < 0.01


def kill_one(client):
    victim = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)


@pytest.mark.filterwarnings("ignore")
def test_with_a_worker_killed_half_way_the_result_is_complete_and_equal(restorer, client, tmp_path):
    array = values((4, 120, 120))
    target = np.zeros_like(array)
    steps = restorer.restore_into(array, target, "ZYX", client=client, journal=tmp_path / "journal")
    for done, total in steps:
        if done == total // 2:
            kill_one(client)
    assert done == total
    assert_alike(target, restorer(array, "ZYX"))


@pytest.mark.filterwarnings("ignore")
def test_a_lazy_array_survives_a_killed_worker_too(restorer, client):
    array = values((4, 120, 120))
    future = client.compute(restorer.map(da.from_array(array, chunks=(1, 60, 60)), "ZYX"))
    kill_one(client)
    assert_alike(future.result(timeout=120), restorer(array, "ZYX"))


def test_the_command_uses_a_running_cluster(cluster, client, checkpoint, tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile")
    pytest.importorskip("zarr")
    monkeypatch.chdir(tmp_path)
    array = values((3, 60, 70))
    tifffile.imwrite("a.tif", array, metadata={"axes": "ZYX"}, photometric="minisblack")
    options = ["--model", "tiny.pth", "--device", "cpu", "--scheduler", cluster.scheduler_address]
    assert main(["restore", "a.tif", "-o", "b.tif", *options]) == 0
    expected = Restorer.from_pretrained("tiny.pth", device="cpu")(array, "ZYX")
    assert np.array_equal(tifffile.imread("b.tif"), expected)


def test_no_cluster_is_one_line(checkpoint, tmp_path, monkeypatch, capsys):
    pytest.importorskip("distributed")
    monkeypatch.setattr(lazy, "_TIMEOUT", "500ms")
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", values((3, 3)))
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite("a.tif", values((20, 30)))
    options = ["--model", "tiny.pth", "--device", "cpu", "--scheduler", "tcp://127.0.0.1:9"]
    assert main(["restore", "a.tif", "-o", "b.tif", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("kbnet: tcp://127.0.0.1:9: no dask scheduler answers")
    assert error.count("\n") == 1


@pytest.mark.filterwarnings("ignore")
def test_a_lost_cluster_is_named_and_the_run_can_be_resumed(restorer, tmp_path):
    distributed = pytest.importorskip("distributed")
    array = values((4, 120, 120))
    target = np.zeros_like(array)
    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "processes": False}
    with distributed.LocalCluster(**options) as cluster:
        client = distributed.Client(cluster.scheduler_address, set_as_default=False, timeout="2s")
        steps = restorer.restore_into(array, target, "ZYX", client=client, journal=tmp_path / "journal")
        next(steps)
        cluster.close()
        with pytest.raises(ConnectionError, match=r"the cluster at .* is gone .*; finished tiles are kept"):
            list(steps)
        client.close(timeout=1)
    list(restorer.restore_into(array, target, "ZYX", journal=tmp_path / "journal"))
    assert np.array_equal(target, restorer(array, "ZYX"))
