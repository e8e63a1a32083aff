"""Fetching weights, against a small hub on this machine and with huggingface_hub's own functions."""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
import warnings
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from minipnp.errors import InputError
from minipnp.files import hub, hub_faults

COMMIT = "c" * 40
NAMES = [f"{stem}{variant}.safetensors" for stem in hub.STEMS for variant in ("", ".fp16")] + list(hub.CONFIGS)
CONTENT = {name: f"content of {name}".encode() * 1000 for name in NAMES}


class Handler(BaseHTTPRequestHandler):
    """The three requests that are used: a revision's commit, its list of files, a file."""

    def do_GET(self):
        local = self.server.hub
        if "agent" not in self.path:  # a request of huggingface_hub's own, once per process
            local.asked.append(f"{self.command} {self.path}")
        _, _, path = self.path.partition("/resolve/")
        if local.status:
            return self.answer(local.status)
        if local.refuses_tokens and self.headers.get("Authorization"):
            return self.answer(401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
        if "/tree/" in self.path:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in local.files.items()]
            return self.answer(200, json.dumps(tree).encode())
        if self.path.startswith("/api/models/"):
            return self.answer(200, json.dumps({"id": "a/b", "sha": COMMIT, "siblings": []}).encode())
        name = path.partition("/")[2]
        if name in local.files:
            return self.answer(200, local.files[name])
        return self.answer(404, headers={"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def answer(self, status, body=b"", headers=None):
        if self.command == "GET" and (start := self.headers.get("Range")):
            begin = int(start.removeprefix("bytes=").rstrip("-"))
            status, body = (206, body[begin:]) if begin < len(body) else (416, b"")
            self.server.hub.asked[-1] += f" {start}"
        self.send_response(status)
        commit = hub.REVISION if hub.REVISION in self.path else COMMIT
        sent = {"Content-Length": len(body), "ETag": hashlib.sha1(body).hexdigest(), "X-Repo-Commit": commit}
        for key, value in (sent | (headers or {})).items():
            if key not in self.server.hub.leaves_out:
                self.send_header(key, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A hub with the files of SD-1.5, small ones: `files` it has, `status` it fails with, what was `asked` of it.

    refuses_tokens: whatever they are. leaves_out: headers that it does not send.
    """
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = SimpleNamespace(files=dict(CONTENT), status=None, asked=[], refuses_tokens=False, leaves_out=())
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    point_to(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in (
        *hub_faults.TOKENS,
        *hub_faults.PROXIES,
        *map(str.lower, hub_faults.PROXIES),
        *hub_faults.CERTIFICATES,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    known = {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items()}
    monkeypatch.setattr(hub, "CONFIGS", {name: known[name] for name in hub.CONFIGS})
    for dtype, files in hub.SAFETENSORS.items():
        monkeypatch.setitem(hub.SAFETENSORS, dtype, {name: known[name] for name in files})
    yield server.hub
    server.shutdown()
    server.server_close()
    huggingface_hub.close_session()


def point_to(endpoint, monkeypatch):
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def files_in(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(variant):
    return {name: CONTENT[name] for name in [f"{stem}{variant}.safetensors" for stem in hub.STEMS] + list(hub.CONFIGS)}


@pytest.mark.parametrize("dtype, variant", [("fp16", ".fp16"), ("fp32", "")])
def test_fetch(local, tmp_path, dtype, variant):
    said = []
    assert hub.fetch(tmp_path / "sd15", dtype, say=said.append) == tmp_path / "sd15"
    assert files_in(tmp_path / "sd15") == expected(variant)  # and nothing of the download stays
    assert hub.is_model(tmp_path / "sd15") and all(hub.REVISION in request for request in local.asked)
    local.asked.clear()
    hub.fetch(tmp_path / "sd15", dtype, say=said.append)
    assert local.asked == [] and "nothing to fetch" in said[-1]


def test_size_and_licence_come_first(local, tmp_path):
    said = []
    hub.fetch(tmp_path / "sd15", say=lambda text: said.append((text, list(local.asked))))
    text, asked = said[0]
    assert asked == [] and "GB" in text and "Open RAIL-M" in text and "https://" in text and "Attachment A" in text


def test_the_published_sizes_add_up():  # what is said and what the disk is asked for
    totals = {dtype: sum(size for size, _ in files.values()) for dtype, files in hub.SAFETENSORS.items()}
    assert totals == {"fp16": 2132605510, "fp32": 4265076690}
    digests = [digest for files in (*hub.SAFETENSORS.values(), hub.CONFIGS) for _, digest in files.values()]
    assert len(set(digests)) == 9 and all(len(digest) == 64 for digest in digests)


def test_only_what_is_missing_is_fetched(local, tmp_path):
    hub.fetch(tmp_path / "sd15")
    (tmp_path / "sd15" / "vae" / "config.json").unlink()
    local.asked.clear()
    hub.fetch(tmp_path / "sd15")
    assert local.asked and all("vae/config.json" in request for request in local.asked)


def test_a_download_goes_on_in_the_next_run(local, tmp_path):
    name = f"{hub.STEMS[0]}.fp16.safetensors"
    part = tmp_path / "sd15" / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[name][:5000])
    assert not hub.is_model(tmp_path / "sd15")
    hub.fetch(tmp_path / "sd15")
    assert files_in(tmp_path / "sd15") == expected(".fp16")
    assert [request.split()[-1] for request in local.asked if "bytes=" in request] == ["bytes=5000-"]


@pytest.mark.parametrize("more", [b"", b"more"], ids=["complete", "longer than the file"])
def test_a_part_of_which_no_rest_can_be_asked(local, tmp_path, more):
    name = f"{hub.STEMS[0]}.fp16.safetensors"
    part = tmp_path / "sd15" / f"{name}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[name] + more)
    hub.fetch(tmp_path / "sd15")
    assert files_in(tmp_path / "sd15") == expected(".fp16")
    asked = [request for request in local.asked if name in request]
    assert len(asked) == (2 if more else 0) and not any("bytes=" in request for request in asked)


def test_what_is_no_hub_is_not_taken_for_one(local, tmp_path):
    local.files = dict.fromkeys(local.files, b"<html>please log in</html>")
    with pytest.raises(InputError, match="has 26 bytes there, expected"):
        hub.fetch(tmp_path / "sd15")
    assert not (tmp_path / "sd15").exists()


def test_a_folder_that_cannot_be_written(local, tmp_path):
    (tmp_path / "sd15").mkdir()
    (tmp_path / "sd15" / "unet").touch()
    with pytest.raises(InputError, match="sd15/unet: cannot be written"):
        hub.fetch(tmp_path / "sd15")


def test_a_file_that_differs_is_refused(local, tmp_path):
    name = "vae/diffusion_pytorch_model.fp16.safetensors"
    local.files[name] = CONTENT[name][:-1] + b"!"
    for _ in range(2):  # a second run does not find it in the download's leftovers either
        with pytest.raises(InputError, match="not the published file.*not kept"):
            hub.fetch(tmp_path / "sd15")
        assert not list((tmp_path / "sd15").rglob("vae/*.safetensors")) and not hub.is_model(tmp_path / "sd15")
    local.files[name] = CONTENT[name]
    hub.fetch(tmp_path / "sd15")
    assert files_in(tmp_path / "sd15") == expected(".fp16")


def test_a_file_of_the_users_that_differs_is_named_and_kept(local, tmp_path):
    file = tmp_path / "sd15" / "unet" / "config.json"
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(InputError, match="unet/config.json: not the published file"):
        hub.fetch(tmp_path / "sd15")
    assert file.read_text() == "mine" and local.asked == []


def test_no_room_on_the_disk(local, tmp_path, monkeypatch):
    size = sum(len(content) for content in expected(".fp16").values())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(InputError, match="GB needed.*make room"):
        hub.fetch(tmp_path / "sd15")
    assert local.asked == [] and not (tmp_path / "sd15").exists()
    part = tmp_path / "sd15" / f"{hub.STEMS[0]}.fp16.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT[f"{hub.STEMS[0]}.fp16.safetensors"][:1])  # what is there already needs no more room
    hub.fetch(tmp_path / "sd15")


def test_without_network(local, tmp_path, monkeypatch):
    point_to("http://127.0.0.1:9", monkeypatch)  # nobody listens there
    with pytest.raises(InputError, match="cannot be fetched from http://127.0.0.1:9 .*by hand") as error:
        hub.fetch(tmp_path / "sd15")
    assert "\n" not in str(error.value) and "unet/diffusion_pytorch_model.fp16.safetensors" in str(error.value)
    assert not (tmp_path / "sd15").exists()
    with pytest.raises(InputError, match="a/b: cannot be fetched"):
        hub.resolve("a/b")


def test_offline_mode(local, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set.*by hand"):
        hub.fetch(tmp_path / "sd15")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.resolve("a/b")
    assert local.asked == []


def test_offline_takes_what_the_hubs_cache_has(local, tmp_path, monkeypatch):
    for name in expected(".fp16"):
        huggingface_hub.hf_hub_download(hub.SD15, name, revision=hub.REVISION)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    hub.fetch(tmp_path / "sd15")
    assert files_in(tmp_path / "sd15") == expected(".fp16")


def test_a_damaged_file_in_the_hubs_cache_is_not_taken(local, tmp_path):
    name = f"{hub.STEMS[1]}.fp16.safetensors"
    with open(huggingface_hub.hf_hub_download(hub.SD15, name, revision=hub.REVISION), "r+b") as file:
        file.write(b"!")
    hub.fetch(tmp_path / "sd15")
    assert files_in(tmp_path / "sd15") == expected(".fp16")


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_hub_that_refuses(local, tmp_path, status):
    local.status = status
    for call in (lambda: hub.fetch(tmp_path / "sd15"), lambda: hub.resolve("a/b")):
        with pytest.raises(InputError) as error:
            call()
        assert "\n" not in str(error.value) and "the bundled model needs no download" in str(error.value)


def test_a_mirror(local, tmp_path):
    hub.fetch(tmp_path / "sd15", repo="else/where")
    assert files_in(tmp_path / "sd15") == expected(".fp16")
    assert all(
        request.split()[1].startswith("/else/where/resolve/main/") for request in local.asked if "HEAD" in request
    )


def test_resolve_takes_short_names_and_paths(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, fix in (("sd15", "make weights"), ("bundled", "git checkout")):
        (tmp_path / name / "unet").mkdir(parents=True)
        (tmp_path / name / "unet" / "a.safetensors").touch()  # not whole
        with pytest.raises(InputError, match=fix):
            hub.resolve(name, tmp_path)
    shutil.rmtree(tmp_path / "sd15")
    hub.fetch(tmp_path / "sd15")
    assert hub.resolve("sd15", tmp_path) == tmp_path / "sd15"
    (tmp_path / "my model.safetensors").touch()
    assert hub.resolve("my model.safetensors").samefile(tmp_path / "my model.safetensors")
    assert hub.resolve("./sd15").samefile(tmp_path / "sd15")
    local.asked.clear()
    for model in (
        "",
        "nope",
        "no/such/model",
        "sd15/nope",
        "a/b.safetensors",
        "a/b.ckpt",
        "../c/d",
        "~nobody/x",
        "a/ b",
    ):
        with pytest.raises(InputError, match="hub id like .*, sd15 or bundled"):
            hub.resolve(model)
    assert local.asked == []  # a mistyped path is not looked for on the hub


@pytest.mark.parametrize("half, variant", [(True, ".fp16"), (False, "")])
def test_resolve_fetches_a_hub_id_once(local, half, variant, monkeypatch):
    folder = hub.resolve("a/b", half=half)
    assert files_in(folder) == expected(variant)
    local.asked.clear()
    assert hub.resolve("a/b", half=half) == folder and local.asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.resolve("a/b", half=half) == folder


def test_resolve_takes_the_other_files_where_a_hub_id_has_no_fp16(local):
    for stem in hub.STEMS[1:]:
        del local.files[f"{stem}.fp16.safetensors"]
    names = {f"{hub.STEMS[0]}.fp16.safetensors", f"{hub.STEMS[1]}.safetensors", f"{hub.STEMS[2]}.safetensors"}
    assert set(files_in(hub.resolve("a/b", half=True))) == names | set(hub.CONFIGS)


def test_resolve_completes_what_the_hubs_cache_has(local):
    name = f"{hub.STEMS[0]}.safetensors"
    huggingface_hub.snapshot_download("a/b", allow_patterns=[name])
    local.asked.clear()
    assert files_in(hub.resolve("a/b")) == expected("")
    assert not any(name in request for request in local.asked)


def test_resolve_of_a_hub_id_without_safetensors(local):
    for name in [name for name in local.files if name.startswith("text_encoder/model")]:
        del local.files[name]
    with pytest.raises(InputError, match="a/b: it has no text_encoder/model.safetensors"):
        hub.resolve("a/b")


def test_resolve_of_a_hub_id_in_another_layout(local):
    local.files = {"model.bin": b"x"}
    with pytest.raises(InputError, match="no such model in component layout"):
        hub.resolve("a/b")


WEIGHTS = [f"{stem}.safetensors" for stem in hub.STEMS]
SCHEDULER = "scheduler/scheduler_config.json"


def cached(*names):
    for name in names:
        huggingface_hub.hf_hub_download("a/b", name)


def test_settings_that_the_hubs_cache_lacks_are_fetched(local, monkeypatch):
    """Programs that load networks one by one leave it so; without its scheduler's file a model is drawn as another."""
    local.files |= {SCHEDULER: b"{}", "tokenizer/added_tokens.json": b"{}"}
    cached(*WEIGHTS, "unet/config.json")
    local.asked.clear()
    folder = hub.resolve("a/b")
    assert {*files_in(folder)} == {*WEIGHTS, *hub.CONFIGS, SCHEDULER, "tokenizer/added_tokens.json"}
    assert not any("weights" in request for request in local.asked)
    local.asked.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub.resolve("a/b") == folder and local.asked == []  # what the model does not have is known now
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert hub.resolve("a/b") == folder


@pytest.mark.parametrize("why", ["offline", "no network", "refused"])
def test_settings_that_cannot_be_fetched_are_said(local, monkeypatch, why):
    cached(*WEIGHTS, *hub.CONFIGS)
    if why == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif why == "no network":
        point_to("http://127.0.0.1:9", monkeypatch)
    else:
        local.status = 500
    with pytest.warns(UserWarning) as said:
        folder = hub.resolve("a/b")
    assert {*files_in(folder)} == {*WEIGHTS, *hub.CONFIGS}
    (text,) = (str(warning.message) for warning in said)
    assert SCHEDULER in text and "unet/config.json" not in text and "--prediction-type v" in text
    assert ("HF_HUB_OFFLINE" if why == "offline" else "cannot be fetched") in text and "\n" not in text


def test_links_of_the_hubs_cache_that_lead_nowhere(local, monkeypatch):
    folder = hub.resolve("a/b")
    for name in (WEIGHTS[0], "vae/config.json"):
        (folder / name).resolve().unlink()
        assert (folder / name).is_symlink() and not (folder / name).exists()
        assert hub.resolve("a/b") == folder and (folder / name).read_bytes() == CONTENT[name]
    (folder / WEIGHTS[0]).resolve().unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        hub.resolve("a/b")


SECRET = "hunter2"
FAULTS = {  # what is set: what is said
    "SOCKS": ({"ALL_PROXY": f"socks5://me:{SECRET}@127.0.0.1:9"}, "ALL_PROXY is a SOCKS proxy.*pip install socksio"),
    "scheme": ({"https_proxy": f"socks://me:{SECRET}@127.0.0.1:9/"}, "https_proxy is no address of a proxy"),
    "token": ({"HF_TOKEN": f"hf_“{SECRET}"}, "the token in HF_TOKEN has characters"),
    "token's newline": ({"HF_TOKEN": f"hf_\v{SECRET}"}, "the token in HF_TOKEN has characters"),
    "certificates": ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "SSL_CERT_FILE is '/nowhere/ca.pem', which is not there"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_in_the_environment_is_named(local, tmp_path, monkeypatch, fault):
    settings, said = FAULTS[fault]
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    huggingface_hub.close_session()
    for call in (lambda: hub.resolve("a/b"), lambda: hub.fetch(tmp_path / "sd15")):
        with pytest.raises(InputError, match=said) as error:
            call()
        assert SECRET not in str(error.value) and "\n" not in str(error.value)


def test_a_file_of_certificates_that_has_none(local, tmp_path, monkeypatch):
    (tmp_path / "ca.pem").write_text("none")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    huggingface_hub.close_session()
    with pytest.raises(InputError, match="the certificates do not fit.*see to SSL_CERT_FILE"):
        hub.resolve("a/b")


@pytest.mark.parametrize("place", ["HF_TOKEN", "file", None])
def test_a_token_that_the_hub_refuses(local, tmp_path, monkeypatch, place):
    """An old one makes a public model fail too."""
    local.refuses_tokens = True
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", "hf_old")
    elif place == "file":
        (tmp_path / "token").write_text("hf_old")
    else:
        assert hub.is_model(hub.resolve("a/b"))
        return
    named = str(tmp_path / "token") if place == "file" else place
    with pytest.raises(InputError, match=re.escape(f"refuses the token in {named} (401); unset")) as error:
        hub.resolve("a/b")
    assert "hf_old" not in str(error.value)


@pytest.mark.parametrize("left_out", ["ETag", "X-Repo-Commit"])
def test_a_mirror_that_leaves_out_what_a_hub_says(local, tmp_path, left_out):
    local.leaves_out = (left_out,)
    for call in (lambda: hub.resolve("a/b"), lambda: hub.fetch(tmp_path / "sd15")):
        with pytest.raises(InputError, match="does not answer as a hub does.*HF_ENDPOINT"):
            call()


def test_no_room_while_it_is_fetched(local, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    with pytest.raises(InputError, match="no room on the disk; make room"):
        hub.fetch(tmp_path / "sd15")


def test_a_proxy_is_named_where_there_is_no_way_through(local, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", f"http://me:{SECRET}@127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    huggingface_hub.close_session()
    with pytest.raises(InputError, match="cannot be fetched.*HTTP_PROXY is set") as error:
        hub.resolve("a/b")
    assert SECRET not in str(error.value)


def test_a_file_with_a_token_that_is_none(local, tmp_path):
    (tmp_path / "token").write_bytes(b"\xff\xfeh")
    with pytest.raises(InputError, match=re.escape(f"the token in {tmp_path / 'token'} has characters")):
        hub.resolve("a/b")
    (tmp_path / "token").unlink()
    (tmp_path / "token").mkdir()  # as where a container mounts what is not there
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'token'}: cannot be read")):
        hub.resolve("a/b")


def test_an_endpoint_that_is_no_address_is_named(local, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    point_to("hub.example", monkeypatch)
    with pytest.raises(InputError, match="cannot be fetched from hub.example .*HF_ENDPOINT is set"):
        hub.resolve("a/b")


def test_a_folder_that_has_the_name_of_a_hub_id(local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "README.md").touch()
    with pytest.raises(InputError, match="a/b: taken for the folder here, which has no model in it.*rename"):
        hub.resolve("a/b")
    assert local.asked == []


def age(file, seconds=10):
    """As if the file had been written a while ago."""
    past = file.stat().st_mtime_ns - int(seconds * 1e9)
    os.utime(file, ns=(past, past))


def test_sha256_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"abc" * 1_000_000)
    age(file)
    digest = hashlib.sha256(b"abc" * 1_000_000).hexdigest()
    assert hub.sha256(file) == digest
    with monkeypatch.context() as no_hashing:
        no_hashing.setattr(hashlib, "sha256", None)
        assert hub.sha256(file) == digest
    file.write_bytes(b"abd" * 1_000_000)  # same size
    age(file, 5)
    assert hub.sha256(file) == hashlib.sha256(b"abd" * 1_000_000).hexdigest()
    times = file.stat()
    file.write_bytes(b"ab")  # same time
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hub.sha256(file) == hashlib.sha256(b"ab").hexdigest()


def test_sha256_of_a_file_that_may_still_change_is_not_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    times = file.stat()
    assert hub.sha256(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hub.sha256(file) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": 1}', b'{"%s": [3, %t, "x"]}', b'{"%s": [3, %t]}', b'{"%s": 1}']
)
def test_a_damaged_memory_is_ignored(tmp_path, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, memory = tmp_path / "weights", tmp_path / "cache" / "minipnp" / "sha256.json"
    file.write_bytes(b"abc")
    age(file)
    memory.parent.mkdir(parents=True)
    time = str(file.stat().st_mtime_ns).encode()
    memory.write_bytes(damage.replace(b"%s", str(file).encode()).replace(b"%t", time))
    assert hub.sha256(file) == hashlib.sha256(b"abc").hexdigest()
    assert str(file) in json.loads(memory.read_text())  # mended
    assert [path.name for path in memory.parent.iterdir()] == ["sha256.json"]


def test_a_memory_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()  # a file where the folder should be
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"abc")
    age(file)
    assert hub.sha256(file) == hashlib.sha256(b"abc").hexdigest()
