"""What would break if an asset were retired. Whoever keeps requests (``renderjobs``) registers where to look, for this app must not
know of jobs; which file a name would lead to then is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from accounts.models import Team
from assets.models import Access, Asset, AssetKind, AssetState, PromptStyle
from assets.selectors import EXTENSION
from gpuworker.contract.prompts import HYPERNETWORK_TAG, embedding_names_in, network_tags

MOST_SHOWN = 50
DRAWN_WITHOUT = (AssetKind.VAE, AssetKind.LORA, AssetKind.HYPERNETWORK, AssetKind.EMBEDDING)
"""Kinds of which an unknown name is passed over, as A1111 does."""
NETWORKS = {AssetKind.LORA: "lora", AssetKind.HYPERNETWORK: HYPERNETWORK_TAG}


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Something that leads to the asset today, and what it would lead to without it."""

    what: str
    """``template``, ``schedule``, ``options``, ``style`` or ``default``."""
    name: str
    team: str = ""
    page: tuple[str, int] | None = None
    """Of the admin: model and key."""
    when: datetime | None = None
    """Of a schedule: its next run."""
    then: str
    breaks: bool
    """Whether it would be refused; else it goes on with another file or without one."""


@dataclass(slots=True)
class Uses:
    found: list[Use] = field(default_factory=list)
    more: bool = False
    """Whether more was found than is listed."""
    jobs: dict[str, int] = field(default_factory=dict)
    """Open jobs that pinned it, by state; they keep it."""

    def add(self, uses: Iterable[Use]) -> None:
        """At most ``MOST_SHOWN`` of each sort, so that many templates hide no schedule."""
        for use in uses:
            if sum(one.what == use.what for one in self.found) < MOST_SHOWN:
                self.found.append(use)
            else:
                self.more = True


class Rivals:
    """The assets of one kind that names may lead to, each with whom it is for: three queries, however many ask."""

    def __init__(self, asset: Asset) -> None:
        self.asset = asset
        self._all = list(
            Asset.objects.filter(kind=asset.kind, state=AssetState.APPROVED)
            .prefetch_related("teams", "users")
            .order_by("-approved_at", "-pk")
        )
        self._teams = {one.pk: {team.pk for team in one.teams.all()} for one in self._all}
        self._users = {one.pk: {user.pk for user in one.users.all()} for one in self._all}

    def then(
        self, name: str, *, team_id: int | None, user_id: int | None, loosely: bool = False
    ) -> Asset | None | bool:
        """What the name would lead to without the asset, None for nothing; False where it does not lead to the asset today."""
        seen = [one for one in self._all if self._is_for(one, team_id, user_id)]
        if self._found(seen, name, loosely) != self.asset:
            return False
        return self._found([one for one in seen if one != self.asset], name, loosely)

    def then_by_default(self) -> Asset | None | bool:
        """As ``then``, of requests that name no checkpoint, for somebody who may use what everybody may."""
        if not self.asset.is_default:
            return False
        others = [one for one in self._all if one.access == Access.PUBLIC and one != self.asset]
        return min(others, key=lambda one: one.name, default=None)

    def _is_for(self, one: Asset, team_id: int | None, user_id: int | None) -> bool:
        return (
            one.access == Access.PUBLIC
            or (one.access == Access.TEAMS and team_id in self._teams[one.pk])
            or (one.access == Access.USERS and user_id in self._users[one.pk])
        )

    @staticmethod
    def _found(seen: list[Asset], name: str, loosely: bool) -> Asset | None:
        exact = next((one for one in seen if answers_to(one, name)), None)
        if exact is not None or not loosely or not name:
            return exact
        holding = [one for one in seen if name.lower() in one.title.lower()]
        return min(holding, key=lambda one: len(one.title), default=None)


def answers_to(asset: Asset, name: str) -> bool:
    """Whether ``selectors.asset_find`` would find it by this name."""
    wanted = name.strip()
    stem, _, shown = wanted.removesuffix("]").rpartition(" [")
    by_title = bool(stem) and asset.name == EXTENSION.sub("", stem) and shown in (asset.short_hash, asset.listed_hash)
    names = (asset.name, asset.sha256, asset.original_sha256, asset.short_hash, asset.alias)
    return by_title or bool(wanted) and (wanted in names or EXTENSION.sub("", wanted) == asset.name)


def names_in_prompt(asset: Asset, prompt: str) -> list[str]:
    """The names by which a prompt might mean the asset."""
    if asset.kind == AssetKind.EMBEDDING:
        return embedding_names_in(prompt, [asset.name])
    kind = NETWORKS.get(AssetKind(asset.kind))
    return [tag.name for tag in network_tags(prompt) if tag.kind == kind] if kind else []


def outcome(asset: Asset, then: Asset | None) -> tuple[str, bool]:
    """In words, and whether it breaks."""
    if then is not None:
        return f"would use {then.title} of {then.approved_at:%Y-%m-%d}", False
    if asset.kind in DRAWN_WITHOUT:
        return "would be drawn without it", False
    return "would be refused", True


Finder = Callable[[Asset, Rivals, Team | None], tuple[Iterator[Use], dict[str, int]]]
"""(asset, what else there is, whose; None for everybody's) → uses, and open jobs by state."""
_finders: list[Finder] = []


def finder_register(finder: Finder) -> None:
    _finders.append(finder)


def uses_of(asset: Asset, *, team: Team | None = None) -> Uses:
    """A number of queries that does not grow with what is there.

    Args:
        team: Whose; None for everybody's.
    """
    uses, rivals = Uses(), Rivals(asset)
    by_default = rivals.then_by_default()
    if by_default is not False:
        then, breaks = outcome(asset, by_default)  # type: ignore[arg-type]
        uses.add([Use(what="default", name="requests that name no checkpoint", then=then, breaks=breaks)])
    for finder in _finders:
        found, jobs = finder(asset, rivals, team)
        uses.add(found)
        uses.jobs |= jobs
    uses.add(_styles(asset, rivals, team))
    return uses


def _styles(asset: Asset, rivals: Rivals, team: Team | None) -> Iterator[Use]:
    if asset.kind not in (*NETWORKS, AssetKind.EMBEDDING):
        return
    rows = PromptStyle.objects.select_related("team")
    for style in rows.filter(team=team) if team else rows:
        for name in names_in_prompt(asset, f"{style.prompt} {style.negative_prompt}"):
            then = rivals.then(name, team_id=style.team_id, user_id=None)
            if then is not False:
                words, breaks = outcome(asset, then)  # type: ignore[arg-type]
                whose = str(style.team) if style.team else "everybody"
                yield Use(what="style", name=style.name, team=whose, then=words, breaks=breaks)
                break
