"""The modules of ControlNet as data: names, labels, sliders, the control types they belong to. Standard library only.

Both sides read this: the web side checks units and answers lists, the engine knows which modules there are. Which of them have a
function is in ``AVAILABLE``; the others need weights of their own, which this product does not carry.

Source: answers of ``GET /controlnet/module_list`` and ``/control_types``, sd-webui-controlnet 1.1.455.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Slider:
    """A number a module takes."""

    name: str
    value: float
    """The default, also of whatever is out of range."""
    min: float
    max: float
    step: float

    def within(self, value: float) -> float:
        return value if self.min <= value <= self.max else self.value

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "min": self.min, "max": self.max, "step": self.step}


RESOLUTION = Slider("Resolution", 512, 64, 2048, 8)
UNUSED = Slider("EMPTY_LABEL", 0.5, 0.0, 1.0, 0.01)
"""What stands where a module takes no number; its values are checked all the same."""
FIXED_RESOLUTION = {"shuffle": Slider("Resolution", 512, 0.0, 1.0, 0.01)}
"""Of modules without a slider for it that work at one resolution."""


@dataclass(frozen=True, slots=True)
class ControlModule:
    name: str
    label: str = ""
    """As pages show it; empty is the name."""
    types: tuple[str, ...] = ()
    resolution: Slider | None = RESOLUTION
    """None shows none."""
    sliders: tuple[Slider, ...] = ()
    """Of thresholds A and B."""
    model_free: bool = False
    """Needs no ControlNet."""

    @property
    def shown_name(self) -> str:
        return self.label or self.name

    @property
    def shown_sliders(self) -> tuple[Slider, ...]:
        return ((self.resolution,) if self.resolution else ()) + self.sliders

    @property
    def requires_mask(self) -> bool:
        return "inpaint" in self.name

    def values(self, resolution: float, threshold_a: float, threshold_b: float) -> tuple[float, float, float]:
        """The three numbers a unit is run with: what is out of range is the default, without a word."""
        of_resolution = self.resolution or FIXED_RESOLUTION.get(self.name, UNUSED)
        of_a, of_b = (*self.sliders, UNUSED, UNUSED)[:2]
        return of_resolution.within(resolution), of_a.within(threshold_a), of_b.within(threshold_b)


MODULES: tuple[ControlModule, ...] = (
    ControlModule("none", types=("InstructP2P",)),
    ControlModule("ip-adapter-auto", types=("IP-Adapter",)),
    ControlModule("tile_resample", types=("Tile",), sliders=(Slider("Down Sampling Rate", 1.0, 1.0, 8.0, 0.01),)),
    ControlModule("pidinet", label="softedge_pidinet", types=("SoftEdge",)),
    ControlModule("oneformer_ade20k", label="seg_ofade20k", types=("Segmentation",)),
    ControlModule(
        "pidinet_scribble",
        label="scribble_pidinet",
        types=(
            "Scribble",
            "SparseCtrl",
        ),
    ),
    ControlModule(
        "revision_clipvision",
        types=("Revision",),
        sliders=(Slider("Noise Augmentation", 0.0, 0.0, 1.0, 0.01),),
        model_free=True,
    ),
    ControlModule(
        "reference_only",
        types=("Reference",),
        sliders=(Slider("Style Fidelity (only for Balanced mode)", 0.5, 0.0, 1.0, 0.01),),
        model_free=True,
    ),
    ControlModule("recolor_luminance", types=("Recolor",), sliders=(Slider("Gamma Correction", 1.0, 0.1, 2.0, 0.001),)),
    ControlModule("openpose_full", types=("OpenPose",)),
    ControlModule("normal_bae", types=("NormalMap",)),
    ControlModule(
        "mlsd",
        types=("MLSD",),
        sliders=(
            Slider("MLSD Value Threshold", 0.1, 0.01, 2.0, 0.01),
            Slider("MLSD Distance Threshold", 0.1, 0.01, 20.0, 0.01),
        ),
    ),
    ControlModule("lineart_standard", label="lineart_standard (from white bg & black line)", types=("Lineart",)),
    ControlModule("ip-adapter_clip_sd15", label="ip-adapter_clip_h", types=("IP-Adapter",)),
    ControlModule("inpaint_only", types=("Inpaint",), resolution=None),
    ControlModule("depth", label="depth_midas", types=("Depth",)),
    ControlModule(
        "canny",
        types=("Canny",),
        sliders=(
            Slider("Low Threshold", 100, 1, 255, 1),
            Slider("High Threshold", 200, 1, 255, 1),
        ),
    ),
    ControlModule(
        "invert",
        label="invert (from white bg & black line)",
        types=(
            "Canny",
            "Lineart",
            "MLSD",
            "Scribble",
        ),
        resolution=None,
    ),
    ControlModule(
        "tile_colorfix+sharp",
        types=("Tile",),
        sliders=(
            Slider("Variation", 8.0, 3.0, 32.0, 1.0),
            Slider("Sharpness", 1.0, 0.0, 2.0, 0.01),
        ),
    ),
    ControlModule("tile_colorfix", types=("Tile",), sliders=(Slider("Variation", 8.0, 3.0, 32.0, 1.0),)),
    ControlModule("threshold", sliders=(Slider("Binarization Threshold", 127, 0, 255, 0.01),)),
    ControlModule("clip_vision", label="t2ia_style_clipvision", types=("T2I-Adapter",)),
    ControlModule("pidinet_sketch", label="t2ia_sketch_pidi", types=("T2I-Adapter",)),
    ControlModule("color", label="t2ia_color_grid", types=("T2I-Adapter",)),
    ControlModule("softedge_teed", types=("SoftEdge",), sliders=(Slider("Safe Steps", 2, 0, 10, 1),)),
    ControlModule("pidinet_safe", label="softedge_pidisafe", types=("SoftEdge",)),
    ControlModule("hed_safe", label="softedge_hedsafe", types=("SoftEdge",)),
    ControlModule("hed", label="softedge_hed", types=("SoftEdge",)),
    ControlModule(
        "softedge_anyline",
        types=("SoftEdge",),
        resolution=Slider("Resolution", 1280, 64, 2048, 8),
        sliders=(Slider("Safe Steps", 2, 0, 10, 1),),
    ),
    ControlModule("shuffle", types=("Shuffle",), resolution=None),
    ControlModule("segmentation", label="seg_ufade20k", types=("Segmentation",)),
    ControlModule("oneformer_coco", label="seg_ofcoco", types=("Segmentation",)),
    ControlModule("anime_face_segment", label="seg_anime_face", types=("Segmentation",)),
    ControlModule(
        "scribble_xdog",
        types=(
            "Scribble",
            "SparseCtrl",
        ),
        sliders=(Slider("XDoG Threshold", 32, 1, 64, 0.01),),
    ),
    ControlModule(
        "scribble_hed",
        types=(
            "Scribble",
            "SparseCtrl",
        ),
    ),
    ControlModule(
        "revision_ignore_prompt",
        types=("Revision",),
        sliders=(Slider("Noise Augmentation", 0.0, 0.0, 1.0, 0.01),),
        model_free=True,
    ),
    ControlModule(
        "reference_adain+attn",
        types=("Reference",),
        sliders=(Slider("Style Fidelity (only for Balanced mode)", 0.5, 0.0, 1.0, 0.01),),
        model_free=True,
    ),
    ControlModule(
        "reference_adain",
        types=("Reference",),
        sliders=(Slider("Style Fidelity (only for Balanced mode)", 0.5, 0.0, 1.0, 0.01),),
        model_free=True,
    ),
    ControlModule("recolor_intensity", types=("Recolor",), sliders=(Slider("Gamma Correction", 1.0, 0.1, 2.0, 0.001),)),
    ControlModule("openpose_hand", types=("OpenPose",)),
    ControlModule("openpose_faceonly", types=("OpenPose",)),
    ControlModule("openpose_face", types=("OpenPose",)),
    ControlModule("openpose", types=("OpenPose",)),
    ControlModule(
        "normal_map",
        label="normal_midas",
        types=("NormalMap",),
        sliders=(Slider("Normal Background Threshold", 0.4, 0.0, 1.0, 0.01),),
    ),
    ControlModule(
        "normal_dsine",
        types=("NormalMap",),
        sliders=(
            Slider("Fov", 60, 0, 360, 0.1),
            Slider("Iterations", 5, 1, 20, 1),
        ),
    ),
    ControlModule("mobile_sam", types=("Segmentation",)),
    ControlModule(
        "mediapipe_face",
        sliders=(
            Slider("Max Faces", 1, 1, 10, 1),
            Slider("Min Face Confidence", 0.5, 0.01, 1.0, 0.01),
        ),
    ),
    ControlModule("lineart", label="lineart_realistic", types=("Lineart",)),
    ControlModule("lineart_coarse", types=("Lineart",)),
    ControlModule("lineart_anime_denoise", types=("Lineart",)),
    ControlModule("lineart_anime", types=("Lineart",)),
    ControlModule("ip-adapter_pulid", types=("IP-Adapter",), resolution=None),
    ControlModule("ip-adapter_face_id_plus", types=("IP-Adapter",)),
    ControlModule("ip-adapter_face_id", types=("IP-Adapter",)),
    ControlModule("ip-adapter_clip_sdxl_plus_vith", types=("IP-Adapter",)),
    ControlModule("ip-adapter_clip_sdxl", label="ip-adapter_clip_g", types=("IP-Adapter",)),
    ControlModule("instant_id_face_keypoints", types=("Instant-ID",)),
    ControlModule("instant_id_face_embedding", types=("Instant-ID",)),
    ControlModule("inpaint_only+lama", types=("Inpaint",), resolution=None),
    ControlModule("inpaint", label="inpaint_global_harmonious", types=("Inpaint",), resolution=None),
    ControlModule("facexlib", resolution=None),
    ControlModule("dw_openpose_full", types=("OpenPose",)),
    ControlModule("depth_zoe", types=("Depth",)),
    ControlModule(
        "depth_leres++",
        types=("Depth",),
        sliders=(
            Slider("Remove Near %", 0, 0, 100, 0.1),
            Slider("Remove Background %", 0, 0, 100, 0.1),
        ),
    ),
    ControlModule(
        "depth_leres",
        types=("Depth",),
        sliders=(
            Slider("Remove Near %", 0, 0, 100, 0.1),
            Slider("Remove Background %", 0, 0, 100, 0.1),
        ),
    ),
    ControlModule("depth_hand_refiner", types=("Depth",)),
    ControlModule("depth_anything_v2", types=("Depth",)),
    ControlModule("depth_anything", types=("Depth",)),
    ControlModule("densepose_parula", label="densepose_parula (black bg & blue torso)", types=("OpenPose",)),
    ControlModule("densepose", label="densepose (pruple bg & purple torso)", types=("OpenPose",)),
    ControlModule("blur_gaussian", types=("Tile",), sliders=(Slider("Sigma", 9.0, 0.01, 64.0, 0.01),)),
    ControlModule("animal_openpose", types=("OpenPose",)),
)
"""In the order of the list, which is the order of every list made of it."""
AVAILABLE = frozenset(
    {
        "none", "canny", "invert", "threshold", "scribble_xdog", "lineart_standard", "tile_resample", "tile_colorfix",
        "tile_colorfix+sharp", "blur_gaussian", "recolor_luminance", "recolor_intensity", "color", "shuffle", "inpaint",
        "inpaint_only", "reference_only", "reference_adain", "reference_adain+attn",
    }
)  # fmt: skip
BY_NAME = {name: module for module in MODULES for name in (module.name, module.shown_name)}
"""Names and labels."""
NOT_DETECTED = ("clip_vision", "revision_clipvision", "revision_ignore_prompt", "ip-adapter-auto")
"""Make no map for anybody to see."""
TYPE_ALIASES = {
    "instructp2p": ("ip2p",), "segmentation": ("seg",), "normalmap": ("normal",),
    "t2i-adapter": ("t2i_adapter", "t2iadapter", "t2ia"), "ip-adapter": ("ip_adapter", "ipadapter"),
    "openpose": ("openpose", "densepose"), "instant-id": ("instant_id", "instantid"), "scribble": ("sketch",),
    "tile": ("blur",),
}  # fmt: skip
"""Control type in lower case → what else the name of a network of it may contain."""
UNION_TYPES = frozenset(
    {
        "openpose",
        "depth",
        "scribble",
        "canny",
        "normalmap",
        "segmentation",
        "tile",
        "inpaint",
        "softedge",
        "lineart",
        "mlsd",
    }
)
"""Types a network with ``union`` in its name is good for."""
CONTROL_TYPES = ("All", *sorted({kind for module in MODULES for kind in module.types}))
NONE = "None"
RESIZE_MODES = JUST_RESIZE, CROP_AND_RESIZE, RESIZE_AND_FILL = "Just Resize", "Crop and Resize", "Resize and Fill"
CONTROL_MODES = ("Balanced", "My prompt is more important", "ControlNet is more important")
HIRES_OPTIONS = ("Both", "Low res only", "High res only")
"""The words of a unit, in the order of the numbers that stood for them before May 2024."""


def modules_of_type(kind: str) -> list[ControlModule]:
    return [module for module in MODULES if kind == "All" or kind in module.types or module.name == "none"]


def networks_of_type(kind: str, names: Iterable[str]) -> list[str]:
    """Those of the names that say they are for that type."""
    if kind == "All":
        return list(names)
    kind = kind.lower()
    parts = (kind, *TYPE_ALIASES.get(kind, ()), *(("union",) if kind in UNION_TYPES else ()))
    return [name for name in names if any(part in name.lower() for part in parts)]
