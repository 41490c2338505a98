"""Contact sheets: A1111's layout, cell by cell."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from renderjobs.grids import grid_of
from tests.engine.recordings import A1111, needs_recordings

LAYOUTS = {1: (1, 1), 2: (2, 1), 3: (2, 2), 4: (2, 2), 5: (3, 2), 6: (3, 2), 7: (3, 3), 8: (3, 3), 16: (4, 4)}
"""Pictures → columns and rows."""


@pytest.mark.parametrize("count", LAYOUTS)
def test_the_sheet_has_a1111s_columns_and_rows(count):
    sheet = grid_of([Image.new("RGB", (8, 16), (index, 0, 0)) for index in range(count)])
    columns, rows = LAYOUTS[count]
    assert sheet.size == (columns * 8, rows * 16)
    last = count - 1
    assert sheet.getpixel((last % columns * 8, last // columns * 16)) == (last, 0, 0)


def test_a_smaller_picture_is_centred_and_an_empty_cell_is_white():
    sheet = grid_of([Image.new("RGB", (8, 8)), Image.new("RGB", (4, 4)), Image.new("RGB", (8, 8))])
    assert sheet.getpixel((9, 1)) == (255, 255, 255) and sheet.getpixel((10, 2)) == (0, 0, 0)
    assert sheet.getpixel((12, 12)) == (255, 255, 255)


@needs_recordings
@pytest.mark.parametrize("case", ["batch_grid_save_images", "batch_grid_3_save_images"])
def test_the_recorded_sheet_is_met(case):
    folder = A1111 / "cases" / case
    assert json.loads(json.loads((folder / "response.json").read_text())["info"])["index_of_first_image"] == 1
    recorded, *pictures = (
        Image.open(path) for path in sorted(folder.glob("image_*.png"), key=lambda path: int(path.stem[6:]))
    )
    assert np.array_equal(np.asarray(grid_of(pictures)), np.asarray(recorded.convert("RGB")))
