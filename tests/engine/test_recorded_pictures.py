"""Pictures A1111 made, made again: no value of any picture may be further than 1 of 255 from the recorded one."""

from __future__ import annotations

import numpy as np
import pytest

from gpuworker.contract import Rendered, RenderSpec
from gpuworker.engine import DiffusersRenderer
from tests.engine.recordings import checkpoint_file, needs_recordings, pictures_of, recipes_of

pytestmark = needs_recordings

PROMPTS = """alternation and and_batch_edit attention_weights break clip_skip_2 edit_nested emphasis_ignore emphasis_no_norm
    emphasis_none empty_prompt escapes long_both long_negative long_prompt multiline_prompt prompt_comment prompt_editing
    prompt_editing_steps styles styles_wrap_multi unicode_prompt"""
SAMPLERS = """sampler_ddim sampler_ddim_cfgpp sampler_dpm2 sampler_dpm2_a sampler_dpm_adaptive sampler_dpm_fast
    sampler_dpmpp_2m_karras sampler_dpmpp_2m_legacy_name sampler_dpmpp_2m_sde sampler_dpmpp_2m_sde_heun
    sampler_dpmpp_2m_sde_karras sampler_dpmpp_2s_a sampler_dpmpp_3m_sde sampler_dpmpp_sde_karras sampler_euler sampler_euler_a
    sampler_heun sampler_lcm sampler_lms sampler_plms sampler_restart sampler_unipc eta_ddim_08 eta_euler_a_05 eta_options
    s_churn_euler s_churn_options"""
SCHEDULES = """sched_euler_align_your_steps sched_euler_beta sched_euler_ddim sched_euler_exponential sched_euler_karras
    sched_euler_kl_optimal sched_euler_normal sched_euler_polyexponential sched_euler_sgm_uniform sched_euler_simple
    sched_euler_uniform"""
IMAGES = """batch2_dpmpp_2m_sde batch_grid_2x2 batch_grid_3_save_images batch_sde_2x2 cfg_1 cfg_15 cfg_float ensd minimal
    nonsquare odd_size_136x104 override_checkpoint rng_gpu_same_seed seed_0 seed_resize seed_resize_larger subseed
    subseed_batch tiling"""
CASES = [case for group in (PROMPTS, SAMPLERS, SCHEDULES, IMAGES) for case in group.split()]


@pytest.fixture(scope="module")
def recorded_renderer() -> DiffusersRenderer:
    return DiffusersRenderer()


@pytest.mark.parametrize("case", CASES)
def test_recorded_picture_is_met(recorded_renderer, case):
    checkpoint = checkpoint_file("tiny-sd15-b" if case == "override_checkpoint" else "tiny-sd15")
    spec = RenderSpec(tuple(recipes_of(case, checkpoint)), checkpoint)
    outcomes = list(recorded_renderer.render(spec, on_step=lambda *_: None, should_stop=lambda: False))
    for outcome, recorded in zip(outcomes, pictures_of(case), strict=True):
        assert isinstance(outcome, Rendered), outcome
        found = np.frombuffer(outcome.rgb, np.uint8).reshape(recorded.shape).astype(np.int16)
        assert np.abs(found - recorded).max() <= 1
