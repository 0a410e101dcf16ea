"""Secrets where others read them: in a run's config, a job's command, a list of processes, Ray's logs."""

import re
from pathlib import Path
from urllib.parse import parse_qsl

_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^/?#]*)([^?#]*)\??(.*)", re.DOTALL)
_NAME = re.compile(
    r"secret|passw|passphrase|signature|token$|(^|[-_])(key|sig|sas|auth)$|(access|account|api)key$", re.I
)
_REMEDIES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE and ~/.aws/credentials",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, the path of a file with the key",
    "abfs": "AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or the machine's identity",
}
_ALIASES = {"gcs": "gs", "abfss": "abfs"}
_NO_SECRET = ("github",)  # github://owner:repository@branch


def names_secret(name: str) -> bool:
    """Whether an option or a variable of that name holds a password or a key."""
    return _NAME.search(name) is not None


def secret_in(uri: str | Path, remedy: str | None = None) -> str | None:
    """What is wrong with a URI that holds a password or a key, without repeating it, and the remedy.

    Args:
        uri: a URI, or any other text.
        remedy: where that secret belongs instead; where this scheme's usually go when not given.

    Returns:
        the line, or ``None`` where there is no secret.
    """
    found = _URI.fullmatch(str(uri))
    if found is None:
        return None
    scheme, authority, path, options = found.groups()
    scheme = _ALIASES.get(scheme.lower(), scheme.lower())
    user, _, host = authority.rpartition("@")
    # A key with a slash in it ends the authority too early: what should be a port is none then.
    cut = re.search(r":(?!\d*$)", host.rpartition("]")[2])
    secret = scheme not in _NO_SECRET and (":" in user.rstrip(":") or cut)
    if not secret and not any(names_secret(name) for name, _ in parse_qsl(options)):
        return None
    place = f"{scheme}://..." if cut else f"{scheme}://{host}{path}"
    usual = f"fsspec's configuration (~/.config/fsspec, or FSSPEC_{scheme.upper()}_... variables)"
    return (
        f"{place} is given with a secret, which would be kept with the run and shown in lists of processes; "
        f"leave it out, and use {remedy or _REMEDIES.get(scheme, usual)}"
    )
