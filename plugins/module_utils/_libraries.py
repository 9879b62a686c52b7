# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Libraries beyond Python's own, which only some modules need: imported when they are used, or missed in one line."""

from __future__ import annotations

import importlib
import sys
import types

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

DISTRIBUTIONS: dict[str, tuple[str, str | None]] = {
    "boto3": ("boto3", "python3-boto3"),
    "cryptography": ("cryptography", "python3-cryptography"),
    "cyclonedx": ("cyclonedx-python-lib", None),
    "hcl2": ("python-hcl2", None),
    "jinja2": ("jinja2", "python3-jinja2"),
    "keystoneauth1": ("keystoneauth1", "python3-keystoneauth1"),
    "lark": ("lark", "python3-lark"),
    "lxml": ("lxml", "python3-lxml"),
    "openstack": ("openstacksdk", "python3-openstacksdk"),
    "pyone": ("pyone", None),
    "requests": ("requests", "python3-requests"),
    "signxml": ("signxml", "python3-signxml"),
    "yaml": ("PyYAML", "python3-yaml"),
}
"""What to install for a top-level module: its name on PyPI, and Debian's package (None: Debian 12 has none)."""


def need(name: str, minimum: str | None = None, *, python: str = "publish_python") -> types.ModuleType:
    """Import a library, or a module of one (C(cryptography.x509)).

    Code that wants the library's types imports it at its top, guarded by C(try) and C(except ImportError), and calls this
    before its first use.

    :param minimum: the oldest version of the library that will do.
    :param python: the variable by which a playbook is told of another Python.
    :raises FactoryError: it is not installed for this Python, broken, or older than ``minimum``.
    """
    top = name.partition(".")[0]
    try:
        found = importlib.import_module(name)
        library = importlib.import_module(top)
    except ImportError as exc:
        cause = "" if getattr(exc, "name", None) == top else f" ({exc})"
        raise FactoryError(
            f"needs the Python library {top}{cause}", where=sys.executable, mend=_install(top, minimum, python)
        ) from exc
    version = str(getattr(library, "__version__", ""))
    if minimum and version and version_key(version) < version_key(minimum):
        raise FactoryError(
            f"has {top} {version}, and needs {minimum} or newer",
            where=sys.executable,
            mend=_install(top, minimum, python),
        )
    return found


def _install(top: str, minimum: str | None, python: str) -> str:
    wheel, package = DISTRIBUTIONS.get(top, (top, None))
    wanted = f"'{wheel}>={minimum}'" if minimum else wheel
    words: list[str] = [f"install it there by «{sys.executable} -m pip install {wanted}»"]
    if package:
        words.append(f"or by Debian's package {package}" + (", where that is new enough" if minimum else ""))
    words.append(f"or name a Python that has it by {python}")
    return ", ".join(words)
