"""Names → files: what a request asks for becomes the recipe that all its images share, every weight pinned by its hash.

A name that A1111 passes over is passed over here, with a sentence for the caller; any other unknown name refuses the request. Reads
assets only; nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from accounts.authentication import Caller
from assets.models import Asset, AssetKind
from assets.selectors import (
    asset_find,
    asset_find_loosely,
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
    Weights,
)
from gpuworker.contract.control_modules import BY_NAME
from gpuworker.contract.control_modules import NONE as NO_MODEL
from gpuworker.contract.prompts import NetworkTag, embedding_names_in, network_tags
from gpuworker.contract.recipe import LATENT_MODES
from renderjobs.request import RenderRequest, unusable

BUILT_IN_UPSCALERS = ("None", "Lanczos", "Nearest")
ENCODERS = {"sdxl": 2}
"""Text encoders of a family, where it has not one."""
NETWORK_KINDS = {"lora": AssetKind.LORA, "hypernet": AssetKind.HYPERNETWORK}


class UnknownNameError(InvalidRequestError):
    """A name of a kind that has to be known; doors word it in their own way.

    ``kind`` is the asset's kind, ``name`` what was asked for.
    """

    def __init__(self, field: str, kind: str, name: str) -> None:
        super().__init__([FieldError(field, f"{AssetKind(kind).label} {name!r} is unknown.", name)])
        self.kind = kind
        self.name = name


@dataclass(slots=True)
class Pinned:
    """What a request came to."""

    recipe: AnyRecipe
    """Seeds are 0, and of several input pictures it has the first."""
    checkpoint: Asset | None
    assets: dict[int, Asset] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def pinned(caller: Caller, request: RenderRequest) -> Pinned:
    """Resolve every name of a request among what the caller may use.

    Raises:
        UnknownNameError: A name that has to be known is not.
        InvalidRequestError: No checkpoint is installed.
    """
    return _Pinning(caller).of(request)


class _Pinning:
    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.assets: dict[int, Asset] = {}
        self.warnings: list[str] = []

    def of(self, request: RenderRequest) -> Pinned:
        if request.extras:
            return Pinned(self._extras(request.extras), None, self.assets, self.warnings)
        if request.detect:
            return Pinned(request.detect[0], None, self.assets, self.warnings)
        checkpoint = self._checkpoint(request)
        hires = request.hires and self._hires(request.hires, request)
        prompts = " ".join(
            (request.prompt, request.negative_prompt, *((hires.prompt, hires.negative_prompt) if hires else ()))
        )
        recipe = Recipe(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            seed=0,
            subseed=0,
            **{name: getattr(request, name) for name in SAME_NAME},
            checkpoint=checkpoint.weights,
            vae=self._vae(request.vae),
            networks=self._networks(request.prompt, request),
            embeddings=self._embeddings(prompts, checkpoint),
            refiner=request.refiner and self._refiner(request.refiner),
            hires=hires,
            img2img=self._img2img(request) if request.img2img else None,
            notes=tuple(request.notes.items()),
            control=tuple(self._control(index, unit, request) for index, unit in enumerate(request.control)),
        )
        return Pinned(recipe, checkpoint, self.assets, self.warnings)

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

    def _network(self, tag: NetworkTag) -> NetworkUse | None:
        """QUIRK(A1111 1.10): an unknown network is no error."""
        asset = asset_find(self.caller, NETWORK_KINDS[tag.kind], tag.name)
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

    def _embeddings(self, prompts: str, checkpoint: Asset) -> tuple[EmbeddingUse, ...]:
        """QUIRK(A1111 1.10): to a checkpoint of another family the name is a word like any other."""
        encoders = ENCODERS.get(checkpoint.family, 1)
        fitting = {
            asset.name: asset
            for asset in newest_of(self.caller, AssetKind.EMBEDDING)
            if asset.metadata.get("encoders", 1) == encoders
        }
        return tuple(
            EmbeddingUse(weights=self._used(fitting[name]), listed_hash=fitting[name].listed_hash, encoders=encoders)
            for name in embedding_names_in(prompts, fitting)
        )

    def _refiner(self, asked: Refiner) -> Refiner:
        return replace(asked, checkpoint=self._loosely("refiner_checkpoint", asked.checkpoint.name))

    def _loosely(self, where: str, name: str) -> Weights:
        asset = asset_find_loosely(self.caller, AssetKind.CHECKPOINT, name)
        if asset is None:
            raise UnknownNameError(where, AssetKind.CHECKPOINT, name)
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

    def _control(self, index: int, asked: ControlUnit, request: RenderRequest) -> ControlUnit:
        """QUIRK(sd-webui-controlnet 1.1.455): a unit that cannot be used is no error; the image is drawn without any control."""
        if why := unusable(asked, request):
            self.warnings.append(f"Unit {index} of ControlNet: {why[1]} The picture is drawn without control.")
        if asked.model == NO_MODEL or BY_NAME[asked.module].model_free:
            return asked
        asset = control_find(self.caller, asked.model)
        if asset is not None:
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


SAME_NAME = (
    "subseed_strength", "seed_resize_from_w", "seed_resize_from_h", "sampler", "schedule", "steps", "cfg_scale", "width",
    "height", "clip_skip", "eta", "s_churn", "s_tmin", "s_tmax", "s_noise", "ensd", "emphasis", "tiling", "denoising_strength",
    "exact", "settings",
)  # fmt: skip
"""Fields of a request that a recipe takes as they are."""
