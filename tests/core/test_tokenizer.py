"""Tokenizer: recorded ids of six CLIP tokenizers, a live transformers tokenizer, and the rules of the 77-token row."""

import gzip
import json
import random
import re
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import minipnp.tokenizer
from minipnp.errors import InputError
from minipnp.methods.words import positions
from minipnp.tokenizer import Tokenizer

CASES = {
    c["name"]: c for c in json.loads((Path(__file__).parents[1] / "data" / "tokenizer_cases.json").read_text())["cases"]
}

# The one text on which ours is not open_clip's: no text of a user becomes a begin or end token.
NOT_AS_OPEN_CLIP = {"special_oc"}
# Where open_clip (ftfy, html) and transformers 5 (neither) read a text differently: the table of docs/tokenizer.md.
NOT_AS_HF5 = {
    "html_amp", "html_mixed", "html_double", "caps_html",
    "curly_quotes", "mojibake", "fullwidth", "halfwidth_kana", "ligature",
    "control", "x1c", "bom", "greek_sigma",
    "special_oai", "special_noend",
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer()


@pytest.fixture(scope="module")
def hf():
    """transformers' CLIPTokenizer, from open_clip's table of merges: no download."""
    transformers = pytest.importorskip("transformers", minversion="5")
    table = Path(find_spec("open_clip").origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = [tuple(line.split()) for line in gzip.decompress(table.read_bytes()).decode().split("\n")[1:48895]]
    # The vocabulary in its order: 256 bytes (printable ones first), the same at the end of a word, merges, specials.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    words = (
        letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    )
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)


def row(tokenizer, text):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cut, tested below
        return tokenizer(text)[0].tolist()


@pytest.mark.parametrize("name", CASES)
def test_ids_are_open_clips(tokenizer, name):
    case = CASES[name]
    expected = case["differs"]["oai"] if name in NOT_AS_OPEN_CLIP else case["oc"]
    assert tokenizer.encode(case["text"]) == expected


def test_there_are_55_cases():
    assert len(CASES) == 55


def test_texts_on_which_transformers_differs_are_known(tokenizer):
    hf5 = {name: case["differs"].get("hf5", case["oc"]) for name, case in CASES.items()}
    assert {name for name, ids in hf5.items() if tokenizer.encode(CASES[name]["text"]) != ids} == NOT_AS_HF5


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "hf_padded77" in case])
def test_rows_are_sd1s(tokenizer, name):
    assert row(tokenizer, CASES[name]["text"]) == CASES[name]["hf_padded77"]


@pytest.mark.parametrize("name", CASES)
def test_recorded_ids_are_what_transformers_gives_today(tokenizer, hf, name):
    case = CASES[name]
    assert hf(case["text"], add_special_tokens=False).input_ids == case["differs"].get("hf5", case["oc"])
    if name not in NOT_AS_HF5:
        assert (
            row(tokenizer, case["text"])
            == hf(case["text"], padding="max_length", truncation=True, max_length=77).input_ids
        )


def test_any_text_keeps_open_clips_ids(tokenizer):
    """encode() splits at blanks and guards two strings; neither may change the ids of other texts."""
    plain = minipnp.tokenizer._open_clip_bpe()
    chance = random.Random(0)
    alphabet = ["a", "cat", "Photo", "'s", "'", "<", ">", "_", "|", "3", " ", "\t", "\n", "\x1c", "\x85", "\u3000"]
    alphabet += [
        "&amp;",
        "amp;lt;",
        "é",
        "\u0301",
        "🐱",
        "猫",
        "’",
        "ΟΔΟΣ",
        "İ",
        "\u200b",
        "</w>",
        "<start_of",
        "_text>",
    ]
    for _ in range(500):
        text = "".join(chance.choices(alphabet, k=12))
        ids = plain.encode(text)
        if not {49406, 49407} & set(ids):
            assert tokenizer.encode(text) == ids, text


def test_several_prompts_and_none(tokenizer):
    rows = tokenizer("a photo of a cat", "")
    assert rows.shape == (2, 77) and rows.dtype == torch.long
    assert rows[0].tolist() == [49406, 320, 1125, 539, 320, 2368] + [49407] * 71
    assert rows[1].tolist() == [49406] + [49407] * 76
    assert tokenizer().shape == (0, 77)


def test_75_tokens_fit_without_a_warning(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tokenizer("cat " * 75)[0].tolist() == [49406] + [2368] * 75 + [49407]


@pytest.mark.parametrize(
    "tail, cut",
    [
        ("Dog", "dog"),
        ("Red (dog)", "red ( dog )"),
        ("tree " * 25, ("tree " * 25).strip()),
        ("x " * 999, "x " * 998 + "x"),
    ],
)
def test_a_cut_is_quoted_and_keeps_the_end(tokenizer, tail, cut):
    with pytest.warns(UserWarning) as caught:
        ids = tokenizer("cat " * 75 + tail)
    assert ids[0].tolist() == [49406] + [2368] * 75 + [49407]
    assert [str(w.message) for w in caught] == [f"prompt is over 75 tokens; not read: {cut!r}"]
    assert caught[0].filename == __file__  # the caller's line, not the tokenizer's


@pytest.mark.parametrize(
    "text",
    [
        "<start_of_text>", "<END_OF_TEXT>", "a<start_of_text>b<end_of_text>", "<start_of_text><end_of_text>",
        "!<end_of_text>", "&lt;end_of_text&gt;", "&amp;lt;end_of_text&amp;gt;", "\uff1cend_of_text\uff1e",
        "<|startoftext|>", "<|endoftext|> x",
    ],
)  # fmt: skip
def test_no_text_becomes_a_special_token(tokenizer, text):
    assert not {49406, 49407} & set(tokenizer.encode(text))


@pytest.mark.parametrize("text", ["<start_of_text>", "a<start_of_text>b<end_of_text>", "!<end_of_text><end_of_text>?"])
def test_open_clips_special_strings_are_read_as_transformers_reads_them(tokenizer, hf, text):
    assert tokenizer.encode(text) == hf(text, add_special_tokens=False).input_ids


def test_decode(tokenizer):
    rows = tokenizer("A photo-realistic CAT, don't  panic 🐱")
    text = "a photo - realistic cat , don 't panic 🐱"
    assert tokenizer.decode(rows[0]) == text
    assert tokenizer.decode(rows[0].tolist()) == text
    assert tokenizer.decode([]) == "" and tokenizer.decode([49406, 49407]) == ""


def test_decode_refuses_what_is_no_token(tokenizer):
    with pytest.raises(KeyError):
        tokenizer.decode([49408])


@pytest.mark.parametrize(
    "prompt, word, expected",
    [
        ("a photo of a cat", "cat", [5]),
        ("a photo of a cat", "a", [1, 4]),
        ("A CAT, on a (cat)... 'Cat'", "cat", [2, 7, 10]),
        ("cats concatenate a cat", "cat", [7]),  # "concatenate" is con-cat-en-ate: a token "cat" at 3
        ("a cat", "CAT!", [2]),
        ("a photorealistic cat", "photorealistic", [2, 3]),
        ("a red apple, a red car and a Red, apple", "red apple", [2, 3, 10, 12]),
        ("a red apple", "a red apple", [1, 2, 3]),
        ("cat cat cat", "cat cat", [1, 2, 3]),
        ("an ultra-detailed cat", "ultra-detailed", [2, 3, 4]),
        ("a 'dog' here", "dog", [2, 3]),  # tokens "'d" and "og": the contraction rule takes the quote along
        ("“Café”… here", "CAFE\u0301", [2]),
        ("the 🐱, asleep", "🐱", [2]),
        ("a 🪄 and", "🪄", [2, 3, 4]),  # parts of one character
        ("salt & pepper", "&", [2]),
        ("salt &amp; pepper", "salt & pepper", [1, 2, 3]),
        ("<start_of_text> cat", "cat", [8]),
        ("<start_of_text>cat", "start_of_text>cat", [2, 3, 4, 5, 6, 7, 8]),
        ("x " * 74 + "cat", "cat", [75]),
    ],
)
def test_positions(tokenizer, prompt, word, expected):
    assert positions(tokenizer, prompt, word) == expected


@pytest.mark.parametrize("name", CASES)
def test_positions_point_at_the_words_tokens(tokenizer, name):
    """All the words of a text together: every token once, except those of punctuation around the words."""
    text = CASES[name]["text"]
    words, ids = tokenizer.split(text)[:70], tokenizer.encode(text)
    if words and len(ids) <= 75:
        everywhere = positions(tokenizer, text, text)
        left = tokenizer.decode([i for p, i in enumerate(ids, 1) if p not in everywhere])
        assert not re.search(r"\w", left.replace("_", ""))
        assert all(positions(tokenizer, text, word) for word in words)


@pytest.mark.parametrize(
    "prompt, word, message",
    [
        ("a Cat, on a mat", "dog", "'dog' is not in the prompt, its words: a, cat, on, mat"),
        ("cats concatenate", "cat", "'cat' is not in the prompt, its words: cats, concatenate"),
        ("a red car, an apple", "red apple", "'red apple' is not in the prompt, its words: a, red, car, an, apple"),
        ("a cat", " ", "' ' is not in the prompt, its words: a, cat"),
        ("", "cat", "'cat' is not in the prompt, its words: (none)"),
        ("x " * 75 + "cat", "cat", "'cat' is cut off, the prompt is over 75 tokens: shorten it"),
        ("cat " + "x " * 75 + "cat", "cat", "'cat' is cut off, the prompt is over 75 tokens: shorten it"),
        (
            "x " * 74 + "photorealistic",
            "photorealistic",
            "'photorealistic' is cut off, the prompt is over 75 tokens: shorten it",
        ),
    ],
)
def test_positions_refuses(tokenizer, prompt, word, message):
    with pytest.raises(InputError) as caught:
        positions(tokenizer, prompt, word)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "added, text, found",
    [
        ({"<cat-toy>"}, "a photo of <cat-toy>", "<cat-toy>"),
        ({"<cat-toy>"}, "A <CAT-TOY>'s &lt;x", "<cat-toy>"),
        ({"<cat-toy>"}, "&lt;cat-toy&gt;", "<cat-toy>"),
        ({"<Cat-Toy>"}, "a <Cat-Toy>", "<cat-toy>"),
        ({"<cat-toy>"}, "a cat toy", None),
        ({"<cat-toy>", "<cat-toy>_1"}, "<cat-toy>_1", "<cat-toy>_1"),
        ({"sks"}, "a sks dog", "sks"),
        ({"sks"}, "she asks, sks2", None),
        ({""}, "a cat", None),
        ({"a.b"}, "axb", None),
    ],
)
def test_added_words_are_refused(added, text, found):
    tokenizer = Tokenizer(added)
    if found is None:
        assert tokenizer.encode(text) == Tokenizer().encode(text)
        return
    with pytest.raises(InputError, match=re.escape(f"{found!r} is a word that this model's own tokenizer adds")):
        tokenizer("", text)


def test_bytes_that_are_not_text_are_refused(tokenizer):
    from_latin1_terminal = b"caf\xe9".decode(errors="surrogateescape")
    with pytest.raises(InputError, match="not valid UTF-8: 'caf.udce9'"):
        tokenizer(from_latin1_terminal)


def test_open_clip_is_not_imported_and_still_can_be():
    code = """if True:
        import sys
        from minipnp.tokenizer import Tokenizer
        ids = Tokenizer().encode("a cat")
        assert not {"open_clip", "torchvision", "timm", "transformers"} & set(sys.modules), "imported"
        import open_clip
        assert open_clip.tokenize(["a cat"])[0, :5].tolist() == [49406, *ids, 49407, 0]
    """
    folder = Path(minipnp.tokenizer.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
