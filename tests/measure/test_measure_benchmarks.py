"""Benchmarks in their authors' layouts, with the mistakes that are in them; and the one that is bundled."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from stand_ins import refused

from minipnp.files import hub
from minipnp.measure import benchmarks
from minipnp.measure.benchmarks import read_benchmark
from minipnp.measure.runs import RUNS, seed_of


def picture(place, size=(64, 64)):
    place.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(place)


def ti2i(folder):
    """As Wild-TI2I: pictures in data/, a list of real guidance and one of generated."""
    for name in ("data/horse.png", "data/panda/Cartoon_30.jpg"):
        picture(folder / name)
    real = [
        {
            "init_img": "./data/horse.png",
            "source_prompt": "a photo of a horse",
            "target_prompts": ["a toy", "a  bronze"],
        },
        {"init_img": "/ImageNetR-TI2I/panda/cartoon_30.jpg", "target_prompts": ["a panda"]},  # their machine's path
        {"init_img": "./data/lost.png", "source_prompt": "x", "target_prompts": ["y"]},
        {"source_prompt": "no picture, no seed", "target_prompts": ["y"]},
        {"init_img": "./data/horse.png", "target_prompts": []},
        "a row of text",
    ]
    fake = [{"source_prompt": "a cat", "seed": 7, "scale": 5.0, "ddim_steps": 50, "target_prompts": ["a dog", "a fox"]}]
    (folder / "wild-ti2i-real.yaml").write_text(yaml.safe_dump(real))
    (folder / "wild-ti2i-fake.yaml").write_text(yaml.safe_dump(fake))
    return folder


def test_ti2i_with_real_and_generated_guidance(tmp_path):
    b = read_benchmark(str(ti2i(tmp_path / "wild-ti2i")))
    assert b.name == "wild-ti2i" and b.layout == "ti2i"
    assert [(p.name, p.prompt) for p in b.pairs] == [
        ("wild-ti2i-fake-00-0", "a dog"), ("wild-ti2i-fake-00-1", "a fox"),
        ("wild-ti2i-real-00-0", "a toy"), ("wild-ti2i-real-00-1", "a bronze"), ("wild-ti2i-real-01-0", "a panda"),
    ]  # fmt: skip
    generated, horse, panda = b.pairs[0], b.pairs[2], b.pairs[4]
    assert (generated.image, generated.source, generated.seed, generated.scale) == (None, "a cat", 7, 5.0)
    assert horse.image == tmp_path / "wild-ti2i/data/horse.png" and horse.source == "a photo of a horse"
    assert panda.image == tmp_path / "wild-ti2i/data/panda/Cartoon_30.jpg" and panda.source == ""
    assert [name for name, *_ in b.groups] == ["wild-ti2i-fake-00", "data/horse", "/ImageNetR-TI2I/panda/cartoon_30"]
    assert len(b.bad) == 4
    for said, row in zip(("lost.png", "neither init_img", "target_prompts", "row 5"), b.bad, strict=True):
        assert said in row and "wild-ti2i-real.yaml" in row


def test_one_of_the_lists_alone(tmp_path):
    """Its pairs have the names, and so their noise the seeds, that they have among all lists."""
    place = ti2i(tmp_path)
    b, whole = read_benchmark(str(place / "wild-ti2i-fake.yaml")), read_benchmark(str(place))
    assert b.pairs == [pair for pair in whole.pairs if pair.kind == "wild-ti2i-fake"] and not b.bad


def test_a_row_before_another_changes_nothing_of_it(tmp_path):
    place = ti2i(tmp_path)
    before = {seed_of(pair) for pair in read_benchmark(str(place)).pairs}
    real = place / "wild-ti2i-real.yaml"
    real.write_text(yaml.safe_dump([{"init_img": "data/panda/cartoon_30.jpg", "target_prompts": ["a bear"]},
                                    *yaml.safe_load(real.read_text())]))  # fmt: skip
    after = read_benchmark(str(place)).pairs
    assert len(after) == 6 and before < {seed_of(pair) for pair in after}


def test_a_list_that_cannot_be_read_is_left_out_and_said(tmp_path, monkeypatch):
    place = ti2i(tmp_path / "wild")
    (place / "._wild-ti2i-real.yaml").write_bytes(b"\xff\xfe a zip made on a Mac has such files")
    (place / "broken.yaml").write_text("- {")
    monkeypatch.chdir(place)
    b = read_benchmark(".")
    assert b.name == "wild" and len(b.pairs) == 5
    assert [said for said in b.bad if "broken.yaml: cannot be read as YAML" in said] and len(b.bad) == 5


def pie(folder):
    picture(folder / "annotation_images/0_random_140/0.jpg", (512, 512))
    row = {
        "image_path": "0_random_140/0.jpg", "original_prompt": "a slanted bicycle on [the] road",
        "editing_prompt": "a slanted [rusty] bicycle on the road", "editing_instruction": "make it rusty",
        "editing_type_id": "7", "blended_word": "bicycle bicycle", "mask": [512 * 100 + 50, 3, 512 * 101 + 50, 2],
    }  # fmt: skip
    rows = {"000": row, "001": row | {"blended_word": "", "mask": []}, "002": row | {"image_path": "lost.jpg"},
            "003": row | {"mask": [1]}, "004": row | {"editing_type_id": "70"}, "005": {}}  # fmt: skip
    (folder / "mapping_file.json").write_text(json.dumps(rows))
    return folder


def test_pie_bench_without_its_brackets_and_with_its_masks(tmp_path):
    b = read_benchmark(str(pie(tmp_path)))
    first, second = b.pairs
    assert first.source == "a slanted bicycle on the road" and first.prompt == "a slanted rusty bicycle on the road"
    assert first.word == "bicycle=bicycle" and first.kind == "change material" and second.word is None
    mask = first.mask_at(512, 512)
    assert mask[1:-1, 1:-1].nonzero()[0].tolist() == [99, 99, 99, 100, 100]  # rows, without the frame
    assert mask[100, 50:54].tolist() == [True, True, True, False] and mask[101, 50:53].tolist() == [True, True, False]
    assert mask[0].all() and mask[-1].all() and mask[:, 0].all() and mask[:, -1].all()
    assert np.array_equal(first.mask_at(1024, 1024)[::2, ::2], mask)
    assert len(b.bad) == 4 and all(f"00{n}" in row for n, row in zip((2, 3, 4, 5), b.bad, strict=True))


def test_the_bundled_benchmark_is_whole_and_ships_its_pictures():
    b = read_benchmark("bundled")
    assert b.layout == "bundled" and len(b.pairs) == len(b.groups) == 96 and not b.bad
    choosing = read_benchmark(str(hub.WEIGHTS / "bundled/choosing"))
    assert choosing.layout == "bundled" and len(choosing.pairs) == 48 and not choosing.bad
    assert {p.kind for p in b.pairs} == {"style", "concept", "both", "silhouette"}
    assert sum(p.held_out for p in b.pairs) == 32
    for pair in b.pairs:
        before, after = pair.word.split("=")
        assert before in pair.source and after in pair.prompt and all(said in pair.prompt for said in pair.asked)
        assert {name for name, run in RUNS.items() if run.lacks(pair)} <= {"pnp-negative"}  # of silhouettes only
    with Image.open(b.pairs[0].image) as icon:
        assert icon.size == (128, 128)
    assert sum(file.stat().st_size for file in (hub.WEIGHTS / "bundled/benchmark").iterdir()) < 3e6


def test_the_first_n_are_among_the_first_n_plus_1():
    b = read_benchmark("bundled")
    few, more = ({p.name for p in b.some(n).pairs} for n in (10, 40))
    assert len(few) == 10 and few < more and len({p.kind for p in b.some(10).pairs}) >= 3
    assert b.some(None) == b


def test_seeds_are_the_list_s_or_follow_from_the_guidance(tmp_path):
    b = read_benchmark(str(ti2i(tmp_path)))
    assert seed_of(b.pairs[0]) == 7
    assert seed_of(b.pairs[2]) == seed_of(b.pairs[3]) != seed_of(b.pairs[4])


@pytest.mark.parametrize("name, text, said", [
    ("list.yaml", "- {init_img: [", "cannot be read as YAML"),
    ("list.yaml", "[]", "the list is empty"),
    ("mapping_file.json", "{", "cannot be read as JSON"),
    ("benchmark.json", '{"pairs": [{}]}', "nothing in it can be used: benchmark.json, pair 0: no 'image'"),
    ("notes.txt", "", "no benchmark"),
])  # fmt: skip
def test_what_is_no_benchmark_is_said_in_one_line(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    refused(lambda: read_benchmark(str(tmp_path)), said)


def test_a_picture_has_one_source(tmp_path):
    picture(tmp_path / "cat.png")
    row = {"image": "cat.png", "source": "a cat", "prompt": "a dog", "word": "cat=dog", "kind": "concept",
           "held_out": False, "asked": ["flat", "dog", "blue"]}  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps({"pairs": [row, row | {"source": "a tiger"}]}))
    b = read_benchmark(str(tmp_path))
    assert [p.prompt for p in b.pairs] == ["a dog"] and "another source" in b.bad[0]


@pytest.mark.parametrize("asked", [["flat", "dog"], "dog", ["flat", "dog", None]])
def test_what_an_icon_is_asked_for_are_three_words(tmp_path, asked):
    picture(tmp_path / "cat.png")
    row = {"image": "cat.png", "source": "a cat", "prompt": "a dog", "word": "cat=dog", "kind": "concept",
           "held_out": False, "asked": ["flat", "dog", "blue"]}  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps({"pairs": [row, row | {"asked": asked}]}))
    b = read_benchmark(str(tmp_path))
    assert len(b.pairs) == 1 and "three words" in b.bad[0]


def test_pictures_of_two_folders_may_share_a_name(tmp_path):
    rows = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "cat.png")
        rows += [{"image": f"{folder}/cat.png", "source": "a cat", "prompt": prompt, "word": "cat=dog", "kind": "both",
                  "held_out": False, "asked": ["noto", "dog", "teal"]} for prompt in ("a dog", "a wolf")]  # fmt: skip
    (tmp_path / "benchmark.json").write_text(json.dumps({"pairs": rows}))
    groups = read_benchmark(str(tmp_path)).groups.values()
    assert [{p.image.parent.name for p in pairs} for pairs in groups] == [{"a"}, {"b"}]


def test_a_benchmark_that_is_not_there():
    refused(lambda: read_benchmark("no-such-place"), "no benchmark 'no-such-place'", "bundled")
    assert benchmarks.PIE_KINDS[7] == "change material"
