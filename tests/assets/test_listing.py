"""What lists and infotexts show of a file: A1111's hashes, a LoRA's other name and its metadata."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path

import pytest

from assets.listing import MAX_METADATA_BYTES, alias, embedding_facts, embeddings_inside, listed_hash, shown_metadata
from assets.scanning import header_read
from tests.engine.recordings import MORE, REFERENCE, needs_recordings
from tests.weights import framed

KEY = {"lora_unet_a.lora_up.weight": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}


def lora(metadata: dict[str, str]) -> bytes:
    return framed({**KEY, "__metadata__": metadata}, b"\1" * 4)


def shown_hash(kind: str, data: bytes) -> str:
    metadata = header_read(io.BytesIO(data), size_bytes=len(data)).metadata
    return listed_hash(kind, io.BytesIO(data), sha256=hashlib.sha256(data).hexdigest(), metadata=metadata)


def test_a_loras_hash_is_that_of_its_tensors_whatever_its_metadata_say():
    assert (
        shown_hash("lora", lora({"a": "b"}))
        == shown_hash("lora", lora({}))
        == hashlib.sha256(b"\1" * 4).hexdigest()[:12]
    )


def test_a_loras_own_hash_counts_where_it_has_one():
    assert shown_hash("lora", lora({"sshs_model_hash": "0123456789abcdef"})) == "0123456789ab"


def test_a_converted_loras_hash_is_that_of_the_uploaded_file():
    assert listed_hash("lora", io.BytesIO(b""), sha256="f" * 64, metadata=None) == "f" * 12


@pytest.mark.parametrize(("name", "shown"), [("ink", "ink"), ("in\0k", ""), ("x" * 300, "")])
def test_a_lora_is_also_called_by_the_name_it_was_trained_under(name, shown):
    assert alias("lora", {"ss_output_name": name}) == shown and alias("vae", {"ss_output_name": name}) == ""


def test_metadata_are_shown_important_ones_first_and_opened():
    metadata = {"ss_x": "1", "ss_tag_frequency": '{"ink": {"car": 3}}', "ss_resolution": "512", "broken": "{"}
    shown = shown_metadata("lora", metadata)
    assert list(shown) == ["ss_resolution", "ss_tag_frequency", "ss_x", "broken"]
    assert shown["ss_tag_frequency"] == {"ink": {"car": 3}} and shown["broken"] == "{"


def test_metadata_that_no_database_takes_are_left_out():
    bad = {"a": "\0", "b": "\ud800", "c": '{"d": "\\u0000"}', "large": "x" * MAX_METADATA_BYTES, "fine": "1"}
    assert shown_metadata("lora", bad) == {"fine": "1"}


@needs_recordings
def test_loras_are_listed_as_a1111_lists_them():
    for entry in json.loads((MORE / "networks/cases/get_loras/response.json").read_text()):
        metadata = header_of(found(f"{entry['name']}.safetensors")).metadata
        assert shown_metadata("lora", metadata) == entry["metadata"]
        assert (alias("lora", metadata) or entry["name"]) == entry["alias"]


@needs_recordings
def test_lora_hashes_are_those_of_recorded_infotexts():
    infotexts = (path.read_text() for path in MORE.glob("networks/cases/*/response.json"))
    pairs = {pair for text in infotexts for pair in re.findall(r"(tiny\w+): ([0-9a-f]{12})", text)}
    assert len(pairs) > 10
    for name, digits in pairs:
        assert shown_hash("lora", found(f"{name}.safetensors").read_bytes()) == digits


@needs_recordings
def test_controlnet_hashes_are_those_of_recorded_infotexts():
    infotexts = (path.read_text() for path in MORE.glob("controlnet/cases/*/response.json"))
    pairs = {pair for text in infotexts for pair in re.findall(r"(tiny-control-\w+) \[([0-9a-f]{8})\]", text)}
    assert pairs
    for name, digits in pairs:
        assert shown_hash("controlnet", found(f"{name}.safetensors").read_bytes()) == digits


def found(name: str) -> Path:
    return next(REFERENCE.glob(f"tiny-*/**/{name}"))


def header_of(path: Path):
    with path.open("rb") as file:
        return header_read(file, size_bytes=path.stat().st_size)


def test_embeddings_inside_a_lora_are_listed_with_their_text_encoders():
    tensors = ["bundle_emb.ink.string_to_param.*", "bundle_emb.xl.clip_l", "bundle_emb.xl.clip_g", "lora_unet_a.alpha"]
    assert embeddings_inside("lora", tensors) == {"ink": 1, "xl": 2} and embeddings_inside("vae", tensors) == {}


def test_names_inside_a_lora_that_no_database_takes_are_left_out():
    assert embeddings_inside("lora", ["bundle_emb.a\0.emb_params", f"bundle_emb.{'x' * 300}.emb_params"]) == {}


@pytest.mark.parametrize(
    ("shapes", "encoders", "shape", "vectors"),
    [
        ({"emb_params": (3, 768)}, 1, 768, 3),
        ({"emb_params": (768,)}, 1, 768, 1),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, 2, 2048, 2),
    ],
)
def test_an_embedding_shows_how_wide_and_how_many_its_vectors_are(shapes, encoders, shape, vectors):
    facts = embedding_facts(shapes, {})
    assert (facts["encoders"], facts["shape"], facts["vectors"]) == (encoders, shape, vectors)


def test_an_embedding_shows_what_its_file_says_of_its_training():
    said = {"step": 500, "sd_checkpoint": "abc", "sd_checkpoint_name": 7}
    facts = embedding_facts({"emb_params": (1, 768)}, {"embedding": json.dumps(said)})
    assert (facts["step"], facts["sd_checkpoint"], facts["sd_checkpoint_name"]) == (500, "abc", None)
