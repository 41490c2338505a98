"""The recipe of one image: every parameter resolved, seed and weights included. Two images with one recipe are one picture.

Three kinds: ``Recipe`` draws a picture, ``ExtrasRecipe`` enlarges one, ``DetectRecipe`` makes the control map of one. Everything
here is plain data that survives JSON; nothing is looked up or computed but what follows from the fields alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from gpuworker.contract.settings import Settings

LATENT_FACTOR = 8
"""Pixels per latent along a side, of every VAE this product renders with."""
EXACT_ROWS = 16
"""Rows of every network call in exact mode: eight pictures with their negative halves."""
LATENT_MODES: dict[str, tuple[str, bool]] = {
    "Latent": ("bilinear", False),
    "Latent (antialiased)": ("bilinear", True),
    "Latent (bicubic)": ("bicubic", False),
    "Latent (bicubic antialiased)": ("bicubic", True),
    "Latent (nearest)": ("nearest", False),
    "Latent (nearest-exact)": ("nearest-exact", False),
}
"""A1111's latent upscale mode → interpolation, antialiased."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A file of weights, pinned when the job was accepted."""

    name: str
    """The stem, as infotexts show it."""
    sha256: str
    """Of the file that is opened; empty in a request, which names files and pins none."""
    shown_hash: str = ""
    """What people know it by, where that is another than the first ten digits: a converted file keeps its original's."""
    input_channels: int = 4
    """Of a checkpoint: 9 paints into a picture, 8 edits one."""

    @property
    def short_hash(self) -> str:
        return self.shown_hash or self.sha256[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputPicture:
    """A picture the caller sent: the hash of its stored bytes, and its size, so that a pass is planned without opening it."""

    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkUse:
    """A LoRA (any LyCORIS kind) or hypernetwork that a prompt's tag switches on."""

    kind: str
    """``lora`` or ``hypernet``."""
    weights: Weights
    te: float = 1.0
    unet: float = 1.0
    dyn: int | None = None
    """Only so many of its ranks."""
    listed_hash: str = ""
    """The twelve digits infotexts show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingUse:
    """A textual inversion embedding whose name occurs in a prompt."""

    weights: Weights
    listed_hash: str = ""
    encoders: int = 1
    """How many text encoders it has vectors for: 2 for SDXL."""
    inside: str = ""
    """The LoRA whose file it comes in, as the prompt's tag calls it; ``weights`` has then the file's hash and its own name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """The prompts of one image, where the images of a job have their own."""

    prompt: str
    negative_prompt: str
    hires_prompt: str = ""
    """Empty is as in the first pass; so is the next."""
    hires_negative_prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refiner:
    checkpoint: Weights
    switch_at: float | None = None
    """Fraction of the noise range; None switches at the first step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hires:
    """The second pass. What is empty or None is as in the first."""

    scale: float = 2.0
    """Counts when both ``resize_`` are 0."""
    resize_x: int = 0
    resize_y: int = 0
    upscaler: str | None = None
    """A latent mode or the name of an upscaler; None is ``Latent``."""
    upscaler_weights: Weights | None = None
    steps: int = 0
    sampler: str | None = None
    schedule: str | None = None
    prompt: str = ""
    negative_prompt: str = ""
    checkpoint: Weights | None = None
    networks: tuple[NetworkUse, ...] | None = None
    """What the hires prompt's own tags switch on; None is as in the first pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SoftInpainting:
    """A1111's always-on script of that name."""

    power: float = 1.0
    scale: float = 0.5
    detail: float = 4.0
    mask_influence: float = 0.0
    difference_threshold: float = 0.5
    difference_contrast: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Inpaint:
    """What of the picture is drawn anew: where the mask is white."""

    mask: InputPicture
    blur_x: int = 4
    """Standard deviation in pixels."""
    blur_y: int = 4
    round: bool = True
    fill: int = 0
    """0 fill, 1 original, 2 latent noise, 3 latent nothing."""
    full_res: bool = True
    """Render only the masked part, at full size."""
    padding: int = 0
    invert: bool = False
    soft: SoftInpainting | None = None
    latent_mask: InputPicture | None = None
    """What is drawn anew, where that is less than ``mask``, which then says only what is laid over the result."""

    def inputs(self) -> Iterator[InputPicture]:
        yield from (picture for picture in (self.mask, self.latent_mask) if picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconstruction:
    """Noise that leads to the picture one begins with, in place of random noise: A1111's ``img2img alternative test``."""

    prompt: str
    """What the picture shows; as it is, network tags and all."""
    negative_prompt: str
    cfg_scale: float
    steps: int
    randomness: float = 0.0
    """Share of random noise mixed into it."""
    sigma_adjustment: bool = False
    """Take each step at the noise level it comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Img2Img:
    picture: InputPicture
    resize_mode: int = 0
    """0 stretch, 1 crop, 2 fill, 3 latent."""
    inpaint: Inpaint | None = None
    image_cfg_scale: float | None = None
    """For instruct-pix2pix checkpoints."""
    noise_multiplier: float = 1.0
    upscaler: Weights | None = None
    """The weights of ``Settings.upscaler_for_img2img``, where it has any."""
    reconstruction: Reconstruction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlUnit:
    """One unit of ControlNet that takes part; field names and words are those of sd-webui-controlnet 1.1.455."""

    module: str = "none"
    """What makes the map of the picture: a name or label of ``control_modules``, as infotexts show it."""
    model: str = "None"
    """The network as the caller wrote it, which is how infotexts show it."""
    weights: Weights | None = None
    """None where that is not known, and for modules that need no network (``reference_only`` …)."""
    picture: InputPicture | None = None
    """None takes the picture of img2img."""
    mask: InputPicture | None = None
    """What of the picture is drawn anew, for inpainting modules."""
    effective_region_mask: InputPicture | None = None
    """Where the unit acts."""
    weight: float = 1.0
    resize_mode: str = "Crop and Resize"
    """``Just Resize``, ``Crop and Resize`` or ``Resize and Fill``."""
    processor_res: float = 512
    """Short side in pixels that the module works at; its default where it takes none."""
    threshold_a: float = 0.5
    threshold_b: float = 0.5
    guidance_start: float = 0.0
    """Share of the steps, both ends included."""
    guidance_end: float = 1.0
    pixel_perfect: bool = False
    """The module works at the canvas' own resolution."""
    control_mode: str = "Balanced"
    """``Balanced``, ``My prompt is more important`` or ``ControlNet is more important``."""
    hr_option: str = "Both"
    """``Both``, ``Low res only`` or ``High res only``."""
    inpaint_crop_input_image: bool = True
    """Cut the picture as inpainting "only masked" cuts its own."""
    advanced_weighting: tuple[float, ...] | None = None
    """A factor per residual; None follows ``control_mode``."""
    save_detected_map: bool = True

    def inputs(self) -> Iterator[InputPicture]:
        yield from (picture for picture in (self.picture, self.mask, self.effective_region_mask) if picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetyCheck:
    """What looks at the finished picture, and what becomes of one that it catches."""

    weights: Weights
    mode: str
    """``blur`` or ``refuse``, as in ``safety``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A picture to draw. Field names are A1111's where A1111 has one; units are pixels and steps."""

    prompt: str
    """Styles applied, comments removed, network tags still in it."""
    negative_prompt: str
    seed: int
    """Resolved: -1 was replaced when the recipe was made."""
    subseed: int
    subseed_strength: float = 0.0
    seed_resize_from_w: int = -1
    seed_resize_from_h: int = -1
    sampler: str
    """A1111 sampler name without a schedule suffix, e.g. ``DPM++ 2M``."""
    schedule: str = "Automatic"
    """A1111 scheduler label as asked for; ``Automatic`` is the sampler's own default."""
    steps: int
    cfg_scale: float
    width: int
    """As asked for; the picture's side is this rounded down to a multiple of 8."""
    height: int
    clip_skip: int = 1
    eta: float | None = None
    """None is the sampler family's default: 1.0 for ancestral and SDE samplers, 0.0 for DDIM."""
    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = 0.0
    """0 means infinity."""
    s_noise: float = 1.0
    ensd: int = 0
    """eta noise seed delta: added to the seed after the first noise draw."""
    emphasis: str = "Original"
    """``Original``, ``No norm``, ``Ignore`` or ``None``."""
    tiling: bool = False
    denoising_strength: float | None = None
    """Of img2img and of the hires pass; None is 0.75."""
    checkpoint: Weights
    vae: Weights | None = None
    """None is the checkpoint's own."""
    networks: tuple[NetworkUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    refiner: Refiner | None = None
    hires: Hires | None = None
    img2img: Img2Img | None = None
    fill_seed: int | None = None
    """Of the noise that an inpainting mask is filled with, where it is not the image's own."""
    control: tuple[ControlUnit, ...] = ()
    notes: tuple[tuple[str, Any], ...] = ()
    """Infotext parameters of a script that asked for this picture."""
    exact: bool = False
    """Whatever is denoised beside it, the picture is the same to the last bit (on one device and build)."""
    safety: SafetyCheck | None = None
    settings: Settings = field(default_factory=Settings)

    kind: ClassVar[str] = "render"

    @property
    def strength(self) -> float:
        return 0.75 if self.denoising_strength is None else self.denoising_strength

    @property
    def pass_key(self) -> str:
        """Images of one pass key may be denoised together; prompt, seed, CFG scale and input picture may differ."""
        plain = self.to_json()
        shared = {name: value for name, value in plain.items() if name not in OWN_FIELDS}
        control = [_control_key(unit) for unit in plain["control"]]
        return _key(self.kind, [shared, _hires_key(plain), _img2img_key(plain), control])

    @property
    def inpaint(self) -> Inpaint | None:
        return self.img2img.inpaint if self.img2img else None

    @property
    def hires_steps(self) -> int:
        return (self.hires.steps if self.hires else 0) or self.steps

    def weights(self) -> Iterator[Weights]:
        """Every file this picture needs."""
        yield self.checkpoint
        yield from (use for use in (self.vae, self.refiner and self.refiner.checkpoint) if use)
        yield from (network.weights for network in self.networks)
        yield from (embedding.weights for embedding in self.embeddings if not embedding.inside)
        if self.hires:
            yield from (use for use in (self.hires.checkpoint, self.hires.upscaler_weights) if use)
            yield from (network.weights for network in self.hires.networks or ())
        if self.img2img and self.img2img.upscaler:
            yield self.img2img.upscaler
        yield from (unit.weights for unit in self.control if unit.weights)
        if self.safety:
            yield self.safety.weights

    def inputs(self) -> Iterator[InputPicture]:
        """Every picture of the caller's this one needs."""
        if self.img2img:
            yield self.img2img.picture
            if self.img2img.inpaint:
                yield from self.img2img.inpaint.inputs()
        for unit in self.control:
            yield from unit.inputs()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Recipe:
        return from_plain(cls, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtrasRecipe:
    """A picture to enlarge: A1111's extras."""

    picture: InputPicture
    resize_mode: int = 0
    """0 by factor, 1 to a size."""
    upscaling_resize: float = 2.0
    upscaling_resize_w: int = 512
    upscaling_resize_h: int = 512
    upscaling_crop: bool = True
    upscaler_1: str = "None"
    upscaler_1_weights: Weights | None = None
    upscaler_2: str = "None"
    upscaler_2_weights: Weights | None = None
    extras_upscaler_2_visibility: float = 0.0
    gfpgan_visibility: float = 0.0
    codeformer_visibility: float = 0.0
    codeformer_weight: float = 0.0
    settings: Settings = field(default_factory=Settings)

    kind: ClassVar[str] = "extras"

    @property
    def pass_key(self) -> str:
        """Pictures are enlarged one by one, so only what is done to them has to be the same."""
        return _key(self.kind, {**self.to_json(), "picture": None})

    def weights(self) -> Iterator[Weights]:
        yield from (use for use in (self.upscaler_1_weights, self.upscaler_2_weights) if use)

    def inputs(self) -> Iterator[InputPicture]:
        yield self.picture

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "settings": self.settings.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ExtrasRecipe:
        return from_plain(cls, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectRecipe:
    """A picture to make a control map of."""

    picture: InputPicture
    mask: InputPicture | None = None
    module: str = "none"
    processor_res: float = 512
    threshold_a: float = 0.5
    threshold_b: float = 0.5

    kind: ClassVar[str] = "detect"

    @property
    def pass_key(self) -> str:
        """Maps are made one by one, so only what makes them has to be the same."""
        return _key(self.kind, {**self.to_json(), "picture": None, "mask": None})

    def weights(self) -> Iterator[Weights]:
        yield from ()

    def inputs(self) -> Iterator[InputPicture]:
        yield from (picture for picture in (self.picture, self.mask) if picture)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DetectRecipe:
        return from_plain(cls, data)


AnyRecipe = Recipe | ExtrasRecipe | DetectRecipe

OWN_FIELDS = frozenset(
    {
        "prompt", "negative_prompt", "seed", "subseed", "subseed_strength", "seed_resize_from_w", "seed_resize_from_h",
        "cfg_scale", "ensd", "embeddings", "hires", "img2img", "fill_seed", "control", "notes",
    }
)  # fmt: skip
"""What may differ between the images of one pass; of ``hires``, ``img2img`` and ``control`` a part."""
_NESTED: dict[str, Any] = {
    "checkpoint": Weights, "vae": Weights, "weights": Weights, "upscaler_weights": Weights,
    "upscaler_1_weights": Weights, "upscaler_2_weights": Weights, "networks": (NetworkUse,), "embeddings": (EmbeddingUse,),
    "refiner": Refiner, "hires": Hires, "img2img": Img2Img, "inpaint": Inpaint, "soft": SoftInpainting,
    "reconstruction": Reconstruction,
    "settings": Settings, "picture": InputPicture, "mask": InputPicture, "latent_mask": InputPicture,
    "effective_region_mask": InputPicture,
    "control": (ControlUnit,), "more_pictures": (InputPicture,), "extras": ExtrasRecipe, "detect": (DetectRecipe,),
    "texts": (Texts,), "safety": SafetyCheck,
}  # fmt: skip
"""Field → class of its value, or a tuple of one class for a tuple of such values."""


def from_plain(cls: type[Any], data: Mapping[str, Any]) -> Any:
    """What ``asdict`` made, as the frozen record again; keys it does not know are left out."""
    known = {item.name for item in fields(cls)}
    return cls(**{name: _value(cls, name, value) for name, value in data.items() if name in known})


def _value(cls: type[Any], name: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        kind = _NESTED.get(name)
        kind = kind[0] if isinstance(kind, tuple) else kind
        return tuple(from_plain(kind, item) if kind else _frozen(item) for item in value)
    if isinstance(value, Mapping):
        if name == "notes":
            return dict(value)
        # The upscaler of an img2img is weights, the upscaler of a hires pass a name.
        return from_plain(Weights if name == "upscaler" else _NESTED[name], value)
    return value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _key(kind: str, shared: Any) -> str:
    return f"{kind} {json.dumps(shared, sort_keys=True)}"


def _hires_key(plain: Mapping[str, Any]) -> Any:
    hires = plain["hires"]
    return hires and {name: value for name, value in hires.items() if name not in ("prompt", "negative_prompt")}


def _img2img_key(plain: Mapping[str, Any]) -> Any:
    """Everything but the pixels: their size stays, because it decides how they are resized."""
    given = plain["img2img"]
    if not given:
        return None
    inpaint = given["inpaint"]
    if inpaint:
        latent_mask = inpaint["latent_mask"] and _size(inpaint["latent_mask"])
        inpaint = {**inpaint, "mask": _size(inpaint["mask"]), "latent_mask": latent_mask}
    return {**given, "picture": _size(given["picture"]), "inpaint": inpaint}


def _control_key(unit: Mapping[str, Any]) -> Any:
    return {**unit, **{name: unit[name] and _size(unit[name]) for name in ("picture", "mask", "effective_region_mask")}}


def _size(picture: Mapping[str, Any]) -> list[int]:
    return [picture["width"], picture["height"]]


def floored(pixels: float) -> int:
    """The side a picture really gets: a multiple of ``LATENT_FACTOR``."""
    return math.floor(pixels) // LATENT_FACTOR * LATENT_FACTOR


def map_size(recipe: DetectRecipe) -> tuple[int, int]:
    """The largest a control map may become: its picture with the short side at the module's resolution; pixels."""
    width, height = recipe.picture.width, recipe.picture.height
    factor = max(1.0, recipe.processor_res / min(width, height))
    return round(width * factor), round(height * factor)


def hires_size(width: int, height: int, hires: Hires) -> tuple[int, int]:
    """The size the first pass is enlarged to before it is cropped to ``hires_canvas``; pixels.

    Source: ``calculate_target_resolution`` of A1111 1.10.1.
    """
    if hires.resize_x == 0 and hires.resize_y == 0:
        return int(width * hires.scale), int(height * hires.scale)
    if hires.resize_y == 0:
        return hires.resize_x, hires.resize_x * height // width
    if hires.resize_x == 0:
        return hires.resize_y * width // height, hires.resize_y
    if width / height < hires.resize_x / hires.resize_y:
        return hires.resize_x, hires.resize_x * height // width
    return hires.resize_y * width // height, hires.resize_y


def hires_canvas(width: int, height: int, hires: Hires) -> tuple[int, int]:
    """The size of the finished picture; pixels, before it is floored to multiples of 8."""
    if hires.resize_x and hires.resize_y:
        return hires.resize_x, hires.resize_y
    return hires_size(width, height, hires)
