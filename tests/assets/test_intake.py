"""Uploads: what is whole and known becomes usable at once; everything else is refused and leaves no file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
from pathlib import Path

import pytest
from django.core.files.storage import storages
from django.core.management import CommandError, call_command

from assets.intake import asset_process, asset_receive
from assets.models import Asset, PromptStyle
from assets.selectors import checkpoint_default, checkpoint_find
from common.errors import InvalidRequestError
from tests.factories import a_caller
from tests.weights import SD1_KEYS, a_checkpoint_file, framed, safetensors

pytestmark = pytest.mark.django_db


def take_in(data: bytes, name: str = "dream.safetensors", kind: str = "checkpoint", **options: object) -> Asset:
    return asset_process(asset_receive(file=io.BytesIO(data), name=name, kind=kind, **options).pk)


def stored(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "assets").rglob("*") if path.is_file())


def test_p2_an_upload_is_hashed_recognised_and_usable_at_once(tmp_path):
    data = a_checkpoint_file()
    asset = take_in(data)
    sha256 = hashlib.sha256(data).hexdigest()
    assert (asset.state, asset.family, asset.sha256, asset.short_hash) == ("approved", "sd1", sha256, sha256[:10])
    assert storages["assets"].open(asset.file_key).read() == data and stored(tmp_path) == [f"{sha256}.safetensors"]
    assert checkpoint_default(a_caller()) == asset


@pytest.mark.parametrize("alias", ["dream", "dream.safetensors", "title", "hash", "sha256"])
def test_a_checkpoint_is_found_by_every_alias_a1111_knows(alias):
    asset = take_in(a_checkpoint_file())
    name = {"title": asset.title, "hash": asset.short_hash, "sha256": asset.sha256}.get(alias, alias)
    assert checkpoint_find(a_caller(), name) == asset


def test_the_same_upload_twice_is_one_asset(tmp_path):
    first, second = take_in(a_checkpoint_file()), take_in(a_checkpoint_file())
    assert first == second and Asset.objects.count() == 1 and len(stored(tmp_path)) == 1


def test_p4_a_new_upload_under_a_name_leaves_the_old_one_untouched():
    old, new = take_in(a_checkpoint_file(b"\0")), take_in(a_checkpoint_file(b"\1"))
    assert checkpoint_find(a_caller(), "dream") == new
    old.refresh_from_db()
    assert old.state == "approved" and storages["assets"].exists(old.file_key)


def test_processing_twice_changes_nothing():
    asset = take_in(a_checkpoint_file())
    assert asset_process(asset.pk).approved_at == asset.approved_at


def changed(**change: object) -> bytes:
    entry = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4], **change}
    return framed({"a": entry}, b"\0" * 4)


def framed_text(header: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header


REFUSED = {
    "a pickle": (pickle.dumps({"a": 1}), "a Python pickle"),
    "a pickle of an old PyTorch": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a Python pickle"),
    "a zip archive": (b"PK\x03\x04" + b"\0" * 100, "a zip archive"),
    "an empty file": (b"", "do not begin with a header"),
    "a text": (b"hello, this is no model", "not a safetensors file"),
    "a file cut in its header": (a_checkpoint_file()[:200], "truncated inside its header"),
    "a file cut in its data": (a_checkpoint_file()[:-10], "truncated"),
    "foreign bytes at the end": (a_checkpoint_file() + b"#!/bin/sh", "foreign bytes"),
    "a header beyond the limit": ((2**27).to_bytes(8, "little") + b"{" * 100, "not a safetensors file"),
    "a header in UTF-16": (framed_text('{"a":{}}'.encode("utf-16-le")), "not valid JSON"),
    "a header with a name twice": (framed_text(b'{"a":{},"a":{}}'), "not valid JSON"),
    "a header that is nested too deep": (framed_text(b'{"a":' * 100_000), "not valid JSON"),
    "a header that is no JSON": (b"\x04" + b"\0" * 7 + b"{nop", "not valid JSON"),
    "a header that is a list": (framed([], b""), "not a safetensors file"),
    "an unknown type": (changed(dtype="PYOBJ"), "unknown type"),
    "a type that is no text": (changed(dtype=[]), "unknown type"),
    "a side that is true": (changed(shape=[True, 2]), "not described"),
    "sides without end": (changed(shape=[1] * 100_000), "not described"),
    "a side of 4000 digits": (changed(shape=[10**4000]), "not described"),
    "a gap between tensors": (changed(data_offsets=[2, 6]), "leave a gap"),
    "a negative side": (changed(shape=[-2]), "not described"),
    "offsets beyond the file": (changed(shape=[4], data_offsets=[0, 8]), "truncated"),
    "a shape that does not fit": (changed(shape=[3]), "not described"),
    "overlapping tensors": (
        framed({name: {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 4),
        "overlap",
    ),
    "a name that no database takes": (safetensors({"a\0\ud800": [2]}), "starting with a\ufffd\ufffd"),
    "half an SDXL checkpoint": (
        safetensors({**SD1_KEYS, "conditioner.embedders.1.model.ln_final.weight": [4]}),
        "It looks like SDXL, but lacks a text encoder (conditioner.embedders.0.transformer.*)",
    ),
    "a checkpoint of another architecture": (
        safetensors({"double_blocks.0.img_attn.qkv.weight": [4, 4]}),
        "The checkpoint is incomplete. It looks like Flux, but lacks the VAE (vae.*), the CLIP text encoder (text_encoder.*)",
    ),
    "a checkpoint for depth maps": (
        safetensors({**SD1_KEYS, "model.diffusion_model.input_blocks.0.0.weight": [4, 5, 3, 3]}),
        "takes 5 input channels",
    ),
    "unknown weights": (safetensors({"something.weight": [2]}), "not recognised"),
    "a checkpoint without its VAE": (
        safetensors({key: shape for key, shape in SD1_KEYS.items() if "first_stage" not in key}),
        "lacks",
    ),
    "a LoRA": (
        safetensors({"lora_unet_a.lora_down.weight": [2, 2], "lora_unet_a.lora_up.weight": [2, 2]}),
        "not a checkpoint",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_s19_what_is_not_a_whole_known_checkpoint_is_quarantined_and_removed(name, tmp_path):
    data, reason = REFUSED[name]
    asset = take_in(data)
    assert asset.state == "quarantined" and reason in asset.reason and asset.file_key == ""
    assert stored(tmp_path) == [] and checkpoint_find(a_caller(), "dream") is None


@pytest.mark.parametrize("bytes_of_header", [640, 896, 1152, 1408])
def test_a_header_whose_length_reads_like_a_pickles_beginning_is_a_header(bytes_of_header):
    header = json.dumps({"emb_params": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}).ljust(bytes_of_header)
    data = framed_text(header.encode()) + b"\0" * 4
    assert data[0] == 0x80 and take_in(data, kind="embedding").state == "approved"


def test_a_file_of_another_kind_than_declared_is_refused():
    asset = take_in(safetensors({"emb_params": [2, 768]}), kind="lora")
    assert (asset.state, asset.reason) == ("quarantined", "The file holds weights of kind embedding, not lora.")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("../../etc/passwd", "passwd"),
        ("a/b/dream.safetensors", "dream"),
        ("C:\\dream.ckpt", "dream"),
        ("dream\x00.safetensors", "dream"),
        ("\uff0e\uff0e\uff0fdream", "dream"),
        ("a\u2215dream", "dream"),
        ("a\u2044dream", "dream"),
        ("\u202edream", "dream"),
    ],
)
def test_s16_a_name_never_becomes_a_path(name, stem):
    assert take_in(a_checkpoint_file(), name).name == stem


@pytest.mark.parametrize("name", ["", ".safetensors", "..", "x" * 300])
def test_a_name_that_cannot_be_used_is_refused_with_nothing_stored(name, tmp_path):
    with pytest.raises(InvalidRequestError):
        take_in(a_checkpoint_file(), name)
    assert not Asset.objects.exists() and stored(tmp_path) == []


YAMLS = {
    "an object": b"!!python/object:os.system {}",
    "a list": b"- a",
    "cut off": b"a: [",
    "long": b"a" * 300_000,
    "nested in brackets": b"[" * 50_000,
    "nested in dashes": b"- " * 30_000,
    "no such date": b"a: 2020-99-99",
    "a number of 5000 digits": b"a: " + b"1" * 5000,
    "an empty number": b"a: !!int ''",
    "a time that is none": b"a: !!timestamp x",
    "an alias": b"a: &a {b: c}\nd: {<<: *a}",
}


@pytest.mark.parametrize("yaml", YAMLS.values(), ids=YAMLS)
def test_s21_a_yaml_that_is_no_plain_map_is_refused(yaml, tmp_path):
    with pytest.raises(InvalidRequestError):
        take_in(a_checkpoint_file(), config=io.BytesIO(yaml))
    assert not Asset.objects.exists() and stored(tmp_path) == []


def test_p5_an_asset_of_one_team_is_unknown_to_another():
    ours, theirs = a_caller("team-a"), a_caller("team-b", "eve")
    asset = take_in(a_checkpoint_file(), access="teams", teams=(ours.team,))
    assert checkpoint_find(ours, "dream") == asset and checkpoint_find(theirs, "dream") is None


def test_p5_the_same_upload_for_another_team_is_usable_by_both():
    ours, theirs = a_caller("team-a"), a_caller("team-b", "eve")
    for caller in (ours, theirs):
        take_in(a_checkpoint_file(), access="teams", teams=(caller.team,))
    assert checkpoint_find(ours, "dream") == checkpoint_find(theirs, "dream") == Asset.objects.get()


def test_p5_an_upload_for_everybody_does_not_open_what_is_for_one_team():
    ours, theirs = a_caller("team-a"), a_caller("team-b", "eve")
    private = take_in(a_checkpoint_file(), access="teams", teams=(ours.team,))
    public = take_in(a_checkpoint_file())
    assert public.state == "quarantined" and "for some teams only" in public.reason
    assert checkpoint_find(ours, "dream") == private and checkpoint_find(theirs, "dream") is None


def test_the_same_weights_under_another_name_share_one_file(tmp_path):
    first, second = take_in(a_checkpoint_file()), take_in(a_checkpoint_file(), "other")
    assert first != second and first.file_key == second.file_key and len(stored(tmp_path)) == 1


def test_the_same_weights_have_one_yaml():
    first = take_in(a_checkpoint_file(), config=io.BytesIO(b"a: 1"))
    same, another = (take_in(a_checkpoint_file(), "other", config=io.BytesIO(text)) for text in (b"a: 1", b"a: 2"))
    assert same.state == "approved" and "without this YAML" in another.reason
    assert storages["assets"].open(first.config_key).read() == b"a: 1"


def test_import_asset_prints_name_hash_and_state(tmp_path, capsys):
    path = tmp_path / "dream.safetensors"
    path.write_bytes(a_checkpoint_file())
    path.with_suffix(".yaml").write_text("model: {}")
    call_command("import_asset", str(path), "--kind", "checkpoint", "--public")
    asset = Asset.objects.get()
    assert capsys.readouterr().out.split() == ["dream", asset.sha256, "approved"] and asset.config_key
    assert asset.is_default


def test_import_asset_tells_why_a_file_is_refused(tmp_path):
    path = tmp_path / "evil.ckpt"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(CommandError, match="a Python pickle"):
        call_command("import_asset", str(path), "--kind", "checkpoint")


def test_import_asset_takes_over_styles_and_replaces_those_of_known_names(tmp_path, capsys):
    path = tmp_path / "styles.csv"
    for prompt in ("oil painting", "{prompt}, sketch"):
        path.write_text(f'name,prompt,negative_prompt\nart,"{prompt}",blurry\n# a remark,,\n')
        call_command("import_asset", str(path), "--kind", "styles")
    assert capsys.readouterr().out.splitlines()[-1].endswith("approved (1 styles)")
    assert list(PromptStyle.objects.values_list("name", "prompt", "negative_prompt")) == [
        ("art", "{prompt}, sketch", "blurry")
    ]


def test_import_asset_refuses_a_styles_file_without_names(tmp_path):
    (tmp_path / "styles.csv").write_text("title,prompt\nart,oil\n")
    with pytest.raises(CommandError, match="columns name, prompt"):
        call_command("import_asset", str(tmp_path / "styles.csv"), "--kind", "styles")
    assert not PromptStyle.objects.exists()


def test_import_asset_for_a_team_that_does_not_exist_takes_nothing_in(tmp_path):
    (tmp_path / "dream.safetensors").write_bytes(a_checkpoint_file())
    with pytest.raises(CommandError, match="There is no team 'nobody'"):
        call_command("import_asset", str(tmp_path / "dream.safetensors"), "--kind", "checkpoint", "--team", "nobody")
    assert not Asset.objects.exists()


CONTROL_LAYER = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.mark.parametrize("prefix", ["", "control_model.", "controlnet."])
@pytest.mark.parametrize(("width", "base"), [(768, "sd1"), (2048, "sdxl"), (48, None)])
def test_a_controlnet_remembers_the_family_it_was_made_for(prefix, width, base):
    shapes = {f"{prefix}input_hint_block.0.weight": [4, 3, 3, 3], f"{prefix}{CONTROL_LAYER}": [4, width]}
    asset = take_in(safetensors(shapes), kind="controlnet")
    assert (asset.state, asset.metadata) == ("approved", {"base": base})


@pytest.mark.parametrize(
    ("sort", "name"),
    [
        ("Control-LoRA", "lora_controlnet"),
        ("IP-Adapter", "image_proj.norm.weight"),
        ("T2I-Adapter", "body.0.in_conv.weight"),
    ],
)
def test_control_networks_of_other_sorts_are_refused_by_their_name(sort, name):
    asset = take_in(safetensors({name: [4, 4]}), kind="controlnet")
    assert asset.state == "quarantined" and f"of the sort {sort}" in asset.reason
