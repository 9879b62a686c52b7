# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Lynis in a guest that runs: brought along from the builder by SSH. As with SECANT, what it says is told, not judged."""

from __future__ import annotations

import typing as t
from pathlib import Path

from ansible_collections.cloudimg.factory.plugins.module_utils import _audit_lynis, _ssh
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import Cancelled, FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._secant import OK, SKIPPED, Outcome

_ID = "lynis_test"
_FOLDER = "/var/tmp/cloudimg-lynis"
_UNPACK = f"sudo -n rm -rf {_FOLDER} && sudo -n mkdir -m 0700 {_FOLDER} && sudo -n tar -xz -C {_FOLDER} -f -"
_RUN = f"""sudo -n sh -c 'cd {_FOLDER} && echo skip-upgrade-test=yes > custom.prf &&
sh ./lynis audit system --usecwd --cronjob --quick --no-colors --report-file {_FOLDER}/report --logfile {_FOLDER}/log >&2
cat {_FOLDER}/report'"""


def audit(
    access: _ssh.Access, folder: Path, seconds: float, tick: t.Callable[[str], None]
) -> tuple[Outcome, dict[str, t.Any] | None]:
    """Run it, for at most ``seconds``; the outcome, and ``{index, warnings, suggestions, version}``.

    :param folder: private, for the archive.
    """
    packed = _audit_lynis.pack()
    if packed is None:
        return Outcome(_ID, SKIPPED, "Lynis is not installed on the builder"), None
    archive = folder / "lynis.tar.gz"
    archive.write_bytes(packed)
    try:
        _ssh.send(access, archive, _UNPACK, timeout=min(300.0, seconds))
        done = _ssh.run(access, _RUN, timeout=seconds, check=False, tick=tick)
    except Cancelled:
        raise
    except FactoryError as exc:
        return Outcome(_ID, SKIPPED, f"it did not run: {exc}"), None
    score = _audit_lynis.read(done.stdout)
    if score is None:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        return Outcome(_ID, SKIPPED, f"it said no hardening index; its last words: {said}"), None
    result = {
        "index": score.index,
        "version": score.version,
        "warnings": score.warnings,
        "suggestions": score.suggestions,
    }
    details = [f"Warning: {text}" for text in score.warnings] + [f"Suggestion: {text}" for text in score.suggestions]
    return Outcome(_ID, OK, f"hardening index {score.index}; the outcome is not judged", tuple(details)), result
