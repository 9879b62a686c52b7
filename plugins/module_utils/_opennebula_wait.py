# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to this collection: it may change without notice.
"""Waiting until a front-end has transferred an image."""

from __future__ import annotations

import contextlib
import dataclasses
import time

from ansible_collections.cloudimg.factory.plugins.module_utils._errors import FactoryError
from ansible_collections.cloudimg.factory.plugins.module_utils._http import Unknown, Unreachable
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula import Refused
from ansible_collections.cloudimg.factory.plugins.module_utils._opennebula_cloud import LOCKED, Cloud, Image

_PATIENCE = 300.0
"""Seconds for which a front-end may be away while it transfers: it may be started anew."""


@dataclasses.dataclass
class Waiter:
    """Waits.

    :param timeout: seconds for all images of a build.
    :param interval: seconds between two looks.
    """

    cloud: Cloud
    timeout: float = 3600.0
    interval: float = 5.0

    def phase(self, text: str) -> None:
        """Say what is being done."""
        self.cloud.front.http.progress.phase(text)

    def hide(self, image: Image) -> None:
        """Let its owner alone see an image that is transferred, whatever the front-end's umask is, before others are begun.

        What goes wrong is met again, and told, by :meth:`until_ready`.
        """
        with contextlib.suppress(Unknown, Unreachable, Refused):
            self.cloud.fresh(image)
            if image.state in (0, LOCKED) and image.mode != "600":
                self.cloud.chmod(image, "600")

    def until_ready(self, image: Image, *, hide: bool = False) -> None:
        """Wait until an image is INIT or LOCKED no longer.

        :param hide: let its owner alone see it meanwhile, whatever the front-end's umask is.
        :raises FactoryError: that takes too long, or it has gone.
        """
        end = time.monotonic() + self.timeout
        heard = time.monotonic()
        said = ""
        while image.state in (0, LOCKED):
            try:
                self.cloud.fresh(image)
                heard = time.monotonic()
            except (Unknown, Unreachable):
                if time.monotonic() - heard > min(_PATIENCE, self.timeout):
                    raise
            except Refused as exc:
                if exc.kind != "missing":
                    raise
                raise FactoryError(
                    "vanished while it was transferred",
                    where=f"image {image.name} ({image.id})",
                    mend="find out who removed it, then run this again",
                ) from exc
            if image.state not in (0, LOCKED):
                return
            if hide and image.mode != "600":
                self.cloud.chmod(image, "600")
            if not said:
                said = f"OpenNebula transfers {image.name}"
                self.phase(said)
            if time.monotonic() >= end:
                raise FactoryError(
                    f"is still {image.status} after {self.timeout:g} s",
                    where=f"image {image.name} ({image.id})",
                    key="timeout",
                    mend="run this again: it waits for the same image; where no transfer runs any more, remove that image first",
                )
            self.cloud.front.http.pause(min(self.interval, max(0.0, end - time.monotonic())))
