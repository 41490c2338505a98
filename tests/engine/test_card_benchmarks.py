"""The benchmarks for a card, run small and on the CPU: every line but the device's own. Their figures mean nothing here."""

from __future__ import annotations

import pytest

from benchmarks import on_card
from benchmarks.on_card import Asked, against_stock, changes_of, flops_per_image, time_of_lora_changes
from tests.engine.ldm import TINY

SMALL = {
    family: Asked(family, TINY[family].shapes(), 64, 2, 3, floor=1, part_of_peak=0.1) for family in ("sd1", "sdxl")
}


@pytest.mark.parametrize("family", SMALL)
def test_b1_b2_b3_compare_with_a_stock_pipeline_and_learn_the_micro_batch(family):
    rate, part = against_stock("B0", SMALL[family], device="cpu", pairs=1)
    assert rate.ratio == rate.above_seconds / rate.below_seconds and 0 < part.ratio < 1
    assert list(rate.notes["milliseconds_per_image_and_call"]) == [1, 2]
    assert rate.notes["largest_difference_of_the_first"] <= 2, "speed was bought with another picture"


def test_b10_changes_a_checkpoint_that_is_resident_and_one_that_is_parked():
    resident, parked = changes_of(SMALL["sd1"], device="cpu", pairs=2)
    assert (resident.name, parked.name) == ("B10-resident", "B10-parked")
    assert resident.above_seconds < parked.above_seconds


def test_b11_changes_a_lora_of_every_attention_without_replacing_a_module():
    ratio = time_of_lora_changes(SMALL["sd1"], device="cpu", changes=3)
    assert ratio.notes["milliseconds_per_change"] > 0


@pytest.mark.parametrize(("asked", "tera"), [(on_card.SD1, 34.7), (on_card.SDXL, 416)], ids=["sd1", "sdxl"])
def test_b3_counts_the_published_floating_point_operations(asked, tera):
    assert flops_per_image(asked) / 1e12 == pytest.approx(tera, rel=0.02)
