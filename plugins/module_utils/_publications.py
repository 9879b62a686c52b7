# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Where each version is published besides the local catalogue, which keeps the one record of it; and what is due to go.

A version's C(publications) is C({<catalogue>: {state: published|retired, at: time, **what finds it there again}}).
"""

from __future__ import annotations

import datetime
import typing as t

from ansible_collections.cloudimg.factory.plugins.module_utils import _descriptor
from ansible_collections.cloudimg.factory.plugins.module_utils._catalogue import Catalogue, find_version, state_of
from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._module import Result
from ansible_collections.cloudimg.factory.plugins.module_utils._versions import version_key

LOCAL = "local"
SERVED = "served"
"""Not a catalogue, but where the artifacts are that catalogues name; they stay as long as the version does."""
_OWN = ("state", "at")


def record(
    catalogue: Catalogue,
    image: str,
    version: str,
    elsewhere: str,
    *,
    state: str,
    publication: t.Mapping[str, t.Any] | None = None,
    reason: str | None = None,
) -> Result:
    """Note that a version is published in another catalogue, or retired there (``state`` C(published), C(retired)).

    :param publication: what finds it there again; without it, what was known is kept.
    :raises FactoryError: the local catalogue has never had this version; ``publication`` has a key that is kept for us.
    """
    wrong = next((key for key in publication or {} if key in _OWN), None)
    if wrong:
        raise FactoryError("is not for a publication to say", key=f"publication.{wrong}", mend="remove it")
    if elsewhere == LOCAL:
        raise FactoryError("is the catalogue that keeps the record", key="catalogue", mend="name another one")
    with catalogue.hold(image), catalogue.change(image) as (entry, result):
        known = find_version(entry, version)
        if known is None:
            if catalogue.check_mode:
                result.act(f"{image} {version}: would be {state} in {elsewhere}")
                return result
            raise FactoryError(
                f"version {version} was never published",
                where=str(catalogue.path),
                key=image,
                mend="publish it in the catalogue local first",
            )
        former = (known.get("publications") or {}).get(elsewhere) or {}
        about = {key: value for key, value in former.items() if key not in _OWN}
        wanted = {**about, **publication} if publication is not None else about
        if state == "retired" and not former:
            return result  # it was never there
        if former.get("state") == state and wanted == about:
            return result
        if former.get("state") == state:
            result.act(f"{image} {version}: what is known of it in {elsewhere} differs")
            action = "updated"
        else:
            result.act(f"{image} {version}: is {former.get('state', 'not published')} in {elsewhere}, shall be {state}")
            action = state
        known.setdefault("publications", {})[elsewhere] = {**wanted, "state": state, "at": _descriptor.now()}
        catalogue.remember(entry, action, version, reason, elsewhere)
    return result


def published_in(version: t.Mapping[str, t.Any]) -> list[str]:
    """The other catalogues in which a version is published at this moment."""
    return sorted(name for name, about in (version.get("publications") or {}).items() if about["state"] == "published")


def due(entry: t.Mapping[str, t.Any], *, keep: int | None, warn_days: int | None) -> dict[str, list[dict[str, t.Any]]]:
    """What is to be retired of an image, as its entry in C(Catalogue.listing) has it, and whose end is near.

    :param keep: how many of the newest published versions stay; None for all.
    :param warn_days: so many days ahead an end counts as near; None for no days.
    :returns: C(retire), a list of C({version, state, reason}), where state is C(expired) or C(absent); and C(ending), a list of
        C({version, expires, days}).
    """
    versions = sorted(entry["versions"], key=lambda known: version_key(known["version"]), reverse=True)
    retire: list[dict[str, t.Any]] = []
    ending: list[dict[str, t.Any]] = []
    kept = 0
    moment = datetime.datetime.now(datetime.timezone.utc)
    for known in versions:
        name, state = known["version"], state_of(known)
        if state == "removed":
            # It was retired here, but a later catalogue may have been out of reach.
            if published_in(known):
                retire.append({"version": name, "state": "absent", "reason": "its files were removed"})
            continue
        if state == "published":
            kept += 1
        if keep is not None and kept > keep - (state != "published"):
            retire.append({"version": name, "state": "absent", "reason": f"{keep} newer versions are published"})
        elif state == "expired":
            if known["state"] != "expired" or set(published_in(known)) - {SERVED}:
                retire.append({"version": name, "state": "expired", "reason": f"its time ended at {known['expires']}"})
        elif state == "published" and known.get("expires") and warn_days is not None:
            days = (_descriptor.parse_time(known["expires"]) - moment).total_seconds() / 86400
            if days <= warn_days:
                ending.append({"version": name, "expires": known["expires"], "days": max(0, int(days))})
    return {"retire": retire, "ending": ending}
