"""Network tags and embedding names in prompts, as the web side reads them to pin files."""

from __future__ import annotations

import time

import pytest

from gpuworker.contract.prompts import NetworkTag, embedding_names_in, network_tags, strip_network_tags


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a <lora:style>", NetworkTag("lora", "style")),
        ("<lora:style:0.5>", NetworkTag("lora", "style", 0.5, 0.5)),
        ("<lyco:style:0.5:0.8>", NetworkTag("lora", "style", 0.5, 0.8)),
        ("<lora:style:0.5:0.8:4>", NetworkTag("lora", "style", 0.5, 0.8, 4)),
        ("<lora:style:te=0.5:unet=-1:dyn=8>", NetworkTag("lora", "style", 0.5, -1.0, 8)),
        ("<lora:style:te=0.5>", NetworkTag("lora", "style", 0.5, 0.5)),
        ("<lora:style:0.5:unet=1>", NetworkTag("lora", "style", 0.5, 1.0)),
        ("<lora:unet=1:style>", NetworkTag("lora", "style", 1.0, 1.0)),
        ("<lora:style:much>", NetworkTag("lora", "style")),
        ("<lora:style:1:1:1e300>", NetworkTag("lora", "style", dyn=1_000_000)),
        ("<lora:style:nan:inf>", NetworkTag("lora", "style")),
        ("<lora:my style v1.5:1>", NetworkTag("lora", "my style v1.5")),
        ("<hypernet:style>", NetworkTag("hypernet", "style")),
        ("<hypernet:style:0.3>", NetworkTag("hypernet", "style", 0.3, 0.3)),
    ],
)
def test_tag_is_read(prompt, expected):
    assert network_tags(prompt) == [expected]
    assert strip_network_tags(prompt).strip(" a") == ""


def test_tags_keep_their_order_and_unknown_types_are_only_removed():
    prompt = "x <lora:b:1> y <segment:a> <hypernet:c> <lora:b:2>z"
    assert [(tag.kind, tag.name, tag.te) for tag in network_tags(prompt)] == [
        ("lora", "b", 1.0),
        ("hypernet", "c", 1.0),
        ("lora", "b", 2.0),
    ]
    assert strip_network_tags(prompt) == "x  y   z"


@pytest.mark.parametrize("prompt", ["a < b", "<lora>", "<lora:>", "<:x>", "<lora:x", "a <3 b> c", "<lo ra:x>"])
def test_what_is_no_tag_is_text(prompt):
    assert network_tags(prompt) == []
    assert strip_network_tags(prompt) == prompt


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a style", ["style"]),
        ("a STYLE, x", ["style"]),
        ("(style:1.2)[style]", ["style"]),
        ("my-style", ["my-style", "style"]),
        ("styles", []),
        ("restyle", ["style"]),
        ("style2", ["style"]),
        ("my_style", ["style"]),
        ("big  Cat\nhere", ["big cat"]),
        (r"emb \(v2\)", ["emb (v2)"]),
        ("<b>", []),
        ("", []),
    ],
)
def test_names_are_found_where_the_tokenizer_would(prompt, expected):
    names = {"style", "my-style", "big cat", "emb (v2)", " "}
    assert embedding_names_in(prompt, names) == expected


@pytest.mark.parametrize("prompt", ["<a:" * 5_000 + ">" + "<a:" * 5_000, "<" + "a" * 16_000], ids=["tags", "type"])
def test_hostile_prompt_is_read_in_time(prompt):
    begin = time.thread_time()  # of this thread alone: the machine may do much else
    strip_network_tags(prompt)
    assert time.thread_time() - begin < 3
