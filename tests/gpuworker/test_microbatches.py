"""A worker learns from its own passes how many images go together (H5), and remembers what did not fit (I11)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fleet.models import PassProfile
from gpuworker.contract import DetectRecipe, InputPicture, Recipe, RenderSpec, Weights
from gpuworker.microbatches import Microbatches, Network, shape_of
from gpuworker.renderer import PassMeasure
from tests.factories import a_caller, a_checkpoint, a_job
from tests.fakes import LAUNCH_SECONDS, PatternRenderer
from tests.gpuworker.test_runner import WEIGHTS, a_runner, checkpoint, threads_of_the_runners_end  # noqa: F401

pytestmark = pytest.mark.django_db(transaction=True)


class Counting(PatternRenderer):
    """Keeps the number of images of each of its passes."""

    def __init__(self, *, image_step_seconds: float = 0, most_images: int = 256):
        super().__init__()
        self.image_step_seconds, self.most_images = image_step_seconds, most_images
        self.passes: list[int] = []

    def render(self, spec: RenderSpec, **call):
        self.passes.append(len(spec.recipes))
        yield from super().render(spec, **call)


def rendered(renderer: Counting, *, images: int, **changes) -> list[int]:
    """The passes in which a worker that has just started makes a job's images."""
    renderer.passes = []
    job = a_job(a_caller(), n_iter=images, **changes)
    a_runner(renderer).run_until_empty()
    job.refresh_from_db()
    assert (job.state, job.images_delivered) == ("succeeded", images)
    return renderer.passes


def recipe(**changes) -> Recipe:
    fields = {
        "prompt": "", "negative_prompt": "", "seed": 1, "subseed": 0, "sampler": "Euler", "steps": 4, "cfg_scale": 7.0,
        "width": 512, "height": 512, "checkpoint": Weights(name="mini", sha256="0" * 64),
    }  # fmt: skip
    return Recipe(**{**fields, **changes})


def microbatches(**options) -> Microbatches:
    return Microbatches(PatternRenderer(), device="pattern", **options)


def test_h5_passes_grow_while_that_pays_and_a_restarted_worker_knows():
    renderer = Counting()  # a pass costs the same whatever it holds
    assert rendered(renderer, images=47) == [1, 2, 4, 8, 16, 16]
    assert rendered(renderer, images=32) == [16, 16]
    rows = PassProfile.objects.filter(shape="sd1 below 1 MB 64x64", device="pattern").values_list(
        "images", "peak_bytes"
    )
    assert dict(rows) == {1: 1000, 2: 2000, 4: 4000, 8: 8000, 16: 16000}


def test_h5_images_gain_nothing_from_company_where_each_costs_its_own_time():
    renderer = Counting(image_step_seconds=20 * LAUNCH_SECONDS)
    # A pass is claimed before or after the one that runs has been measured; two of a size are doubted no more either way.
    rendered(renderer, images=16, steps=1)
    assert rendered(renderer, images=3, steps=1) == [1, 1, 1]


def test_i11_out_of_memory_halves_the_pass_and_every_worker_with_such_a_card_remembers():
    renderer = Counting(most_images=4)
    assert rendered(renderer, images=15) == [1, 2, 4, 8, 4, 4]
    assert rendered(renderer, images=8) == [4, 4]
    row = PassProfile.objects.get(images=8)
    assert row.too_large_at and row.passes == 0


def test_h5_exact_mode_has_its_fixed_number_of_images_and_learns_none():
    """Every network call holds as many rows, so one image would take as long as eight."""
    assert rendered(Counting(), images=20, exact=True) == [8, 8, 4]


def test_h5_a_size_the_networks_are_compiled_for_is_rendered_so_many_at_a_time(settings):
    settings.TORCH_COMPILE_SHAPES = ("64x64x6",)
    assert rendered(Counting(), images=12) == [6, 6]
    assert rendered(Counting(), images=3, width=128) == [1, 2]


def test_h5_the_setting_is_the_upper_bound(settings):
    settings.MAX_MICROBATCH = 3
    assert rendered(Counting(), images=9) == [1, 2, 3, 3]


def test_h5_a_converged_profile_writes_nothing_more():
    renderer = Counting()
    rendered(renderer, images=31)
    rendered(renderer, images=32)
    before = list(PassProfile.objects.order_by("pk").values())
    rendered(renderer, images=32)
    assert list(PassProfile.objects.order_by("pk").values()) == before


def test_h5_pictures_made_one_by_one_are_claimed_by_their_size():
    def detect(side: int) -> DetectRecipe:
        return DetectRecipe(picture=InputPicture(sha256="1" * 64, width=side, height=side), processor_res=64)

    assert [microbatches().size_of(detect(side)) for side in (256, 1024, 4096)] == [16, 2, 1]


def test_h5_sampler_steps_and_seeds_share_what_was_learned_and_the_rest_does_not():
    sd1 = Network("sd1", 2_130_000_000)
    one = shape_of(recipe(), sd1)
    assert one == "sd1 below 10 GB 512x512"
    assert shape_of(recipe(sampler="Heun", steps=50, seed=3, prompt="x"), sd1) == one
    others = [recipe(width=768), recipe(cfg_scale=1.0), recipe(exact=True), recipe(control=(object(),))]  # type: ignore[arg-type]
    shapes = {shape_of(other, sd1) for other in others} | {shape_of(recipe(), replace(sd1, family="sdxl"))}
    assert len(shapes - {one}) == 5


def test_h5_what_is_not_written_yet_is_known(settings):
    a_checkpoint("other", sha256="0" * 64)
    ours = microbatches()
    ours.measured(recipe(), 1, PassMeasure(100))
    assert ours.size_of(recipe()) == 2 and not PassProfile.objects.exists()
    ours.save()
    assert microbatches().size_of(recipe()) == 2
