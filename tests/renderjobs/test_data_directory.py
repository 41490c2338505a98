"""A data directory of A1111 or PAI-EAS: what is taken in, what is left, and that a second time changes nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.core.files.storage import default_storage
from django.core.management import CommandError, call_command
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from assets.companions import COMPANIONS
from assets.intake import asset_process, asset_receive
from assets.models import Asset, AssetKind
from assets.zoo import FOLDER_OF_KIND
from billing.models import StoredBytes
from operations.invariants import violations
from renderjobs.data_directory import MODEL_FOLDERS, kind_of
from renderjobs.models import TeamFile
from renderjobs.team_files import plain_path
from tests.factories import a_caller
from tests.weights import a_checkpoint_file

pytestmark = pytest.mark.django_db
INFOTEXT = "a ring\nSteps: 20, Sampler: Euler a, Seed: 1003, Size: 64x64"


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def a_png(infotext: str = INFOTEXT) -> bytes:
    file, text = io.BytesIO(), PngInfo()
    text.add_text("parameters", infotext)
    Image.new("RGB", (8, 6), "red").save(file, "PNG", pnginfo=text)
    return file.getvalue()


@pytest.fixture
def directory(tmp_path) -> Path:
    """As the original makes it on its first start, and used since."""
    root = tmp_path / "from elsewhere"
    write(root / "models/Stable-diffusion/anime/dream.safetensors", a_checkpoint_file())
    write(root / "models/Stable-diffusion/Put Stable Diffusion checkpoints here.txt", b"")
    write(root / "outputs/txt2img-images/2023-07-24/00000-1003.png", a_png())
    write(root / "outputs/txt2img-grids/2023-07-24/grid-0000.png", a_png("a grid"))
    write(root / "outputs/img2img-images/夜景/00001.png", a_png("night"))
    write(root / "outputs/notes.txt", b"hello")
    write(root / "models/deepbooru/sample.png", a_png())
    write(root / ".cache/hidden.png", a_png())
    return root


@pytest.fixture
def team():
    return a_caller("studio").team


def take_in(directory: Path, *arguments: str) -> list[str]:
    out = io.StringIO()
    call_command("import_data_dir", str(directory), "--team", "studio", *arguments, stdout=out)
    return out.getvalue().splitlines()


def test_models_are_assets_and_pictures_are_files_of_the_team(directory, team):
    lines = take_in(directory)
    assert lines[-1] == "4 taken in, 0 left"
    asset = Asset.objects.get()
    assert (asset.kind, asset.name, asset.state, list(asset.teams.all())) == ("checkpoint", "dream", "approved", [team])
    picture = TeamFile.objects.get(path="outputs/txt2img-images/2023-07-24/00000-1003.png")
    assert picture.file_key == f"{team.pk}/files/data/outputs/txt2img-images/2023-07-24/00000-1003.png"
    assert (picture.infotext, picture.width, picture.height) == (INFOTEXT, 8, 6)
    with default_storage.open(picture.file_key) as file:
        assert file.read() == a_png()
    assert list(violations()) == []


def test_a_name_beyond_plain_letters_gets_a_plain_key_and_keeps_its_path(directory, team):
    take_in(directory)
    picture = TeamFile.objects.get(infotext="night")
    assert picture.path == "outputs/img2img-images/夜景/00001.png"
    assert picture.file_key.isascii() and picture.file_key.startswith(f"{team.pk}/files/data/outputs/00001-")


def test_a_second_time_takes_in_what_is_new(directory, team):
    take_in(directory)
    write(directory / "outputs/new.png", a_png("new"))
    lines = take_in(directory)
    assert sum("was here already" in line for line in lines) == 4 and TeamFile.objects.count() == 4
    assert Asset.objects.count() == 1 and list(violations()) == []


def test_a_run_that_was_killed_between_object_and_row_is_repaired(directory, team):
    take_in(directory)
    TeamFile.objects.all().delete()
    StoredBytes.objects.all().delete()  # is written with the row, or not at all
    take_in(directory)
    assert TeamFile.objects.count() == 3 and list(violations()) == []
    assert len(list(Path(default_storage.path(f"{team.pk}/files")).rglob("*.png"))) == 3


def test_public_models_are_for_everybody(directory, team):
    take_in(directory, "--public", "--folder", "/code/stable-diffusion-webui/data/old")
    assert Asset.objects.get().access == "public"
    assert TeamFile.objects.filter(file_key__startswith=f"{team.pk}/files/data/old/outputs/").count() == 3


def test_what_cannot_be_taken_in_is_named_and_the_rest_is_done(directory, team):
    write(directory / "outputs/broken.png", b"no picture")
    write(directory / "models/Lora/evil.safetensors", b"\xff" * 100)
    with pytest.raises(CommandError, match="2 files were not taken in"):
        take_in(directory)
    assert TeamFile.objects.count() == 3 and Asset.objects.filter(state="approved").count() == 1


def test_a_picture_that_changed_is_left(directory, team):
    take_in(directory)
    write(directory / "outputs/txt2img-grids/2023-07-24/grid-0000.png", a_png("another"))
    with pytest.raises(CommandError, match="1 files"):
        take_in(directory)
    assert TeamFile.objects.filter(infotext="a grid").exists()


def test_p2_cards_beside_models_are_taken_in_also_when_they_come_later(directory, team):
    beside = directory / "models/Stable-diffusion/anime"
    write(beside / "dream.preview.png", a_png())
    take_in(directory)
    write(beside / "dream.json", b'{"activation text": "ring"}')
    write(beside / "dream.civitai.info", b"x")
    lines = take_in(directory)
    asset = Asset.objects.get()
    assert asset.trigger_words == "ring" and asset.preview_key and list(violations()) == []
    assert any("dream.civitai.info is passed over: It is no JSON." in line for line in lines)


def test_links_are_not_followed(directory, team, tmp_path):
    write(tmp_path / "secret/private.png", a_png())
    (directory / "outputs/link.png").symlink_to(tmp_path / "secret/private.png")
    (directory / "outputs/folder").symlink_to(tmp_path / "secret")
    assert take_in(directory)[-1] == "4 taken in, 0 left"


def test_a_link_beside_a_checkpoint_is_no_configuration_of_it(directory, team, tmp_path):
    write(tmp_path / "secret.yaml", b"password: 1")
    (directory / "models/Stable-diffusion/anime/dream.yaml").symlink_to(tmp_path / "secret.yaml")
    assert take_in(directory)[-1] == "4 taken in, 0 left" and not Asset.objects.get().config_key


def test_p5_a_model_that_another_team_has_already_is_the_importing_teams_as_well(directory, team):
    other = a_caller("other", "eve").team
    asset_process(
        asset_receive(
            file=io.BytesIO(a_checkpoint_file()), name="dream", kind="checkpoint", access="teams", teams=(other,)
        ).pk
    )
    take_in(directory)
    assert set(Asset.objects.get().teams.all()) == {team, other}


def test_d1_the_tree_has_a_folder_for_every_kind_and_is_made_once(tmp_path):
    for _ in range(2):
        call_command("make_data_dir", str(tmp_path / "data"))
    for folder in MODEL_FOLDERS:
        assert (tmp_path / "data" / folder).is_dir()
    assert (tmp_path / "data/outputs/txt2img-images").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(CommandError, match="cannot be made"):
        call_command("make_data_dir", str(tmp_path / "file"))


def test_d8_the_zoo_names_folders_that_an_import_knows():
    for kind, folder in FOLDER_OF_KIND.items():
        assert kind_of(f"{folder}/a.safetensors") == kind
    assert set(FOLDER_OF_KIND) == set(AssetKind) - set(COMPANIONS)


def test_weights_of_a_folder_that_is_not_used_are_named(directory, team):
    write(directory / "models/GFPGAN/a.pth", b"weights")
    out = io.StringIO()
    with pytest.raises(CommandError, match="1 files"):
        call_command("import_data_dir", str(directory), "--team", "studio", stdout=out)
    assert "weights models/GFPGAN/a.pth: Models of this folder are not used here." in out.getvalue()


@pytest.mark.parametrize("folder", ["..", "/etc", "a/../../b", "", "x" * 60])
def test_a_folder_outside_the_teams_files_is_refused(directory, team, folder):
    with pytest.raises(CommandError, match="--folder"):
        take_in(directory, "--folder", folder)
    assert not TeamFile.objects.exists() and not Asset.objects.exists()


def test_other_teams_do_not_see_the_pictures(directory, team):
    take_in(directory)
    mine, other = a_caller("studio").user, a_caller("team-b", "eve").user
    assert TeamFile.objects.visible_to(mine).count() == 3
    assert not TeamFile.objects.visible_to(other).exists()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("models/Stable-diffusion/a.ckpt", "checkpoint"),
        ("models/stable-diffusion/x/a.safetensors", "checkpoint"),
        ("models/Lora/a.safetensors", "lora"),
        ("models/LyCORIS/a.safetensors", "lora"),
        ("models/VAE/a.pt", "vae"),
        ("models/ControlNet/a.pth", "controlnet"),
        ("models/ESRGAN/a.pth", "upscaler"),
        ("models/hypernetworks/a.pt", "hypernetwork"),
        ("embeddings/a.pt", "embedding"),
        ("models/GFPGAN/a.pth", None),
        ("models/Lora/a.png", None),
        ("outputs/a.pt", None),
        ("a.safetensors", None),
    ],
)
def test_a_files_kind_is_that_of_its_folder(path, kind):
    assert kind_of(path) == kind


@pytest.mark.parametrize("path", ["a/b.png", "outputs/txt2img-images/2023-07-24/00000-1003.png"])
def test_usual_paths_stay_as_they_are(path):
    assert plain_path(path) == path


@pytest.mark.parametrize(
    "path", ["夜景.png", "a/[model] x.png", "a\\b.png", "..png", "a/" + "b" * 300 + ".png", "~/a.png"]
)
def test_other_paths_become_plain_and_stay_apart(path):
    plain = plain_path(path)
    assert plain.isascii() and ".." not in plain and "\\" not in plain and len(plain) < 120
    assert plain != plain_path(path.replace(".png", "x.png"))
