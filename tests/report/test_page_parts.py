"""Pages as files: what is escaped, where they may go, what places are called."""

import json
import math
import stat
from pathlib import Path

import pytest

from channelwise.errors import InputError
from channelwise.report.page.document import percent, script_json, significant
from channelwise.report.page.files import check_page_path, write_page
from channelwise.report.page.places import joined, model_title, place_of, short_places, site_names, site_rows


def test_data_in_a_script_ends_no_script_and_says_the_same() -> None:
    data = {"a": ["</script><!--", "&amp;", "\u2028"], "b": {"c": 1.5}}
    text = script_json(data)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == data


def test_numbers_that_json_does_not_know_become_null() -> None:
    assert json.loads(script_json([math.nan, math.inf, (1, -math.inf)])) == [None, None, [1, None]]


def test_numbers_as_people_read_them() -> None:
    values = (0.0, 0.034, 1.24, 12.4, 1234.0, 3e-6, 2e7, None, math.nan)
    assert [significant(x) for x in values] == ["0", "0.034", "1.2", "12", "1,234", "3.0e-06", "2.0e+07", "–", "–"]
    assert [percent(x) for x in (0.12, 0.00034, None)] == ["12 %", "0.034 %", "–"]


def test_a_page_is_an_html_file_in_a_folder_that_is_there(tmp_path: Path) -> None:
    there = tmp_path / "there.html"
    there.write_text("old")
    check_page_path(tmp_path / "new.html", overwrite=False)
    check_page_path(there, overwrite=True)
    (tmp_path / "folder.html").mkdir()
    for path, said in (
        (there, "--overwrite"),
        (tmp_path / "page.txt", r"ends in \.html"),
        (tmp_path / "folder.html", "is a folder"),
        (tmp_path / "missing" / "page.html", "is no folder"),
        (there / "page.html", "is no folder"),
    ):
        with pytest.raises(InputError, match=said):
            check_page_path(path, overwrite=False)


def test_a_page_is_written_whole_readable_for_all_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    write_page("new", path)
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "other").write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        write_page("\ud800", path)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_places_are_names_within_a_block_with_experts_as_one() -> None:
    assert place_of("model.layers.3.mlp.experts.7.down_proj", 3) == "mlp.experts.*.down_proj"
    assert place_of("transformer.h.12.attn.c_attn", 12) == "attn.c_attn"
    assert place_of("lm_head", None) == "lm_head"


def test_short_places_keep_what_tells_them_apart() -> None:
    places = ["attention.self.query", "attention.output.dense", "output.dense", "intermediate.dense", "query"]
    short = short_places(places)
    assert short["attention.self.query"] == "self.query" and short["query"] == "query"
    assert short["intermediate.dense"] == "intermediate.dense"
    assert len(set(short.values())) == len(places)


def test_layers_that_read_one_input_have_one_name() -> None:
    assert joined(["q_proj", "k_proj", "v_proj"]) == "q,k,v_proj"
    assert joined(["query", "key", "value"]) == "query, key, value"
    assert joined(["out_proj"]) == "out_proj"


def test_sites_of_experts_share_a_row_and_have_names_of_their_own() -> None:
    sites = [
        {"block": 0, "linears": [f"model.layers.0.mlp.experts.{expert}.{part}_proj" for part in ("gate", "up")]}
        for expert in range(2)
    ]
    assert site_rows(sites) == ["gate,up_proj", "gate,up_proj"]
    assert site_names(sites) == ["gate,up_proj 0", "gate,up_proj 1"]


def test_a_heading_has_a_folders_name_and_a_hub_name_whole() -> None:
    names = ("/data/models/opt-8m/", "./opt-8m", "facebook/opt-1.3b", "demo", "/")
    assert [model_title(name) for name in names] == ["opt-8m", "opt-8m", "facebook/opt-1.3b", "demo", "/"]
