"""What went wrong between this machine and the hub, in one line: of what its client raises to the cause and the remedy.

Proxies and tokens are named by their variable only: their values may hold passwords.
"""

import errno
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from minipnp.errors import InputError

PROXIES = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
CANNOT = "cannot be fetched from {hub} ({why})"


@contextmanager
def one_line(repo: str, instead: str) -> Iterator[None]:
    """Whatever huggingface_hub raises becomes an InputError: what of `repo` failed, why, and what to do, or instead."""
    from huggingface_hub import constants, errors

    try:
        yield
    except InputError:
        raise
    except (errors.HTTPError, OSError, RuntimeError, ImportError, ValueError) as error:
        if isinstance(error, OSError) and error.filename and not _no_certificates(error):
            how = "read" if error.filename == constants.HF_TOKEN_PATH else "written"
            raise InputError(f"{error.filename}: cannot be {how} ({error.strerror})") from None
        what, remedy = fault(error)
        raise InputError(f"{repo}: {what}; {remedy}, or {instead}") from None


def fault(error: Exception) -> tuple[str, str]:
    """What is wrong, and what to do about it. The cause may stand behind what is raised."""
    cause = error
    while cause is not None:
        if said := _named(cause):
            return said
        cause = cause.__cause__ or cause.__context__
    return _other(error)


def _named(error: Exception) -> tuple[str, str] | None:
    from huggingface_hub import constants, errors

    text = str(error)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "not on this machine, and HF_HUB_OFFLINE is set", "unset it"
    if isinstance(error, errors.GatedRepoError):
        return "its terms must be accepted first", "accept them on its page and log in with `hf auth login`"
    if status == 401 and "Invalid credentials" in text or status == 403:
        token = _token()
        what = f"the hub refuses {f'the token in {token}' if token else 'who is not logged in'} ({status})"
        return what, f"unset {token}, or log in again with `hf auth login`" if token else "log in with `hf auth login`"
    if isinstance(error, UnicodeError) or "header value" in text:
        token = _token() or "HF_TOKEN"
        return f"the token in {token} has characters that no token has", "copy it again, or unset it"
    unknown = (
        errors.RepositoryNotFoundError,
        errors.RevisionNotFoundError,
        errors.RemoteEntryNotFoundError,
        errors.HFValidationError,
    )
    if isinstance(error, unknown):
        return "the hub has no such model in component layout", "log in with `hf auth login` where it is a private one"
    if isinstance(error, errors.FileMetadataError):
        what = f"{constants.ENDPOINT} does not answer as a hub does (no X-Repo-Commit or ETag)"
        return what, "see what HF_ENDPOINT points to"
    if isinstance(error, ImportError) and "socks" in text.lower():
        name = " and ".join(_proxies("socks")) or "a variable"
        return f"{name} is a SOCKS proxy, which needs the package socksio", f"`pip install socksio`, unset {name}"
    if "proxy URL" in text:
        name = " and ".join(name for name in _proxies() if name not in _proxies("http")) or "a proxy's variable"
        return f"{name} is no address of a proxy", "give it as http://HOST:PORT or socks5://HOST:PORT"
    if _no_certificates(error):
        name = next(name for name in CERTIFICATES if not os.path.exists(os.environ.get(name, "/")))
        return f"{name} is {os.environ[name]!r}, which is not there", f"unset {name}"
    if isinstance(error, ssl.SSLError) or "CERTIFICATE_VERIFY_FAILED" in text:
        name = next((name for name in CERTIFICATES if os.environ.get(name)), None)
        remedy = f"see to {name}, which names them" if name else "name those of your proxy or firewall in SSL_CERT_FILE"
        return CANNOT.format(hub=constants.ENDPOINT, why="the certificates do not fit"), remedy
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no room on the disk", "make room and run this again"
    return None


def _other(error: Exception) -> tuple[str, str]:
    from huggingface_hub import constants

    why = (str(error).strip() or type(error).__name__).splitlines()[0]
    if led := " and ".join([*_proxies(), *(name for name in ("HF_ENDPOINT",) if os.environ.get(name))]):
        why += f"; {led} is set"
    return CANNOT.format(hub=constants.ENDPOINT, why=why), "connect and run this again"


def _no_certificates(error: Exception) -> bool:
    """Whether it is that of a file of certificates that is not there. (The error does not always name it.)"""
    missing = [os.environ[name] for name in CERTIFICATES if not os.path.exists(os.environ.get(name, "/"))]
    there = isinstance(error, FileNotFoundError) and error.filename in (None, *missing) and error.errno == errno.ENOENT
    return bool(missing) and (there or any(path in str(error) for path in missing))


def _proxies(scheme: str = "") -> list[str]:
    """The variables that name a proxy, whose address begins so."""
    names = [way for name in PROXIES for way in (name, name.lower())]
    return [name for name in names if os.environ.get(name) and os.environ[name].lower().startswith(scheme)]


def _token() -> str | None:
    """Where a token stands that huggingface_hub sends."""
    from huggingface_hub import constants

    if name := next((name for name in TOKENS if os.environ.get(name)), None):
        return name
    return constants.HF_TOKEN_PATH if os.path.isfile(constants.HF_TOKEN_PATH) else None
