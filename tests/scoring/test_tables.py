"""Tables of scores; how results were made."""

import math
import re

import numpy as np
import pytest

from dgunet.base.errors import InputError
from dgunet.Compressive_Sensing.evaluate import TEST_SETS as COMPRESSIVE_SENSING_SETS
from dgunet.Deraining.evaluate import BENCHMARK, TEST_SETS
from dgunet.scoring import tables
from dgunet.scoring.protocols import Score
from dgunet.scoring.results_folder import describe_settings, read_settings, write_settings


def test_table_ends_with_the_mean_of_the_sets():
    sets = {"Rain100L": [Score("a", 36, 0.96), Score("b", 38, 0.98)], "own": [Score("c", 31, 0.8)]}
    published = {"Rain100L": (38.25, 0.974), "mean": (33.46, 0.9271)}
    table = re.sub(" +", " ", tables.format_table(sets, published, "published")).splitlines()
    assert table[:1] + table[2:] == [
        "| set | images | PSNR (dB) | SSIM | published |",
        "| Rain100L | 2 | 37.00 | 0.9700 | 38.25 / 0.974 |",
        "| own | 1 | 31.00 | 0.8000 | – |",
        "| mean | 3 | 34.00 | 0.8850 | 33.46 / 0.9271 |",
    ]
    assert "published" not in tables.format_table({"own": [Score("a", math.inf, 1)]}, published)


@pytest.mark.parametrize("model", ["DGUNet", "DGUNet_plus"])
def test_published_scores_are_consistent(model):
    means = np.mean([known.published[model] for known in TEST_SETS.values()], axis=0)
    assert means == pytest.approx(BENCHMARK.published_mean[model], abs=0.01)
    for name in ("Set11", "BSD68"):
        by_ratio = [
            COMPRESSIVE_SENSING_SETS[f"{name}_{ratio}"].published[model]
            for ratio in (1, 4, 10, 25, 50)
        ]
        assert by_ratio == sorted(by_ratio)
    assert COMPRESSIVE_SENSING_SETS["Set11_30"].published == {}


def test_settings_are_read_and_described(tmp_path):
    assert read_settings(tmp_path) is None
    write_settings(tmp_path / "a", {"model": "DGUNet_plus", "self_ensemble": True})
    settings = read_settings(tmp_path, tmp_path / "a")
    assert describe_settings({"x": settings}) == "settings: model DGUNet_plus, self_ensemble on"
    assert describe_settings({"x": None, "y": None}).startswith("settings: unknown (no settings")
    for content, message in (("[1]", r"settings\.json: holds a list"), ("{", "no JSON")):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(InputError, match=message):
            read_settings(tmp_path)
