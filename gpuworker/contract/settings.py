"""The options of A1111 that take part in a picture, as one frozen record under A1111's own names. Standard library only.

An option belongs here when two values of it can give two pictures. Options about files, pages and speed do not. Fields of a request
that are no options (steps, seed, …) are in ``recipe``.

Source: ``modules/shared_options.py`` of A1111 1.10.1; defaults as its API reports them, whole numbers as whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Defaults are neutral; an infotext names what differs from them."""

    # Noise and sigmas.
    randn_source: str = "GPU"
    """``GPU`` and ``CPU`` draw from torch's generator on the CPU, ``NV`` from NumPy's Philox as a card would."""
    sigma_min: float = 0.0
    """0 is the model's own, as for the next two."""
    sigma_max: float = 0.0
    rho: float = 0.0
    always_discard_next_to_last_sigma: bool = False
    sgm_noise_multiplier: bool = False
    sd_noise_schedule: str = "Default"
    """``Default`` or ``Zero Terminal SNR``."""
    use_downcasted_alpha_bar: bool = False
    use_old_karras_scheduler_sigmas: bool = False
    no_dpmpp_sde_batch_determinism: bool = False
    enable_quantization: bool = False
    beta_dist_alpha: float = 0.6
    beta_dist_beta: float = 0.6
    s_churn: float = 0.0
    """Where these four are not neutral, they win over the request's fields of their names, and the infotext names them."""
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    s_noise: float = 1.0
    uni_pc_variant: str = "bh1"
    uni_pc_skip_type: str = "time_uniform"
    uni_pc_order: int = 3
    uni_pc_lower_order_final: bool = True
    # Guidance and prompts.
    s_min_uncond: float = 0.0
    """Below this sigma every second unconditional row is left out."""
    s_min_uncond_all: bool = False
    skip_early_cond: float = 0.0
    pad_cond_uncond: bool = False
    pad_cond_uncond_v0: bool = False
    comma_padding_backtrack: int = 20
    use_old_scheduling: bool = False
    token_merging_ratio: float = 0.0
    token_merging_ratio_img2img: float = 0.0
    token_merging_ratio_hr: float = 0.0
    # SDXL and its refiner.
    sdxl_clip_l_skip: bool = False
    sdxl_crop_top: int = 0
    sdxl_crop_left: int = 0
    sdxl_refiner_low_aesthetic_score: float = 2.5
    sdxl_refiner_high_aesthetic_score: float = 6.0
    refiner_switch_by_sample_steps: bool = False
    hires_fix_refiner_pass: str = "second pass"
    """``first pass``, ``second pass`` or ``both passes``."""
    use_old_hires_fix_width_height: bool = False
    # Pictures as input.
    img2img_fix_steps: bool = False
    img2img_extra_noise: float = 0.0
    img2img_color_correction: bool = False
    img2img_background_color: str = "#ffffff"
    upscaler_for_img2img: str = "None"
    overlay_inpaint: bool = True
    inpainting_mask_weight: float = 1.0
    ESRGAN_tile: int = 192
    ESRGAN_tile_overlap: int = 8
    # Which pictures come back beside the rendered one.
    return_mask: bool = False
    return_mask_composite: bool = False

    def to_json(self) -> dict[str, Any]:
        """What differs from the defaults."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


SETTINGS = {field.name: field.default for field in fields(Settings)}
"""Option → default; the default's type is the option's."""
