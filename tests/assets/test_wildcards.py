"""Wildcard files: taken over by name, seen by their team, found by names with a star."""

from __future__ import annotations

import io

import pytest
from django.core.management import CommandError, call_command

from assets.models import Wildcard
from assets.wildcards import MAX_BYTES, lines_for, wildcards_import
from common.errors import InvalidRequestError
from tests.factories import a_caller

pytestmark = pytest.mark.django_db


def take(name: str, text: str, team=None) -> int:
    return wildcards_import(file=io.StringIO(text), name=name, team=team)


def test_a_file_is_taken_over_without_remarks_and_replaces_the_one_of_its_name():
    assert take("colours/warm", "# warm ones\r\nred\r\n\r\n  yellow \n") == 2
    assert Wildcard.objects.get().text == "red\nyellow"
    take("colours/warm", "orange")
    assert Wildcard.objects.get().text == "orange"


@pytest.mark.parametrize("name", ["", "a__b", "a*", "_a", "x" * 201, "a\nb"])
def test_names_that_no_prompt_could_call_are_refused(name):
    with pytest.raises(InvalidRequestError, match="wildcard's name"):
        take(name, "red")
    assert not Wildcard.objects.exists()


@pytest.mark.parametrize("text", ["", "# remarks only\n\n", "x" * (MAX_BYTES + 1), "ä" * MAX_BYTES])
def test_files_without_lines_or_beyond_all_measure_are_refused(text):
    with pytest.raises(InvalidRequestError, match="at least one line"):
        take("colours", text)
    assert not Wildcard.objects.exists()


def test_a_team_sees_public_files_and_its_own_which_win():
    mine, theirs = a_caller(), a_caller("team-b", "bob")
    take("colours", "red")
    take("colours", "blue", team=mine.team)
    take("secret", "x", team=mine.team)
    assert lines_for(mine)("colours") == ["blue"] and lines_for(theirs)("colours") == ["red"]
    assert lines_for(mine)("secret") == ["x"] and lines_for(theirs)("secret") == []


def test_a_star_stands_for_any_text_and_no_file_counts_twice():
    caller = a_caller()
    for name, text in (("colours-warm", "red"), ("colours-cold", "blue\ngreen"), ("places", "wood")):
        take(name, text)
    take("colours-cold", "violet", team=caller.team)
    assert lines_for(caller)("colours-*") == ["violet", "red"] and lines_for(caller)("none*") == []


def test_import_asset_takes_wildcards_over_under_the_files_stem_or_another_name(tmp_path, capsys):
    path = tmp_path / "colours.txt"
    path.write_text("red\nblue\n")
    call_command("import_asset", str(path), "--kind", "wildcards")
    call_command("import_asset", str(path), "--kind", "wildcards", "--name", "my/colours")
    assert capsys.readouterr().out.splitlines()[-1].endswith("approved (2 lines)")
    assert sorted(Wildcard.objects.values_list("name", flat=True)) == ["colours", "my/colours"]
    path.write_text("")
    with pytest.raises(CommandError, match="at least one line"):
        call_command("import_asset", str(path), "--kind", "wildcards")
