"""Templates of prompts: what they become, that a seed decides it, and that nobody can make them cost too much."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

import pytest

from renderjobs.prompt_templates import MOST_NESTED, TemplateError, combinations, resolved

FILES: Mapping[str, Sequence[str]] = {
    "season": ["summer", "{autumn|fall}", "winter"],
    "place": ["at __season__'s end", "in a wood"],
    "rare": ["0::never", "always"],
    "colours/warm": ["red", "yellow"],
    "myself": ["__myself__"],
    "growing": ["__growing2__ __growing2__"],
    "broken": ["{a|b"],
    **{f"growing{step}": [f"__growing{step + 1}__ __growing{step + 1}__"] for step in range(2, 18)},
    "growing18": ["x"],
}


def lines(name: str) -> Sequence[str]:
    return FILES.get(name, ())


def drawn(template: str, count: int = 200) -> Counter[str]:
    return Counter(resolved(template, range(count), lines))


def every(template: str, most: int = 100) -> list[str]:
    return combinations(template, most, lines)


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("a cat", ["a cat"]),
        ("", [""]),
        ("a {red|blue} cat", ["a red cat", "a blue cat"]),
        ("{a|b} {1|2}", ["a 1", "a 2", "b 1", "b 2"]),
        ("{a|{b|c} d}", ["a", "b d", "c d"]),
        ("{a||b}", ["a", "", "b"]),
        ("{2$$a|b|c}", ["a,b", "a,c", "b,a", "b,c", "c,a", "c,b"]),
        ("{1-2$$ and $$a|b}", ["a", "b", "a and b", "b and a"]),
        ("{-2$$a|b}", ["a", "b", "a,b", "b,a"]),
        ("{2-$$a|b}", ["a,b", "b,a"]),
        ("{9$$a|b}", ["a,b", "b,a"]),
        ("{0$$a|b}!", ["!"]),
        ("{0.5::a|2::b}", ["a", "b"]),
        ("__season__", ["summer", "autumn", "fall", "winter"]),
        ("{2$$ $$__colours/warm__}", ["red yellow", "yellow red"]),
        ("(a:1.2) [b|c] d|e $5", ["(a:1.2) [b|c] d|e $5"]),
        ("a __ b", ["a __ b"]),
    ],
)
def test_a_template_can_become(template, wanted):
    assert every(template) == wanted
    assert set(drawn(template)) == set(wanted)


def test_the_same_seed_gives_the_same_prompt_and_others_give_others():
    template = "{a|b|c|d} {e|f|g|h} __place__"
    assert resolved(template, [7, 8, 7], lines)[0] == resolved(template, [7], lines)[0]
    assert resolved(template, [7, 8, 7], lines)[2] == resolved(template, [7], lines)[0]
    assert len(set(resolved(template, range(50), lines))) > 20


def test_what_follows_from_a_seed_does_not_change_from_one_release_to_the_next():
    prompts = resolved("{a|b|c|d} {2$$e|f|g} __season__", [1, 2, 3], lines)
    assert prompts == ["c e,f fall", "a g,f summer", "c f,g autumn"]


def test_weights_decide_how_often():
    counted = drawn("{9::often|1::seldom|0::never}", 1000)
    assert 850 < counted["often"] < 950 and counted["never"] == 0
    assert drawn("__rare__") == {"always": 200}


def test_no_option_is_chosen_twice():
    assert all(len(set(prompt.split(","))) == 3 for prompt in drawn("{3$$a|b|c|d}"))


def test_only_so_many_combinations_are_made_as_are_asked_for():
    started = time.process_time()
    assert combinations("{a|b|c|d}" * 500, 3, lines) == ["a" * 499 + last for last in "abc"]
    assert len(combinations("{9$$" + "|".join("abcdefghij") + "}", 5, lines)) == 5
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("a {b|c", "opened at character 3 is not closed"),
        ("a } b", "character 3 has no opening one"),
        ("{" * 100 + "a" + "}" * 100, f"more than {MOST_NESTED} deep"),
        ("${x=red} cat", "variable at character 1"),
        ("{3-1$$a|b|c}", "ends below its beginning"),
        ("__nobody__", "'nobody' is unknown"),
        ("__myself__", f"'myself' is nested more than {MOST_NESTED} deep"),
        ("__growing__", "more than 20000 choices"),
        ("__broken__", "is not closed"),
    ],
)
@pytest.mark.parametrize("expand", [drawn, every], ids=["by seed", "all"])
def test_what_cannot_be_expanded_is_refused_with_its_reason(template, message, expand):
    with pytest.raises(TemplateError, match=message.replace("$", r"\$")):
        expand(template)


@pytest.mark.parametrize("text", ["{", "__", "_", "{a|", "__a", "{2$$", "1::", "{1::", "$$"])
def test_long_templates_are_read_in_a_moment(text):
    started = time.process_time()
    with suppress(TemplateError):
        every(text * (16_384 // len(text)))
    assert time.process_time() - started < 2
