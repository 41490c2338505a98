"""The names of A1111's samplers and schedules, as data, and how a request's two names become one sampler and one schedule.

Both sides read this: the web side lists and resolves names and writes infotexts, the engine looks up its solvers by the same
names. Nothing here may compute a sigma or import more than the standard library.

Source: answers of ``GET /sdapi/v1/samplers`` and ``/schedulers`` of A1111 1.10.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

AUTOMATIC = "Automatic"


class UnknownSamplerError(ValueError):
    """No sampler has this name; raised in strict mode only."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Sampler {name!r} is not known.")
        self.name = name


@dataclass(frozen=True, slots=True)
class SamplerInfo:
    """One row of A1111's sampler list."""

    name: str
    aliases: tuple[str, ...]
    options: dict[str, str] = field(default_factory=dict)
    """As the API lists them: strings, in A1111's order."""
    uses_sigmas: bool = True
    """False for the samplers that walk over timesteps; schedules do not apply to those."""
    implemented: bool = True

    @property
    def default_schedule(self) -> str | None:
        """Name (not label) of what ``Automatic`` means; None is the model's own sigmas."""
        return self.options.get("scheduler")

    @property
    def second_order(self) -> bool:
        """Two denoiser calls per step: prompt editing counts calls."""
        return "second_order" in self.options

    @property
    def uses_ensd(self) -> bool:
        return "uses_ensd" in self.options

    @property
    def brownian(self) -> bool:
        return "brownian_noise" in self.options

    @property
    def discard_next_to_last(self) -> bool:
        return "discard_next_to_last_sigma" in self.options


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """One row of A1111's scheduler list."""

    name: str
    label: str
    aliases: tuple[str, ...] | None = None
    default_rho: float = -1.0
    need_inner_model: bool = False

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.label, self.name, *(self.aliases or ()))


@dataclass(frozen=True, slots=True)
class ResolvedSampler:
    """What a request's sampler and scheduler names come to."""

    sampler: SamplerInfo
    schedule: ScheduleInfo
    """As asked for: ``Automatic`` stays ``Automatic``."""

    @property
    def effective_schedule(self) -> ScheduleInfo:
        """What ``Automatic`` means here; still ``Automatic`` when the sampler has no default of its own."""
        return effective_schedule(self.sampler, self.schedule)

    @property
    def schedule_label_for_infotext(self) -> str:
        """``Karras`` for an automatic DPM++ 2M, ``Automatic`` for an automatic Euler; timestep samplers repeat the request."""
        return self.effective_schedule.label


def _options(**values: str | bool) -> dict[str, str]:
    return {key: str(value) for key, value in values.items()}


SAMPLERS: tuple[SamplerInfo, ...] = (
    SamplerInfo("DPM++ 2M", ("k_dpmpp_2m",), _options(scheduler="karras")),
    SamplerInfo("DPM++ SDE", ("k_dpmpp_sde",), _options(scheduler="karras", second_order=True, brownian_noise=True)),
    SamplerInfo("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), _options(scheduler="exponential", brownian_noise=True)),
    SamplerInfo(
        "DPM++ 2M SDE Heun",
        ("k_dpmpp_2m_sde_heun",),
        _options(scheduler="exponential", brownian_noise=True, solver_type="heun"),
    ),
    SamplerInfo("DPM++ 2S a", ("k_dpmpp_2s_a",), _options(scheduler="karras", uses_ensd=True, second_order=True)),
    SamplerInfo(
        "DPM++ 3M SDE",
        ("k_dpmpp_3m_sde",),
        _options(scheduler="exponential", discard_next_to_last_sigma=True, brownian_noise=True),
    ),
    SamplerInfo("Euler a", ("k_euler_a", "k_euler_ancestral"), _options(uses_ensd=True)),
    SamplerInfo("Euler", ("k_euler",)),
    SamplerInfo("LMS", ("k_lms",)),
    SamplerInfo("Heun", ("k_heun",), _options(second_order=True)),
    SamplerInfo("DPM2", ("k_dpm_2",), _options(scheduler="karras", discard_next_to_last_sigma=True, second_order=True)),
    SamplerInfo(
        "DPM2 a",
        ("k_dpm_2_a",),
        _options(scheduler="karras", discard_next_to_last_sigma=True, uses_ensd=True, second_order=True),
    ),
    SamplerInfo("DPM fast", ("k_dpm_fast",), _options(uses_ensd=True)),
    SamplerInfo("DPM adaptive", ("k_dpm_ad",), _options(uses_ensd=True)),
    SamplerInfo("Restart", ("restart",), _options(scheduler="karras", second_order=True)),
    SamplerInfo("DDIM", ("ddim",), uses_sigmas=False),
    SamplerInfo("DDIM CFG++", ("ddim_cfgpp",), uses_sigmas=False),
    SamplerInfo("PLMS", ("plms",), uses_sigmas=False),
    SamplerInfo("UniPC", ("unipc",), uses_sigmas=False),
    SamplerInfo("LCM", ("k_lcm",)),
)

SCHEDULES: tuple[ScheduleInfo, ...] = (
    ScheduleInfo("automatic", AUTOMATIC),
    ScheduleInfo("uniform", "Uniform", need_inner_model=True),
    ScheduleInfo("karras", "Karras", default_rho=7.0),
    ScheduleInfo("exponential", "Exponential"),
    ScheduleInfo("polyexponential", "Polyexponential", default_rho=1.0),
    ScheduleInfo("sgm_uniform", "SGM Uniform", ("SGMUniform",), need_inner_model=True),
    ScheduleInfo("kl_optimal", "KL Optimal"),
    ScheduleInfo("align_your_steps", "Align Your Steps"),
    ScheduleInfo("simple", "Simple", need_inner_model=True),
    ScheduleInfo("normal", "Normal", need_inner_model=True),
    ScheduleInfo("ddim", "DDIM", need_inner_model=True),
    ScheduleInfo("beta", "Beta", need_inner_model=True),
)

FALLBACK_SAMPLER = SAMPLERS[0]
"""What A1111 runs for a name it does not know."""

SAMPLERS_BY_NAME = {info.name: info for info in SAMPLERS}
_SCHEDULES_BY_SPELLING = {spelling: info for info in SCHEDULES for spelling in info.spellings}
_SUFFIXES = sorted(_SCHEDULES_BY_SPELLING, key=len, reverse=True)


def schedule_named(name: str | None) -> ScheduleInfo:
    """The schedule of this name, label or alias; ``Automatic`` for anything else, as A1111 does."""
    return _SCHEDULES_BY_SPELLING.get(name or AUTOMATIC, SCHEDULES[0])


def effective_schedule(sampler: SamplerInfo, schedule: ScheduleInfo) -> ScheduleInfo:
    """Replace ``Automatic`` by the sampler's own default, where it has one."""
    if schedule.label != AUTOMATIC or sampler.default_schedule is None:
        return schedule
    return schedule_named(sampler.default_schedule)


def resolve_sampler(sampler_name: str, scheduler: str | None, *, strict: bool = False) -> ResolvedSampler:
    """Resolve names as A1111 does, schedule suffixes of the sampler name included (``DPM++ 2M Karras``).

    A scheduler that is asked for by itself wins over the suffix. Of several suffixes the longest is cut, so ``Euler SGM Uniform``
    is Euler with SGM Uniform (A1111 cuts ``Uniform`` first and then fails to find the sampler).

    Raises:
        UnknownSamplerError: ``strict`` and no such sampler; otherwise such a name runs as DPM++ 2M.
    """
    bare, suffix = _split_suffix(sampler_name)
    sampler = SAMPLERS_BY_NAME.get(bare)
    if sampler is None:
        if strict:
            raise UnknownSamplerError(sampler_name)
        sampler = FALLBACK_SAMPLER
    return ResolvedSampler(sampler=sampler, schedule=schedule_named(scheduler or suffix))


def _split_suffix(sampler_name: str) -> tuple[str, str | None]:
    for suffix in _SUFFIXES:
        if sampler_name.endswith(" " + suffix):
            return sampler_name.removesuffix(" " + suffix), suffix
    return sampler_name, None
