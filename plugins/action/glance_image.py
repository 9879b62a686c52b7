# Copyright (c) cloudimg.factory contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Shows signs of life while the module of the same name works, and lets no file have its secrets."""

from __future__ import annotations

from ansible_collections.cloudimg.factory.plugins.plugin_utils._private_heartbeat import (
    PrivateHeartbeatAction as ActionModule,
)

__all__ = ["ActionModule"]
