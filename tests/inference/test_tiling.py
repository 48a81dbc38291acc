import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segaware.contracts import DenoiserInfo
from segaware.errors import InputError
from segaware.inference.tiling import Box, halo, spans, tiles

grids = st.sampled_from([1, 2, 3, 4, 8])


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 12), grids)
def test_tiles(height, width, core, steps, multiple):
    reach = steps * multiple
    covered = np.zeros((height, width), int)
    for tile in tiles(height, width, core=core, halo=reach, multiple=multiple):
        covered[tile.core.slices] += 1
        (top, bottom), (high, low) = (tile.core.top, tile.core.bottom), (tile.window.top, tile.window.bottom)
        for start, stop, first, last, size in (
            (top, bottom, high, low, height),
            (tile.core.left, tile.core.right, tile.window.left, tile.window.right, width),
        ):
            assert 0 <= first <= start < stop <= last <= size  # inside the image, nothing empty
            assert stop - start < core + multiple  # never larger than asked for, rounded up
            assert start % multiple == 0 and first % multiple == 0  # on the grid
            assert first == 0 or start - first == reach  # the halo is whole, or the image ends
            assert last == size or last - stop == reach
        inner = tile.core.within(tile.window)
        assert inner.shape == tile.core.shape and inner.bottom <= tile.window.shape[0]
    assert (covered == 1).all()


@settings(deadline=None)
@given(st.integers(1, 10_000), st.integers(1, 600), grids)
def test_the_fewest_pieces_of_about_one_length(size, core, multiple):
    lengths = [stop - start for start, stop, _, _ in spans(size, core=core, halo=0, multiple=multiple)]
    assert len(lengths) <= -(-size // core)
    assert len(set(lengths[:-1])) <= 1 and lengths[-1] <= lengths[0]


def test_one_tile_is_the_whole():
    (tile,) = tiles(40, 30, core=40, halo=8)
    assert tile.core == tile.window == Box(0, 40, 0, 30)


@pytest.mark.parametrize(("field", "multiple", "expected"), [(41, 1, 21), (1, 1, 1), (50, 2, 28), (39, 4, 24)])
def test_halo(field, multiple, expected):
    assert halo(DenoiserInfo(receptive_field=field, size_multiple=multiple)) == expected


def test_no_halo_for_an_unknown_field():
    with pytest.raises(InputError, match="'whole'"):
        halo(DenoiserInfo(receptive_field=None))


@pytest.mark.parametrize("wrong", [{"size": 0}, {"core": 0}, {"halo": -1}, {"halo": 3, "multiple": 2}])
def test_refusals(wrong):
    with pytest.raises(InputError, match="sizes must be positive"):
        spans(**{"size": 10, "core": 5, "halo": 2, "multiple": 1, **wrong})
