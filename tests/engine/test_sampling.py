"""Sigmas, noise and guidance, against numbers that were computed or recorded elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpuworker.contract import Settings
from gpuworker.contract.samplers import SAMPLERS_BY_NAME, resolve_sampler, schedule_named
from gpuworker.engine.errors import InvalidSpecError
from gpuworker.engine.prompts.encoder import Cond, Conditioning, PromptTrack
from gpuworker.engine.sampling.denoise import rehearse
from gpuworker.engine.sampling.guidance import GuidedDenoiser, Steering
from gpuworker.engine.sampling.noise import PassNoise, slerp
from gpuworker.engine.sampling.samplers import SOLVERS, SolverRun
from gpuworker.engine.sampling.schedules import LcmNoiseLevels, NoiseLevels, sigmas_for, timesteps_for
from tests.engine.recordings import internals, needs_recordings, numbers

SHAPE = (4, 8, 8)


@pytest.fixture(scope="module")
def levels() -> NoiseLevels:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return NoiseLevels((1 - betas).cumprod(0).float())


def sigmas(levels, sampler, schedule, steps):
    resolved = resolve_sampler(sampler, schedule)
    return sigmas_for(resolved.sampler, resolved.effective_schedule, steps, levels)


def test_every_sampler_has_a_solver():
    assert SOLVERS.keys() == SAMPLERS_BY_NAME.keys()


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("Automatic", [14.614643, 4.086081, 1.615580, 0.695150, 0.029168, 0.0]),
        ("Uniform", [14.614643, 4.086081, 1.615580, 0.695150, 0.029168, 0.0]),
        ("Karras", [14.614643, 4.796544, 1.274105, 0.247952, 0.029168, 0.0]),
    ],
)
def test_five_steps_have_these_sigmas(levels, schedule, expected):
    assert sigmas(levels, "Euler", schedule, 5).tolist() == pytest.approx(expected, abs=1e-5)


def test_next_to_last_sigma_is_left_out(levels):
    full, short = (sigmas(levels, name, "Exponential", steps) for name, steps in (("Euler", 6), ("DPM++ 3M SDE", 5)))
    assert torch.equal(short, torch.cat([full[:-2], full[-1:]]))


@pytest.mark.parametrize("label", ["KL Optimal", "Automatic"])
def test_only_kl_optimal_ends_above_zero(levels, label):
    assert (sigmas(levels, "Euler", label, 8)[-1] > 0) == (label == "KL Optimal")


@pytest.mark.parametrize(("steps", "count"), [(12, 13), (20, 20), (30, 31), (1, 1)])
def test_timestep_samplers_round_their_stride_down(steps, count):
    timesteps = timesteps_for(steps)
    assert (len(timesteps), int(timesteps[0])) == (count, 1)


def test_timestep_of_a_sigma_is_fractional_and_turns_back(levels):
    timestep = levels.timestep(torch.tensor(3.21))
    assert timestep.frac() > 0
    assert levels.sigma(timestep).item() == pytest.approx(3.21, rel=1e-5)


@pytest.mark.parametrize(("sigma", "timestep"), [(100.0, 999.0), (0.001, 0.0)])
def test_sigma_outside_the_trained_range_is_clamped(levels, sigma, timestep):
    assert levels.timestep(torch.tensor(sigma)).item() == timestep


def test_first_draw_is_the_generators_own(recipe_of):
    noise = PassNoise([recipe_of(seed=11), recipe_of(seed=12)], SHAPE)
    expected = torch.randn(SHAPE, generator=torch.Generator().manual_seed(12))
    assert torch.equal(noise.first[1], expected)


def test_seed_delta_spares_the_first_draw(recipe_of):
    plain, delta, moved = (PassNoise([recipe_of(**fields)], SHAPE) for fields in ({}, {"ensd": 5}, {"seed": 12}))
    assert torch.equal(plain.first, delta.first)
    assert torch.equal(delta.next_draw(), moved.first), "seed 7 with a delta of 5 goes on as seed 12 begins"


def test_full_variation_is_the_subseeds_noise(recipe_of):
    varied = PassNoise([recipe_of(subseed=3, subseed_strength=1.0)], SHAPE).first
    assert torch.allclose(varied, PassNoise([recipe_of(seed=3)], SHAPE).first, atol=1e-5)


def test_parallel_noises_are_mixed_in_a_line():
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(slerp(0.25, noise, 2 * noise), noise * 1.75)


def test_resized_seed_keeps_its_middle(recipe_of):
    small = PassNoise([recipe_of(width=64, height=64)], SHAPE).first[0]
    large = PassNoise([recipe_of(seed_resize_from_w=64, seed_resize_from_h=64)], (4, 16, 16)).first[0]
    assert torch.equal(large[:, 4:12, 4:12], small)


def test_brownian_halves_sum_to_the_whole(recipe_of):
    noise = PassNoise([recipe_of()], SHAPE).brownian(torch.tensor([14.0, 5.0, 1.0, 0.0]), torch.device("cpu"))
    high, middle, low = torch.tensor(14.0), torch.tensor(5.0), torch.tensor(1.0)
    parts = noise(high, middle) * 3.0 + noise(middle, low) * 2.0
    assert torch.allclose(parts, noise(high, low) * 13**0.5, atol=1e-4)


@pytest.mark.parametrize(("name", "draws"), [("Euler", 0), ("Euler a", 4), ("DPM++ SDE", 8), ("DDIM", 0), ("LCM", 4)])
def test_h3_noise_a_solver_will_ask_for_is_known_before(levels, name, draws):
    visits = timesteps_for(5) if name == "DDIM" else sigmas(levels, name, "Karras", 5)
    nothing = torch.zeros(1)
    run = SolverRun(nothing, visits, None, None, levels, steps=5, eta=SOLVERS[name].default_eta)
    total, ways = rehearse(SOLVERS[name], run)
    assert (total, len(ways)) == (len(visits) - 1, draws)


class PerfectDenoiser:
    """Knows the picture."""

    last_unconditional = torch.zeros(1, 1, 1, 1)

    def __init__(self, picture):
        self.picture = picture

    def __call__(self, latents, level):
        return self.picture


SIGMA_SAMPLERS = [name for name, solver in SOLVERS.items() if solver.prediction == "sigma" and name != "DPM fast"]


@pytest.mark.parametrize("name", SIGMA_SAMPLERS)
def test_solver_arrives_at_the_picture_its_denoiser_sees(levels, recipe_of, name):
    picture = torch.full((1, *SHAPE), 0.5)
    visits = sigmas(levels, name, "Karras", 8)
    noise = PassNoise([recipe_of()], SHAPE).ancestral(torch.device("cpu"))
    run = SolverRun(picture + noise(None, None) * visits[0], visits, PerfectDenoiser(picture), noise, levels, steps=8)
    *_, last = SOLVERS[name].steps(run)
    assert (last - picture).abs().max() < 0.2


@pytest.mark.parametrize(
    "name", ["Euler", "Heun", "DPM2", "DPM++ 2M", "DPM++ 2S a", "LMS", "DPM++ 2M SDE", "DPM++ 3M SDE"]
)
def test_deterministic_solvers_agree_on_a_known_flow(levels, name):
    """For data of unit variance the ideal denoiser is x / (1 + sigma²), and the flow has a closed form."""

    class Gaussian(PerfectDenoiser):
        def __call__(self, latents, level):
            return latents / (1 + level**2)

    start = torch.full((1, *SHAPE), 10.0)
    visits = sigmas(levels, name, "Karras", 60)
    run = SolverRun(start, visits, Gaussian(start), lambda *_: torch.zeros(()), levels, steps=60, eta=0.0)
    *_, last = SOLVERS[name].steps(run)
    assert last.mean().item() == pytest.approx(10.0 / (1 + levels.sigma_max**2) ** 0.5, rel=0.06)


FOUR = torch.tensor([-3.0, -0.5, 0.7, 4.0]).view(1, 1, 1, 4)


class Squashing(PerfectDenoiser):
    def __call__(self, latents, level):
        return 0.8 * latents.tanh() / (1 + level * 0.1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM fast", [-0.403911, -0.154541, 0.199921, 0.452954]),
        ("DPM adaptive", [-0.508578, -0.179585, 0.23443, 0.566534]),
    ],
)
def test_dpm_solvers_walk_from_a_picture_only_what_the_strength_leaves(levels, name, expected):
    """The numbers are those of k-diffusion, between the first and the last but one sigma of what is left."""
    left = sigmas(levels, name, "Automatic", 9)[4:]
    run = SolverRun(FOUR, left, Squashing(FOUR), lambda *_: torch.zeros(()), levels, steps=9, eta=0.0, inside=True)
    *_, last = SOLVERS[name].steps(run)
    assert last.flatten().tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("eta", "expected"),
    [
        (1.0, [0.471351, -0.062807, -0.504189, -0.709328]),
        (1.2, [-0.077332, 0.088387, 0.205164, 0.273657]),
        (2.0, [-0.177492, -0.099078, 0.124369, 0.177948]),
    ],
)
def test_dpm2_a_does_not_raise_again_what_it_stepped_all_the_way_down(levels, eta, expected):
    """The numbers are those of k-diffusion, with a constant for its noise."""
    visits, noise = sigmas(levels, "Euler", "Automatic", 9)[4:], torch.full_like(FOUR, 0.25)
    run = SolverRun(FOUR, visits, Squashing(FOUR), lambda *_: noise, levels, steps=9, eta=eta)
    *_, last = SOLVERS["DPM2 a"].steps(run)
    assert last.flatten().tolist() == pytest.approx(expected, abs=1e-5)


def test_unipc_refuses_a_single_step_of_a_picture(levels):
    run = SolverRun(FOUR, timesteps_for(6)[:0], Squashing(FOUR), None, levels, steps=1, inside=True)
    with pytest.raises(InvalidSpecError, match="at least two"):
        list(SOLVERS["UniPC"].steps(run))


@pytest.mark.parametrize("name", ["DPM fast", "DPM adaptive"])
def test_dpm_solvers_refuse_a_single_step_of_a_picture(levels, name):
    left = sigmas(levels, name, "Automatic", 9)[-2:]
    run = SolverRun(FOUR, left, Squashing(FOUR), lambda *_: torch.zeros(()), levels, steps=9, inside=True)
    with pytest.raises(InvalidSpecError, match="at least two"):
        list(SOLVERS[name].steps(run))


@pytest.mark.parametrize(
    ("variant", "order", "expected"),
    [
        ("bh1", 3, [-2.597866, -0.205382, 0.293442, 4.922753]),
        ("vary_coeff", 1, [-2.581088, -0.202433, 0.289495, 4.855892]),
        ("vary_coeff", 2, [-2.564919, -0.203568, 0.290842, 4.855601]),
        ("vary_coeff", 3, [-2.590986, -0.204371, 0.292163, 4.882046]),
    ],
)
def test_variants_of_unipc_give_the_numbers_of_a1111(levels, variant, order, expected):
    class Bending(PerfectDenoiser):
        def __call__(self, latents, level):
            return 0.6 * latents.tanh() * (0.5 + (level + 1) / 1000)

    settings = Settings(uni_pc_variant=variant, uni_pc_order=order)
    run = SolverRun(FOUR / 4, timesteps_for(6)[:6], Bending(FOUR), None, levels, steps=6, settings=settings)
    *_, last = SOLVERS["UniPC"].steps(run)
    assert last.flatten().tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["DDIM", "PLMS", "UniPC"])
def test_timestep_solvers_agree_on_a_known_flow(levels, name):
    """In the variance-preserving form such data stay where they are: the ideal noise prediction is sqrt(1 - alpha) x."""

    class Gaussian(PerfectDenoiser):
        def __call__(self, latents, level):
            sigma = levels.sigma(level.float())
            return latents * sigma / (1 + sigma**2) ** 0.5

    start = torch.full((1, *SHAPE), 1.5)
    run = SolverRun(start, timesteps_for(40), Gaussian(start), None, levels, steps=40, eta=0.0)
    *_, last = SOLVERS[name].steps(run)
    assert last.mean().item() == pytest.approx(1.5, rel=0.06)


def conditioning(*values):
    tracks = [PromptTrack(((99, Cond(torch.full((77, 1), value))),)) for value in values]
    return Conditioning(positive=tuple(tracks[:-1]), negative=tracks[-1])


def context_mean(latents, level, given):
    return latents * 0 + given.context.mean(dim=(1, 2)).view(-1, 1, 1, 1)


def steering(*cfg_scales, **more):
    return Steering(cfg_scales=cfg_scales, total_calls=10, settings=Settings(**more))


def test_ngms_leaves_out_every_second_negative_half_below_its_sigma():
    rows: list[int] = []

    def counted(latents, level, given):
        rows.append(len(latents))
        return latents

    guided = GuidedDenoiser(counted, [conditioning(3.0, 1.0)], steering(7.0, s_min_uncond=2.0))
    for sigma in (3.0, 3.0, 1.0, 1.0, 1.0):
        guided(torch.zeros(1, 1, 1, 1), torch.tensor(sigma))
    assert rows == [2, 2, 2, 1, 2]


def test_each_image_is_guided_by_its_own_scale():
    guided = GuidedDenoiser(context_mean, [conditioning(3.0, 1.0), conditioning(5.0, 2.0)], steering(7.0, 2.0))
    assert guided(torch.zeros(2, 1, 1, 1), torch.tensor(1.0)).flatten().tolist() == pytest.approx(
        [1 + 7 * 2, 2 + 2 * 3]
    )


def test_composition_adds_its_weighted_parts():
    guided = GuidedDenoiser(context_mean, [conditioning(3.0, 4.0, 1.0)], steering(2.0))
    assert guided(torch.zeros(1, 1, 1, 1), torch.tensor(1.0)).item() == pytest.approx(1 + 2 * (2 + 3))


def test_h7_unconditional_half_is_left_out_where_nothing_is_guided():
    rows: list[int] = []

    def counted(latents, level, given):
        rows.append(len(latents))
        return latents

    GuidedDenoiser(counted, [conditioning(3.0, 1.0)], steering(1.0))(torch.zeros(1, 1, 1, 1), torch.tensor(1.0))
    GuidedDenoiser(counted, [conditioning(3.0, 1.0)], steering(2.0))(torch.zeros(1, 1, 1, 1), torch.tensor(1.0))
    assert rows == [1, 2]


# --- recorded numbers ------------------------------------------------------------------------------------------------


@needs_recordings
def test_recorded_sigmas_are_met(levels):
    for key, expected in internals("schedules.json")["sigmas"].items():
        sampler, schedule, steps = key.split(" | ")
        assert sigmas(levels, sampler, schedule, int(steps)).tolist() == pytest.approx(expected, rel=2e-5, abs=1e-6), (
            key
        )


@needs_recordings
def test_recorded_timesteps_are_met(levels):
    for key, expected in internals("schedules.json")["timesteps"].items():
        assert timesteps_for(int(key.split(" | ")[1])).tolist() == expected, key
    lcm = LcmNoiseLevels(levels.alphas_cumprod)
    for key, expected in internals("schedules.json")["lcm_sigmas"].items():
        found = sigmas_for(SAMPLERS_BY_NAME["LCM"], schedule_named(None), int(key.split(" | ")[1]), lcm)
        assert found.tolist() == pytest.approx(expected, rel=2e-5), key


@needs_recordings
@pytest.mark.parametrize(
    ("changes", "shape", "draws"),
    [
        ({}, SHAPE, ["first", "second", "third"]),
        ({"subseed": 42, "subseed_strength": 0.3}, SHAPE, ["subseed"]),
        ({"seed_resize_from_w": 64, "seed_resize_from_h": 96}, (4, 16, 16), ["resize"]),
        ({"ensd": 31337}, SHAPE, ["ensd_first", "ensd_second"]),
    ],
    ids=["draws", "subseed", "resize", "ensd"],
)
def test_recorded_noise_is_met(recipe_of, changes, shape, draws):
    recorded = numbers("noise.npz")
    noise = PassNoise([recipe_of(seed=1000, **changes)], shape)
    found = [noise.first, *[noise.next_draw() for _ in draws[1:]]]
    for name, draw in zip(draws, found, strict=True):
        np.testing.assert_allclose(draw[0].numpy(), recorded[f"CPU_{name}"][0], atol=1e-6, err_msg=name)


@needs_recordings
def test_recorded_brownian_noise_is_met(recipe_of):
    recorded = numbers("noise.npz")
    visits = torch.tensor([14.6, 0.03, 0.0])
    noise = PassNoise([recipe_of(seed=1000), recipe_of(seed=1001)], SHAPE).brownian(visits, torch.device("cpu"))
    for name, way in (("14.6_5", (14.6, 5.0)), ("5_1", (5.0, 1.0))):
        found = noise(*map(torch.tensor, way)).numpy()
        np.testing.assert_allclose(found, recorded[f"CPU_brownian_{name}"], atol=1e-6, err_msg=name)


def test_masks_are_filled_with_noise_of_the_fill_seed(recipe_of):
    own, other = PassNoise([recipe_of(seed=5, fill_seed=3)], SHAPE), PassNoise([recipe_of(seed=3)], SHAPE)
    assert torch.equal(own.fill, other.first)
    assert torch.equal(own.first, PassNoise([recipe_of(seed=5)], SHAPE).first)
