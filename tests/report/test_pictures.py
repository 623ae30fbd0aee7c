from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest

from steepest.core.errors import SteepestWarning
from steepest.core.records import Store
from steepest.report import pictures, theme
from steepest.report.figures import draw_run
from steepest.studies.claim import Picture
from tests.report import sample

PICTURE = sample.study("adamp").PICTURES[0]


def size(png: bytes) -> tuple[int, int]:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", png[16:24])


def test_a_picture_is_drawn_at_two_pixels_for_one_in_both_themes():
    arrays = sample.arrays()["field"]
    light, dark = (pictures.draw(PICTURE, arrays, pictures.Ink("adamp", d)) for d in (False, True))
    assert size(light) == size(dark)
    assert pictures.size(light) == tuple(-(-n // 2) for n in size(light))
    assert all(0.9 * whole < n <= whole for n, whole in zip(size(light), (1520, 840)))
    assert light != dark


def test_a_picture_has_no_empty_margins():
    def square(figure, arrays, ink):
        figure.subplots().imshow(np.zeros((4, 4)))

    width, height = size(
        pictures.draw(Picture("square", "A square", "field", square), {}, pictures.Ink("adamp", False))
    )
    assert height <= 840
    assert width < 0.7 * 1520


def test_the_ink_has_the_colors_of_the_theme_and_of_every_other_figure():
    ink = pictures.Ink("adamp", dark=True)
    assert ink.text == theme.token("ink", "dark")
    assert ink.color("AdamW") == theme.token("s6", "dark")
    assert ink.color("AdamP") == theme.token("s1", "dark")
    assert len(set(ink.categories)) == 7


def test_a_drawing_leaves_the_settings_of_matplotlib_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    pictures.draw(PICTURE, sample.arrays()["field"], pictures.Ink("adamp", dark=False))
    assert dict(matplotlib.rcParams) == before


def test_the_page_shows_pictures_in_both_themes_and_says_which_could_not_be_drawn(site, page):
    text = page("adamp")
    assert "A field &lt;turns&gt; once" in text
    for name in ("light", "dark"):
        width, height = pictures.size((site / "pictures" / f"adamp-field-{name}.png").read_bytes())
        here = f'src="../pictures/adamp-field-{name}.png" width="{width}" height="{height}" alt="A ring of colors."'
        assert here in text
    assert "could not be drawn: <code>ArithmeticError: no &lt;axes&gt;</code>" in text
    assert "No run kept its arrays" not in text
    assert "Pictures" not in page("sophia")


def test_a_run_is_drawn_into_its_folder_and_a_bad_picture_costs_only_itself(store):
    with pytest.warns(SteepestWarning, match="broken-run"):
        run = store.latest("adamp")
    with pytest.warns(SteepestWarning, match="picture broken could not be drawn: no <axes>"):
        names = {path.name for path in draw_run(store, run)}
    assert {"field.png", "field-dark.png", "loss.svg"} <= names
    assert "broken.png" not in names


def test_damaged_arrays_cost_their_picture_with_a_warning(tmp_path):
    store = Store(tmp_path)
    record = sample.record("adamp")
    store.write(record, (), sample.arrays())
    np.testing.assert_array_equal(store.arrays(record.id, "field")["values"], np.linspace(0, 2 * np.pi, 16))
    assert store.arrays(record.id, "other") is None
    path = tmp_path / record.id / "arrays" / "field.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(SteepestWarning, match=r"skipped .*field\.npz"):
        assert store.arrays(record.id, "field") is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SteepestWarning)
        assert pictures.available(store, record.id, sample.study("adamp")) == []


def test_a_run_without_arrays_has_no_pictures(tmp_path):
    store = Store(tmp_path)
    record = sample.record("adamp")
    store.write(record)
    assert not (tmp_path / record.id / "arrays").exists()
    assert pictures.available(store, record.id, sample.study("adamp")) == []
    assert isinstance(PICTURE, Picture)
