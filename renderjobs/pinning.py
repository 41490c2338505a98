"""Names → files: what a request asks for becomes the recipe that all its images share, every weight pinned by its hash.

A name that A1111 passes over is passed over here, with a sentence for the caller; any other unknown name refuses the request. Reads
assets only; nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from accounts.authentication import Caller
from assets.models import Asset, AssetKind
from assets.selectors import (
    asset_find,
    asset_find_loosely,
    assets_of,
    checkpoint_default,
    checkpoint_find,
    control_find,
    newest_of,
)
from common.errors import FieldError, InvalidRequestError
from gpuworker.contract import (
    AnyRecipe,
    ControlUnit,
    EmbeddingUse,
    ExtrasRecipe,
    Hires,
    Img2Img,
    NetworkUse,
    Recipe,
    Refiner,
    SafetyCheck,
    Weights,
)
from gpuworker.contract.control_modules import BY_NAME
from gpuworker.contract.control_modules import NONE as NO_MODEL
from gpuworker.contract.families import FAMILY_NAMES
from gpuworker.contract.flow import FLOW_FAMILIES, refusals
from gpuworker.contract.prompts import NetworkTag, embedding_names_in, network_tags, strip_network_tags
from gpuworker.contract.recipe import LATENT_MODES
from gpuworker.contract.safety import OFF
from renderjobs.request import RenderRequest, unusable
from renderjobs.safety import SafetyFilterMissingError

BUILT_IN_UPSCALERS = ("None", "Lanczos", "Nearest")
ENCODERS = {"sdxl": 2, **dict.fromkeys(FLOW_FAMILIES, 0)}
"""Text encoders of a family that read embeddings, where they are not one."""
WIRE_NAMES = {
    "networks": "prompt",
    "hires": "enable_hr",
    "refiner": "refiner_checkpoint",
    "vae": "sd_vae",
    "sampler": "sampler_name",
    "schedule": "scheduler",
    "clip_skip": "CLIP_stop_at_last_layers",
    "img2img.inpaint": "mask",
    "img2img.noise_multiplier": "initial_noise_multiplier",
    "img2img.resize_mode": "resize_mode",
}
"""Field of a recipe → what callers know it by, where that is another."""
NETWORK_KINDS = {"lora": AssetKind.LORA, "hypernet": AssetKind.HYPERNETWORK}


class UnknownNameError(InvalidRequestError):
    """A name of a kind that has to be known; doors word it in their own way.

    ``kind`` is the asset's kind, ``name`` what was asked for.
    """

    def __init__(self, field: str, kind: str, name: str) -> None:
        super().__init__([FieldError(field, f"{AssetKind(kind).label} {name!r} is unknown.", name)])
        self.kind = kind
        self.name = name


class UnfitForFamilyError(InvalidRequestError):
    """The checkpoint's family cannot do what the request asks for."""


@dataclass(slots=True)
class Pinned:
    """What a request came to."""

    recipe: AnyRecipe
    """Seeds are 0; of several input pictures, and of the texts of several images, it has the first."""
    checkpoint: Asset | None
    assets: dict[int, Asset] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    own: list[Recipe] = field(default_factory=list)
    """One per image, where images have their own texts."""


def pinned(caller: Caller, request: RenderRequest) -> Pinned:
    """Resolve every name of a request among what the caller may use.

    Raises:
        UnknownNameError: A name that has to be known is not.
        UnfitForFamilyError: The checkpoint's family cannot draw it.
        InvalidRequestError: No checkpoint is installed, or a ControlNet is for another family of them.
    """
    pinning = _Pinning(caller)
    found = pinning.of(request.of_image(0))
    if request.texts and found.checkpoint and isinstance(found.recipe, Recipe):
        recipe, checkpoint = found.recipe, found.checkpoint
        each = {
            texts: pinning.with_texts(recipe, request.of_image(index), checkpoint)
            for index, texts in enumerate(request.texts)
        }
        found.own = [each[texts] for texts in request.texts]
    found.warnings = list(dict.fromkeys(found.warnings))
    return found


class _Pinning:
    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.assets: dict[int, Asset] = {}
        self.warnings: list[str] = []
        self.networks: dict[tuple[str, str], Asset | None] = {}

    @cached_property
    def known_embeddings(self) -> list[Asset]:
        return list(newest_of(self.caller, AssetKind.EMBEDDING))

    def of(self, request: RenderRequest) -> Pinned:
        if request.extras:
            return Pinned(self._extras(request.extras), None, self.assets, self.warnings)
        if request.detect:
            return Pinned(request.detect[0], None, self.assets, self.warnings)
        checkpoint = self._checkpoint(request)
        hires = request.hires and self._hires(request.hires, request)
        recipe = Recipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=0,
            subseed=0,
            **{name: getattr(request, name) for name in SAME_NAME},
            checkpoint=checkpoint.weights,
            vae=self._vae(request.vae),
            networks=self._networks(request.prompt, request),
            embeddings=self._embeddings(request, checkpoint),
            refiner=request.refiner and self._refiner(request.refiner),
            hires=hires,
            img2img=self._img2img(request) if request.img2img else None,
            notes=tuple(request.notes.items()),
            safety=self._safety(request.safety),
            control=tuple(
                self._control(index, unit, request, checkpoint) for index, unit in enumerate(request.control)
            ),
        )
        if checkpoint.family in FLOW_FAMILIES:
            _require_possible(recipe, checkpoint.family)
        return Pinned(recipe, checkpoint, self.assets, self.warnings)

    def with_texts(self, recipe: Recipe, request: RenderRequest, checkpoint: Asset) -> Recipe:
        """The recipe of an image whose own texts the request has."""
        asked = request.hires
        hires = (
            recipe.hires
            and asked
            and replace(
                recipe.hires,
                prompt=asked.prompt,
                negative_prompt=asked.negative_prompt,
                networks=self._networks(asked.prompt, request) if asked.prompt else None,
            )
        )
        return replace(
            recipe,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            networks=self._networks(request.prompt, request),
            embeddings=self._embeddings(request, checkpoint),
            hires=hires,
        )

    def _used(self, asset: Asset) -> Weights:
        self.assets[asset.pk] = asset
        return asset.weights

    def _checkpoint(self, request: RenderRequest) -> Asset:
        if not request.checkpoint:
            asset = checkpoint_default(self.caller)
            if asset is None:
                message = "No checkpoint is installed; import one first."
                raise InvalidRequestError([FieldError("sd_model_checkpoint", message, "")])
        else:
            asset = checkpoint_find(self.caller, request.checkpoint)
            if asset is None:
                raise UnknownNameError("sd_model_checkpoint", AssetKind.CHECKPOINT, request.checkpoint)
        self._used(asset)
        return asset

    def _vae(self, name: str) -> Weights | None:
        """QUIRK(A1111 1.10): an unknown VAE is none."""
        if name in ("", "None", "Automatic"):
            return None
        asset = asset_find(self.caller, AssetKind.VAE, name)
        if asset is None:
            self.warnings.append(f"VAE {name!r} is unknown; the checkpoint's own is used.")
            return None
        return self._used(asset)

    def _networks(self, prompt: str, request: RenderRequest) -> tuple[NetworkUse, ...]:
        tags = network_tags(prompt) if request.networks else []
        return tuple(use for tag in tags if (use := self._network(tag)))

    def _of_tag(self, tag: NetworkTag) -> Asset | None:
        if (tag.kind, tag.name) not in self.networks:
            self.networks[tag.kind, tag.name] = asset_find(self.caller, NETWORK_KINDS[tag.kind], tag.name)
        return self.networks[tag.kind, tag.name]

    def _network(self, tag: NetworkTag) -> NetworkUse | None:
        """QUIRK(A1111 1.10): an unknown network is no error."""
        asset = self._of_tag(tag)
        if asset is None:
            self.warnings.append(f"Network {tag.name!r} is unknown; the picture is drawn without it.")
            return None
        return NetworkUse(
            kind=tag.kind,
            weights=self._used(asset),
            te=tag.te,
            unet=tag.unet,
            dyn=tag.dyn,
            listed_hash=asset.listed_hash,
        )

    def _embeddings(self, request: RenderRequest, checkpoint: Asset) -> tuple[EmbeddingUse, ...]:
        """Those in files of their own and those inside the LoRA files that the prompts switch on.

        QUIRK(A1111 1.10): to a checkpoint of another family the name is a word like any other.
        """
        prompts, encoders = " ".join(request.prompts()), ENCODERS.get(checkpoint.family, 1)
        fitting = {
            asset.name: asset for asset in self.known_embeddings if asset.metadata.get("encoders", 1) == encoders
        }
        own = tuple(
            EmbeddingUse(weights=self._used(fitting[name]), listed_hash=fitting[name].listed_hash, encoders=encoders)
            for name in embedding_names_in(prompts, fitting)
        )
        if not request.networks:
            return own
        inside = {
            name: (asset, tag)
            for tag in network_tags(prompts)
            if (asset := self._of_tag(tag))
            for name, count in asset.embeddings_inside.items()
            if count == encoders and name not in fitting
        }
        # A LoRA is often called as the embedding inside it; its tag alone does not use that.
        found = embedding_names_in(strip_network_tags(prompts), inside)
        return own + tuple(_inside(*inside[name], name=name) for name in found)

    def _refiner(self, asked: Refiner) -> Refiner:
        return replace(asked, checkpoint=self._loosely("refiner_checkpoint", asked.checkpoint.name))

    def _safety(self, mode: str) -> SafetyCheck | None:
        """The filter that was approved last.

        Raises:
            SafetyFilterMissingError: There is none.
        """
        if mode == OFF:
            return None
        asset = assets_of(self.caller, AssetKind.SAFETY_FILTER).order_by("-approved_at", "-pk").first()
        if asset is None:
            raise SafetyFilterMissingError(
                f"The pictures of this team must be looked at by the safety filter (mode {mode}), and none is installed; take one "
                "in by `manage.py import_asset FOLDER --kind safety_filter`."
            )
        return SafetyCheck(weights=self._used(asset), mode=mode)

    def _loosely(self, where: str, name: str) -> Weights:
        asset = asset_find_loosely(self.caller, AssetKind.CHECKPOINT, name)
        if asset is None:
            raise UnknownNameError(where, AssetKind.CHECKPOINT, name)
        if asset.family in FLOW_FAMILIES:
            message = f"Checkpoint {asset.name!r} is of {FLOW_FAMILIES[asset.family]}, which cannot take over from another one."
            raise UnfitForFamilyError([FieldError(where, message, name)])
        return self._used(asset)

    def _hires(self, asked: Hires, request: RenderRequest) -> Hires:
        checkpoint = asked.checkpoint and self._loosely("hr_checkpoint_name", asked.checkpoint.name)
        latent = asked.upscaler is None or asked.upscaler in LATENT_MODES
        return replace(
            asked,
            checkpoint=checkpoint,
            upscaler_weights=None if latent else self._upscaler("hr_upscaler", asked.upscaler or ""),
            networks=self._networks(asked.prompt, request) if asked.prompt else None,
        )

    def _upscaler(self, where: str, name: str) -> Weights | None:
        """None for those that need no weights."""
        if name in BUILT_IN_UPSCALERS:
            return None
        asset = asset_find(self.caller, AssetKind.UPSCALER, name)
        if asset is None:
            raise UnknownNameError(where, AssetKind.UPSCALER, name)
        return self._used(asset)

    def _img2img(self, request: RenderRequest) -> Img2Img:
        name = request.settings.upscaler_for_img2img
        known = name not in BUILT_IN_UPSCALERS and asset_find(self.caller, AssetKind.UPSCALER, name)
        return replace(request.img2img[0], upscaler=self._used(known) if known else None)

    def _control(self, index: int, asked: ControlUnit, request: RenderRequest, checkpoint: Asset) -> ControlUnit:
        """QUIRK(sd-webui-controlnet 1.1.455): a unit that cannot be used is no error; the image is drawn without any control."""
        if why := unusable(asked, request):
            self.warnings.append(f"Unit {index} of ControlNet: {why[1]} The picture is drawn without control.")
        if asked.model == NO_MODEL or BY_NAME[asked.module].model_free:
            return asked
        asset = control_find(self.caller, asked.model)
        if asset is not None:
            require_same_family(f"control.{index}.model", asset, checkpoint)
            return replace(asked, weights=self._used(asset))
        if request.strict_control:
            raise UnknownNameError(f"control.{index}.model", AssetKind.CONTROLNET, asked.model)
        self.warnings.append(
            f"ControlNet {asked.model!r} of unit {index} is unknown; the picture is drawn without control."
        )
        return asked

    def _extras(self, asked: ExtrasRecipe) -> ExtrasRecipe:
        return replace(
            asked,
            upscaler_1_weights=self._upscaler("upscaler_1", asked.upscaler_1),
            upscaler_2_weights=self._upscaler("upscaler_2", asked.upscaler_2),
        )


def _require_possible(recipe: Recipe, family: str) -> None:
    """Raises: UnfitForFamilyError: With everything the family cannot do."""
    errors = [
        FieldError(WIRE_NAMES.get(refusal.field, refusal.field), refusal.message, _shown(refusal.value))
        for refusal in refusals(recipe, family)
    ]
    if errors:
        raise UnfitForFamilyError(errors)


def _shown(value: Any) -> Any:
    """Whole records are not repeated to the caller."""
    return value if isinstance(value, str | int | float) else None


def _inside(asset: Asset, tag: NetworkTag, *, name: str) -> EmbeddingUse:
    """QUIRK(A1111 1.10): for a hash of its own it shows the name by which the LoRA was called."""
    encoders = asset.embeddings_inside[name]
    return EmbeddingUse(
        weights=replace(asset.weights, name=name), listed_hash=tag.name, encoders=encoders, inside=tag.name
    )


def require_same_family(where: str, network: Asset, checkpoint: Asset) -> None:
    """Of a ControlNet. Where its file does not show what it was made for, the engine finds out.

    Raises:
        InvalidRequestError: It was made for checkpoints of another family.
    """
    base = network.metadata.get("base")
    if base and base != checkpoint.family:
        message = (
            f"ControlNet {network.name!r} is for {FAMILY_NAMES[base]}; checkpoint {checkpoint.name!r} is "
            f"{FAMILY_NAMES[checkpoint.family]}."
        )
        raise InvalidRequestError([FieldError(where, message, network.name)])


SAME_NAME = (
    "subseed_strength", "seed_resize_from_w", "seed_resize_from_h", "sampler", "schedule", "steps", "cfg_scale", "width",
    "height", "clip_skip", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "ensd", "emphasis", "tiling", "denoising_strength",
    "exact", "settings",
)  # fmt: skip
"""Fields of a request that a recipe takes as they are."""
