"""What every selectable script is made of: the requests it asks for, and the answer it makes of their pictures. Pure; PIL only.

A script is a generator. It yields steps, each a tuple of ordinary requests (``Cell``) that do not depend on one another, gets
back what was drawn, and returns its ``Answer``. ``advance`` runs it over the steps that are done, so what must be kept of a job
between two steps is the request, the random seed and the stored pictures; nothing here holds a state of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from PIL import Image

from gpuworker.contract import Reconstruction
from gpuworker.contract.samplers import resolve_sampler
from renderjobs.compat.sdapi.infotext import VERSION, pair

RANDOM_SEEDS = 4294967294
"""A1111 draws a seed below this number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One ordinary request of n_iter × batch_size pictures: what of the caller's request is another. See ``request_of``."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    """Wire field → value; pictures apart."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Over the caller's ``override_settings``."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Infotext parameters of the script's own; they stand before those that the run itself reports."""
    init_images: tuple[Image.Image, ...] = ()
    """In place of the caller's; empty keeps those."""
    mask: Image.Image | None = None
    latent_mask: Image.Image | None = None
    """What is drawn anew, where that is less than ``mask``, which then says only what is laid over the result."""
    reconstruction: Reconstruction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Enlargement:
    """A picture to enlarge by a factor, as an extras call does it; one picture comes back."""

    picture: Image.Image
    upscaler: str
    scale: float


Step = tuple[Cell | Enlargement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """What became of one cell. The sequences may be lazy; they are short where pictures failed or the job was interrupted."""

    pictures: Sequence[Image.Image]
    infotexts: Sequence[str] = ()
    prompts: Sequence[str] = ()
    """Styles applied, one per picture asked for; so are the next three."""
    negative_prompts: Sequence[str] = ()
    seeds: Sequence[int] = ()
    subseeds: Sequence[int] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    """``extra_generation_params`` with the cell's notes and what it inherited."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A stored picture of the answer. Cells count over all steps, enlargements among them."""

    cell: int
    number: int | None = None
    """None: all files of the cell, as an ordinary answer shows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The pictures in A1111's order and what ``info`` says of them."""

    shown: tuple[Shown | Image.Image, ...]
    info: Mapping[str, Any]
    """Entries of ``info`` that the script decides; the rest describes the request of ``described``."""
    described: int | None
    """A cell; None is the caller's request itself."""


Run = Generator[Step, tuple[Drawn, ...], Answer]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a script reads of the installation."""

    options: Mapping[str, Any]
    """Of the installation: ``override_settings`` are not yet in force when a script runs."""
    checkpoint: Callable[[str], str | None] = lambda name: name
    """The name a checkpoint is known by, from a name, title or hash."""
    vaes: Sequence[str] = ()
    upscalers: Sequence[str] = ("None", "Lanczos", "Nearest")
    """In the order of ``GET /upscalers``."""
    picture: Callable[[str], Image.Image] | None = None
    """Opens a picture of the request."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A script with its arguments, about to run."""

    title: str
    """As infotexts write it."""
    images_total: int
    """Pictures that will be drawn over all steps, enlargements not counted."""
    start: Callable[[], Run]
    shares_notes: bool = False
    """Later cells inherit what earlier ones reported: see ``inherited``."""

    @property
    def cells(self) -> Step:
        """The requests of the first step; of most scripts there is no other."""
        step = advance(self, [])
        return () if isinstance(step, Answer) else step


def advance(plan: Plan, done: Iterable[Sequence[Drawn]]) -> Step | Answer:
    """The step that follows those done, or the answer after the last one."""
    run = plan.start()
    try:
        step = next(run)
        for drawn in done:
            step = run.send(tuple(drawn))
    except StopIteration as end:
        return end.value
    return step


def request_of(values: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """The wire values of a cell's own request; the pictures it brings stand in the cell."""
    own = {**values, **cell.changes, "script_name": None, "script_args": []}
    if not cell.changes.keys().isdisjoint(("sampler_name", "scheduler")):
        # The sampler's name may carry a schedule, which was taken off before the script ran.
        asked = resolve_sampler(values["sampler_name"] or values["sampler_index"], values["scheduler"])
        own |= {"sampler_name": asked.sampler.name, "scheduler": asked.schedule.label, **cell.changes}
    if cell.options:
        own["override_settings"] = {**(values["override_settings"] or {}), **cell.options}
        # What hosted webuis take in other places would win over the option.
        own["alwayson_scripts"] = {
            name: script for name, script in values["alwayson_scripts"].items() if str(name).lower() not in cell.options
        }
    if "sd_model_checkpoint" in cell.options:
        own["sd_model_checkpoint"] = None
    return own


def inherited(extras: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What each cell's infotext repeats of the cells before it.

    QUIRK(A1111 1.10): a script copies the request without its table of infotext parameters, so all cells write into one. A DDIM
    cell after a DPM++ 2M one says ``Schedule type: Karras``.

    Args:
        extras: ``extra_generation_params`` of each cell by itself, in the order of the cells.
    """
    table: dict[str, Any] = {}
    before = []
    for extra in extras:
        before.append(dict(table))
        table.update(extra)
    return before


def together(drawn: Iterable[Drawn]) -> dict[str, Any]:
    """The one table of infotext parameters after all cells."""
    table: dict[str, Any] = {}
    for cell in drawn:
        table.update(cell.extra)
    return table


def extended(infotext: str | None, parameters: Mapping[str, Any]) -> str | None:
    """An infotext with more parameters at their place, before the version."""
    if infotext is None:
        return None
    added = "".join(f", {pair(key, str(value))}" for key, value in parameters.items() if value is not None)
    before, version, after = infotext.rpartition(f", Version: {VERSION}")
    return f"{before}{added}{version}{after}" if version else f"{infotext}{added}"


def fixed_seed(seed: Any, random: Random) -> int:
    """A1111's ``fix_seed``: a random one in place of -1."""
    return random.randrange(RANDOM_SEEDS) if seed in (None, "", -1) else int(seed)


def fixed_seeds(values: Mapping[str, Any], random: Random) -> dict[str, int]:
    """Both seeds of a request, resolved once for all cells."""
    return {name: fixed_seed(values[name], random) for name in ("seed", "subseed")}


def never_run(values: Mapping[str, Any], infotexts: Sequence[str | None]) -> dict[str, Any]:
    """What A1111 says of a request that was only copied and never rendered itself: it does not know its own checkpoint."""
    return {
        "prompt": values["prompt"],
        "all_prompts": [values["prompt"]],
        "negative_prompt": values["negative_prompt"],
        "all_negative_prompts": [values["negative_prompt"]],
        "seed": -1,
        "all_seeds": [-1],
        "subseed": -1,
        "all_subseeds": [-1],
        "width": values["width"],
        "height": values["height"],
        "sampler_name": resolve_sampler(
            values["sampler_name"] or values["sampler_index"], values["scheduler"]
        ).sampler.name,
        "cfg_scale": values["cfg_scale"],
        "steps": values["steps"],
        "batch_size": values["batch_size"],
        "restore_faces": values["restore_faces"],
        "sd_model_name": None,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": list(infotexts),
    }


def pictures_per_cell(values: Mapping[str, Any]) -> int:
    return max(1, values["n_iter"]) * max(1, values["batch_size"])


def first_of(items: Sequence[Any]) -> Any:
    return items[0] if items else None
