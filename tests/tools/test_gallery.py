"""The sheets of crops that belong to the cards."""

from __future__ import annotations

import numpy as np
import pytest

from kbnet_plugin import zoo
from tools import gallery


def test_every_shipped_model_has_scenes_where_it_does_well_and_where_it_fails():
    assert set(gallery.SCENES) == {m.name for m in zoo.list_models() if m.shipped}
    for scenes in gallery.SCENES.values():
        assert {scene.fails for scene in scenes} == {True, False}


@pytest.mark.parametrize("name", gallery.SCENES)
def test_a_scene_is_a_whole_crop_and_its_noise_repeats(name):
    channels = zoo.get_model(name).in_channels
    for scene in gallery.SCENES[name]:
        truth = gallery.crop(scene, channels)
        assert truth.shape[:2] == (gallery.SIZE, gallery.SIZE)
        one, two = (scene.degrade(truth.copy(), np.random.default_rng(3)) for _ in range(2))
        assert np.array_equal(one, two)
        assert not np.allclose(one, truth, atol=0.01)


def test_an_unknown_model_is_refused(capsys, tmp_path):
    assert gallery.main(["denoise-colour", "--out", str(tmp_path)]) == 2
    assert "no scenes for denoise-colour; did you mean 'denoise-color'?" in capsys.readouterr().err
